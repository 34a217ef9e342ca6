"""If this fails, the speaker encoder cannot load its published weights, or a voice's style depends on what it should not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from indextts.config import CAMPPlusConfig, SpectConfig
from indextts.models.campplus import CAMPPlus, kaldi_fbank, segment_means, style_features
from indextts.models.filterbank import mel_filters, povey_window
from indextts.models.mel import hann_window, mel_spectrogram, slaney_filters
from indextts.models.weights import CheckpointError, build, load_weights
from tests.seeded import seeded_state

MANIFESTS = Path(__file__).parents[1] / "manifest"
SMALL = CAMPPlusConfig(feat_dim=24, embedding_size=12, growth_rate=8, bn_size=2, init_channels=16)


def speech(samples: int, seed: int = 0, rate: int = 16000) -> torch.Tensor:
    """Noise with a tone, (samples,)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / rate
    return 0.3 * torch.sin(2 * torch.pi * 200 * time) + 0.05 * torch.randn(samples, generator=generator)


def small_model() -> CAMPPlus:
    manifest = json.loads((MANIFESTS / "campplus.small.json").read_text())
    model = build(lambda: CAMPPlus(SMALL))
    load_weights(model, seeded_state(manifest, 1), unused=CAMPPlus.UNUSED)
    return model


def test_release_size_module_has_the_published_keys_and_shapes() -> None:
    manifest = json.loads((MANIFESTS / "campplus.json").read_text())
    state = build(lambda: CAMPPlus(CAMPPlusConfig())).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {key: entry["shape"] for key, entry in manifest.items()}


def test_a_missing_weight_is_an_error() -> None:
    state = small_model().state_dict()
    del state["xvector.block2.tdnnd7.linear1.weight"]
    with pytest.raises(CheckpointError, match=r"block2\.tdnnd7\.linear1\.weight"):
        load_weights(build(lambda: CAMPPlus(SMALL)), state)


def test_batched_clips_of_equal_length_give_what_they_give_alone() -> None:
    model = small_model()
    features = torch.randn(3, 213, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = model(features)
        alone = torch.cat([model(features[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(213, 401, 399, 64), (200, 3, 5, 11), (90, 199, 201, 202)], ids=str)
def test_padded_clips_of_unequal_length_give_what_they_give_alone(lengths: tuple[int, ...]) -> None:
    """Around whole segments, 100 steps or 200 frames, too, and with anything in the padding."""
    model = small_model()
    random = torch.Generator().manual_seed(0)
    clips = [torch.randn(frames, 24, generator=random) for frames in lengths]
    padded = torch.full((len(clips), max(lengths) + 55, 24), float("nan"))
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    with torch.inference_mode():
        together = model(padded, torch.tensor(lengths))
        alone = torch.cat([model(clip[None]) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_lengths_are_not_looked_at() -> None:
    """A look would be a wait for the device, which a graph cannot record."""
    model = build(lambda: CAMPPlus(SMALL)).to("meta")
    assert model(torch.empty(2, 213, 24, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")).shape == (2, 12)


def test_local_context_of_the_last_segment_counts_real_steps_only() -> None:
    x = torch.randn(2, 3, 250, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([piece.mean(-1, keepdim=True).expand_as(piece) for piece in x.split(100, dim=-1)], dim=-1)
    torch.testing.assert_close(segment_means(x), expected)
    torch.testing.assert_close(segment_means(x[..., :40]), x[..., :40].mean(-1, keepdim=True).expand(2, 3, 40))


def test_features_ignore_loudness_but_keep_the_floor_of_silence() -> None:
    wave = speech(8000)
    loud, quiet = kaldi_fbank(wave), kaldi_fbank(0.5 * wave)
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, 2 * torch.log(torch.tensor(2.0)).item()), atol=2e-3, rtol=0)
    assert loud.shape == (1 + (8000 - 400) // 160, 80)
    assert torch.allclose(kaldi_fbank(torch.zeros(4800)), torch.tensor(1.192092955078125e-07).log())
    torch.testing.assert_close(style_features(wave).mean(dim=1), torch.zeros(1, 80), atol=1e-4, rtol=0)


def test_a_clip_shorter_than_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 400 samples"):
        kaldi_fbank(torch.zeros(399))
    with pytest.raises(ValueError, match="more than 384 samples"):
        mel_spectrogram(torch.zeros(1, 384), SpectConfig(), 22050)


@pytest.mark.parametrize(("samples", "frames"), [(22050, 86), (25600, 100), (25855, 100), (6616, 25)])
def test_mel_has_a_frame_for_every_256_samples(samples: int, frames: int) -> None:
    mel = mel_spectrogram(speech(samples).unsqueeze(0), SpectConfig(), 22050)
    assert mel.shape == (1, 80, frames)
    assert mel.min() >= torch.tensor(1e-5).log()


def test_mel_follows_every_parameter_of_the_configuration() -> None:
    wave = speech(22050).unsqueeze(0)
    assert mel_spectrogram(wave, SpectConfig(), 22050).shape == (1, 80, 86)
    assert mel_spectrogram(wave, SpectConfig(n_fft=512, win_length=512, hop_length=128, n_mels=40), 22050).shape == (1, 40, 172)
    cpu = torch.device("cpu")
    assert not torch.equal(slaney_filters(22050, 1024, 80, 0, cpu), slaney_filters(16000, 1024, 80, 0, cpu))
    assert not torch.equal(slaney_filters(22050, 1024, 80, 0, cpu), slaney_filters(22050, 1024, 80, 50, cpu))


def test_constants_made_during_inference_serve_training_too() -> None:
    for cached in (hann_window, slaney_filters, povey_window, mel_filters):
        cached.cache_clear()
    wave = speech(4410).unsqueeze(0)
    with torch.inference_mode():
        mel_spectrogram(wave, SpectConfig(), 22050)
        kaldi_fbank(wave[0])
    wave.requires_grad_()
    (mel_spectrogram(wave, SpectConfig(), 22050).sum() + kaldi_fbank(wave[0]).sum()).backward()
    assert wave.grad is not None
    assert wave.grad.isfinite().all()
