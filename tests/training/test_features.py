"""If these fail, flow matching learns voices that are shifted in one thing and not in another."""

from __future__ import annotations

import math

import torch

from indextts.config import SpectConfig
from indextts.models.mel import mel_spectrogram
from indextts.training.acoustic import draw_voices, estranged
from indextts.training.features import mel_of


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


def test_three_of_ten_rows_keep_their_voice() -> None:
    torch.manual_seed(0)
    warps, gains = draw_voices(2000, torch.device("cpu"))
    assert 0.25 < (warps == 1).float().mean() < 0.35
    assert warps.log().abs().max() <= 0.15 + 1e-6
    assert warps.min() < 0.9
    assert warps.max() > 1.1
    assert torch.equal((gains == 1).all(dim=1), warps == 1)
    altered = 20 * gains[warps != 1].log10()
    assert 2.0 < altered.square().mean().sqrt() < 5.0  # decibels
    assert (altered[:, 1:] - altered[:, :-1]).abs().max() < 2.0  # smooth


def test_some_style_vectors_change_places() -> None:
    torch.manual_seed(0)
    style = torch.randn(2000, 8)
    found = estranged(style)
    kept = (found == style).all(dim=1)
    assert 0.65 < kept.float().mean() < 0.75
    assert torch.equal(found[~kept], style.roll(1, dims=0)[~kept])
