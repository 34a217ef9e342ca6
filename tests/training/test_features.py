"""If these fail, flow matching learns voices that are shifted in one thing and not in another."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from indextts.config import SpectConfig
from indextts.models.bigvgan import BigVGAN
from indextts.models.mel import mel_spectrogram
from indextts.training.acoustic import draw_voices, estranged
from indextts.training.corpus import Corpus
from indextts.training.features import mel_of
from indextts.training.sizes import SIZES
from indextts.training.vocoder import altered, pieces, quiet
from tests.training.made_up import write_shards


def tone(hertz: float) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(8192) / 22050)


def test_a_warped_mel_is_that_of_the_higher_tone() -> None:
    waves = torch.stack([tone(1000.0), tone(1000.0), tone(2000.0)])
    warped, expected = mel_of(waves, torch.tensor([1.0, 1.15, 0.9])), mel_of(torch.stack([tone(1000.0), tone(1150.0), tone(1800.0)]))
    assert torch.equal(warped[0], mel_spectrogram(waves[:1], SpectConfig(), 22050)[0])
    inner = slice(2, -2)
    assert torch.equal(warped[..., inner].argmax(dim=1), expected[..., inner].argmax(dim=1))
    peaks = expected[..., inner].argmax(dim=1, keepdim=True)
    assert (warped - expected)[..., inner].gather(1, peaks).abs().max() < 0.3


def test_nothing_comes_in_from_above() -> None:
    noise = torch.randn(1, 8192, generator=torch.Generator().manual_seed(0))
    lowered = mel_of(noise, torch.tensor([0.8]))[0]
    assert lowered[-1].max() < lowered[40].min() - 3


def test_gains_shift_the_mel_and_nothing_else() -> None:
    noise = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0))
    plain = mel_of(noise)
    shifted = mel_of(noise, torch.ones(2), torch.tensor([1.0, 2.0])[:, None].expand(-1, 513))
    assert torch.equal(shifted[0], plain[0])
    assert torch.allclose(shifted[1], plain[1] + math.log(2), atol=1e-4)


def vowel(pitch_hz: float, formant_hz: float) -> torch.Tensor:
    """Harmonics of a pitch under one resonance."""
    hertz = pitch_hz * torch.arange(1, int(9000 / pitch_hz))
    strength = 1 / (1 + ((hertz - formant_hz) / 150).square()) + 0.003
    return 0.1 * (strength[:, None] * torch.sin(2 * math.pi * hertz[:, None] * torch.arange(8192) / 22050)).sum(0)


def test_formants_move_and_the_pitch_stays() -> None:
    pitch = 180.0
    moved = mel_of(vowel(pitch, 1500.0)[None], formants=torch.tensor([1.2]))[0, :, 8:-8].mean(1)
    expected = mel_of(vowel(pitch, 1800.0)[None])[0, :, 8:-8].mean(1)
    before = mel_of(vowel(pitch, 1500.0)[None])[0, :, 8:-8].mean(1)
    assert int(moved[10:].argmax()) == int(expected[10:].argmax()) != int(before[10:].argmax())
    low = slice(2, 14)  # bands narrow enough for single harmonics
    assert torch.equal(moved[low].diff().sign(), before[low].diff().sign())


def test_formants_stand_out_more_and_harmonics_less() -> None:
    wave = vowel(180.0, 1500.0)[None]
    plain, sharp, dull, smooth = (
        mel_of(wave, **given)[0, :, 8:-8].mean(1)
        for given in ({}, {"relief": torch.tensor([1.3])}, {"relief": torch.tensor([0.7])}, {"depth": torch.tensor([0.3])})
    )
    assert sharp.std() > 1.05 * plain.std() > 1.1 * dull.std()
    low = slice(2, 14)  # bands narrow enough for single harmonics
    assert smooth[low].diff().abs().mean() < 0.6 * plain[low].diff().abs().mean()
    assert torch.allclose(mel_of(wave, relief=torch.ones(1), depth=torch.ones(1)), mel_of(wave), atol=1e-3)


def test_most_rows_have_a_voice_that_nobody_has() -> None:
    torch.manual_seed(0)
    warps, gains, formants, relief, depth = draw_voices(2000, torch.device("cpu"))
    kept = warps == 1
    assert 0.1 < kept.float().mean() < 0.2
    for factors, most in ((warps, 0.15), (relief, 0.25), (depth, 0.35)):
        assert torch.equal(factors == 1, kept)
        assert factors.log().abs().max() <= most + 1e-6
        assert factors.min() < 0.9
        assert factors.max() > 1.1
    assert torch.equal((gains == 1).all(dim=1), kept)
    altered = 20 * gains[~kept].log10()
    assert 4.0 < altered.square().mean().sqrt() < 7.0  # decibels
    assert (altered[:, 1:] - altered[:, :-1]).abs().max() < 5.0  # smooth
    assert torch.equal((formants == 1).all(dim=1), kept)
    bent = formants[~kept].log()
    assert bent.mean(dim=1).std() > 0.08  # a larger or smaller mouth
    assert 0.03 < bent.std(dim=1).mean() < 0.1  # of another shape
    assert ((torch.arange(513) / formants).diff(dim=1) > 0).all()  # what was higher stays higher


def test_some_style_vectors_change_places() -> None:
    torch.manual_seed(0)
    style = torch.randn(2000, 8)
    found = estranged(style)
    kept = (found == style).all(dim=1)
    assert 0.65 < kept.float().mean() < 0.75
    assert torch.equal(found[~kept], style.roll(1, dims=0)[~kept])


def test_pieces_at_another_speed_are_higher_or_lower_and_as_loud() -> None:
    samples, flat = 8192, torch.ones(1, 4097)
    for count in (6881, 8192, 9748):
        speed = count / samples
        wave = 0.5 * torch.sin(2 * math.pi * 1000 * torch.arange(count) / 22050)[None]
        inner = altered(wave, samples, flat)[0, 256:-256]
        expected = 0.5 * torch.sin(2 * math.pi * 1000 * speed * torch.arange(samples) / 22050)[256:-256]
        assert (inner - expected).abs().max() < 0.02, speed
    noise = torch.randn(1, 9749, generator=torch.Generator().manual_seed(0))
    assert altered(noise, samples, flat).square().mean() < noise.square().mean()  # what would be above half the rate is left out


def test_pieces_for_the_vocoder_fit_whatever_their_speed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    corpus = Corpus(write_shards(tmp_path), torch.device("cpu"), 0)
    corpus.refresh()
    for _ in range(12):
        waves = pieces(corpus, 6)
        assert waves.shape == (6, 64 * 256)
        assert waves.abs().max() <= 0.95 + 1e-6
        assert (waves.abs().amax(1) > 0.05).all()


def test_a_fresh_vocoder_starts_where_its_activations_are_nearly_straight() -> None:
    mel = mel_of(torch.stack([tone(1000.0), 0.1 * torch.randn(8192, generator=torch.Generator().manual_seed(0))]))
    torch.manual_seed(104)
    vocoder = BigVGAN(SIZES["small"]().bigvgan)
    heard: list[float] = []
    for block in vocoder.resblocks:
        block.register_forward_hook(lambda _, given, __: heard.append(float(given[0].square().mean().sqrt())))
    with torch.no_grad():
        vocoder.unclamped(mel)
        usual, heard[:] = list(heard), []
        quiet(vocoder, mel.mean((0, 2))).unclamped(mel)
    assert min(usual) > 2 > 1 > max(heard) > 0.1
