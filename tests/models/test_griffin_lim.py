"""The vocoder without weights: if these fail, the small voice turns to noise, or a release that names it does not load."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from indextts import IndexTTS2
from indextts.config import SpectConfig
from indextts.config_fields import ConfigError
from indextts.config_vocoder import GRIFFIN_LIM, VocoderConfig
from indextts.models.griffin_lim import GriffinLim
from indextts.models.mel import mel_spectrogram
from indextts.release import write_random_release
from indextts.release.layout import MissingFilesError
from indextts.release.sizes import small_config

RATE = 22050


def speechlike(seconds: float, pitch: float = 120.0) -> torch.Tensor:
    """Harmonics under two moving resonances, and a little noise: (1, n)."""
    time = torch.arange(int(seconds * RATE)) / RATE
    harmonics = torch.arange(1, 60)[:, None] * pitch
    weights = sum(torch.exp(-(((harmonics - f - 150 * torch.sin(6 * time)) / 300) ** 2)) for f in (600.0, 1700.0))
    noise = 0.001 * torch.randn(time.numel(), generator=torch.Generator().manual_seed(0))
    return (0.05 * (weights * torch.sin(2 * torch.pi * harmonics * time)).sum(0) + noise)[None]


def mel_of(wave: torch.Tensor) -> torch.Tensor:
    return mel_spectrogram(wave, SpectConfig(), RATE)


def test_the_wave_has_the_mel_it_was_made_from() -> None:
    mel = mel_of(speechlike(0.8))
    vocoder = GriffinLim(SpectConfig(), RATE)
    wave = vocoder(mel)
    assert wave.shape == (1, 1, 256 * mel.shape[-1])
    difference = (mel_of(wave[:, 0]) - mel)[..., 2:-2].abs().mean()
    assert difference < 0.25
    few = GriffinLim(SpectConfig(), RATE, iterations=1)(mel)
    assert difference < 0.7 * (mel_of(few[:, 0]) - mel)[..., 2:-2].abs().mean()


def test_the_same_mel_always_sounds_the_same_and_padding_changes_nothing() -> None:
    long, short = mel_of(speechlike(0.6)), mel_of(speechlike(0.4, pitch=190.0))
    vocoder = GriffinLim(SpectConfig(), RATE, iterations=4)  # rounding grows with every turn
    padded = torch.cat([long, torch.nn.functional.pad(short, (0, long.shape[-1] - short.shape[-1]))])
    both = vocoder(padded, torch.tensor([long.shape[-1], short.shape[-1]]))
    samples = 256 * short.shape[-1]
    torch.testing.assert_close(both[:1], vocoder(long), atol=1e-4, rtol=0)
    torch.testing.assert_close(both[1:, :, :samples], vocoder(short), atol=1e-4, rtol=0)
    assert both[1, 0, samples:].abs().max() == 0
    assert torch.equal(vocoder(short), vocoder(short))


@pytest.mark.filterwarnings("ignore:generation was stopped")
def test_a_release_that_names_it_needs_no_vocoder_files_and_speaks(tmp_path: Path) -> None:
    sizes = small_config()
    named = dataclasses.replace(sizes, config=dataclasses.replace(sizes.config, vocoder=VocoderConfig(GRIFFIN_LIM, GRIFFIN_LIM, 2)))
    folder = write_random_release(tmp_path / "voice", named)
    assert not (folder / "hf_cache/bigvgan").exists()
    with IndexTTS2(model_dir=str(folder), device="cpu") as tts:
        rate, samples = tts.infer(voice_in(tmp_path), "Yes.", max_mel_tokens=10)
    assert rate == RATE
    assert samples.any()
    config = folder / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(GRIFFIN_LIM, "nvidia/bigvgan"), encoding="utf-8")
    with pytest.raises(MissingFilesError, match="bigvgan_generator"):
        IndexTTS2(model_dir=str(folder), device="cpu")
    trained = write_random_release(tmp_path / "trained", sizes)
    shutil.copytree(trained / "hf_cache/bigvgan", folder / "hf_cache/bigvgan")
    IndexTTS2(model_dir=str(folder), device="cpu").close()


def voice_in(folder: Path) -> str:
    from indextts.audio import write_wav

    path = folder / "voice.wav"
    write_wav(path, (speechlike(1.5)[0] * 32767).to(torch.int16).numpy(), RATE)
    return str(path)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"vocoder\.iterations"):
        VocoderConfig(iterations=0)
    with pytest.raises(ValueError, match="iterations"):
        GriffinLim(SpectConfig(), RATE, iterations=0)
