"""The vocoder as the CPU runs it. If this fails, laptops have another voice than GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from indextts import IndexTTS2
from indextts.config_vocoder import BigVGANConfig
from indextts.engine import host_vocoder
from indextts.engine.host_vocoder import HostVocoder
from indextts.engine.vocoder import VocoderRunner
from indextts.models.bigvgan import Activation, BigVGAN

CPU = torch.device("cpu")
TANH = BigVGANConfig(upsample_rates=(4, 3), upsample_kernel_sizes=(8, 5), upsample_initial_channel=12, num_mels=7)
CLAMP = BigVGANConfig(upsample_initial_channel=64, num_mels=7, use_tanh_at_final=False, use_bias_at_final=False)


def network(config: BigVGANConfig) -> BigVGAN:
    """Random weights of which every one matters."""
    torch.manual_seed(0)
    model = BigVGAN(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((0.3 if name.endswith(("alpha", "beta")) else 0.05) * torch.randn_like(parameter))
    return model


def mels(batch: int, frames: int) -> Tensor:
    return torch.randn(batch, 7, frames, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("config", [TANH, CLAMP], ids=["tanh", "clamp"])
@pytest.mark.parametrize("copied", [host_vocoder.COPIED, 0])
@torch.inference_mode()
def test_equals_the_network(config: BigVGANConfig, copied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_vocoder, "COPIED", copied)
    model = network(config)
    host = HostVocoder(model)
    for frames in (1, 2, 3, 5, 17, 64):
        torch.testing.assert_close(host(mels(2, frames)), model(mels(2, frames)), atol=5e-5, rtol=1e-5)  # of 110 layers
    lengths, padded = torch.tensor([9, 1, 4]), mels(3, 9)
    torch.testing.assert_close(host(padded, lengths), model(padded, lengths), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4, 48, 1500])
@torch.inference_mode()
def test_activations_equal_the_plain_ones(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_vocoder, "CACHED", 5000)  # several parts
    torch.manual_seed(0)
    plain = Activation(channels)
    plain.act.alpha.normal_(std=0.5)
    plain.act.beta.normal_(std=0.5)
    resampled = host_vocoder._Resampled(plain)
    for frames in (1, 2, 3, 4, 7, 1001):
        x = torch.randn(1, channels, frames)
        before = x.clone()
        picture = x[:, :, None].contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(resampled(picture)[:, :, 0], plain(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(picture[:, :, 0], before)


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


def test_an_engine_takes_it_on_the_accelerated_path(engine: IndexTTS2) -> None:
    stages = engine._stages
    assert stages.voice.on_host
    engine.use_accel = False
    assert not stages.voice.on_host
    engine.use_accel = True
    assert stages.voice.on_host
    engine.set_fusion(vocoder=False)
    assert not stages.voice.on_host
    engine.set_fusion(vocoder="auto")
    engine.set_channels_last(True)
    assert not stages.voice.on_host
    engine.set_channels_last(None)
    assert stages.voice.on_host


def test_other_devices_and_vocoders_do_without() -> None:
    model = network(TANH)
    assert not VocoderRunner(model, CPU).on_host
    assert not VocoderRunner(model, torch.device("meta"), on_host=True).on_host
    assert not VocoderRunner(torch.nn.Identity(), CPU, on_host=True).on_host
