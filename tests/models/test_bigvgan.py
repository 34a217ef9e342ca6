"""The vocoder in chunks, in padded batches and against the released file's layout.

If these fail, streamed audio clicks at the joins, segments vocoded together end differently than alone, or the released weights
do not load.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indextts.config_vocoder import BigVGANConfig, release_bigvgan
from indextts.models.bigvgan import CONTEXT_FRAMES, BigVGAN
from indextts.models.weights import CheckpointError, build, fold_weight_norm, load_weights, unfold_weight_norm

TESTS = Path(__file__).parents[1]
# The release's rates, kernels and dilations decide how far a frame reaches; the channels do not.
THIN = BigVGANConfig(upsample_initial_channel=64, num_mels=12, use_tanh_at_final=False, use_bias_at_final=False)
SHORT = BigVGANConfig(upsample_rates=(4, 2), upsample_kernel_sizes=(8, 4), upsample_initial_channel=16, num_mels=12)


def trained(config: BigVGANConfig) -> BigVGAN:
    """Random weights in which every parameter matters."""
    torch.manual_seed(0)
    model = BigVGAN(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def chunked(model: BigVGAN, mel: Tensor, size: int, context: int) -> Tensor:
    pieces = []
    for start in range(0, mel.shape[-1], size):
        first, last = max(0, start - context), min(mel.shape[-1], start + size + context)
        wave = model.unclamped(mel[..., first:last])
        pieces.append(wave[..., (start - first) * model.hop :][..., : min(size, mel.shape[-1] - start) * model.hop])
    return torch.cat(pieces, dim=-1)


@torch.inference_mode()
def test_chunks_with_context_join_to_the_whole() -> None:
    model = trained(THIN)
    mel = torch.randn(1, 12, 110)
    whole = model.unclamped(mel)
    assert whole.shape == (1, 1, 110 * 256)
    assert whole.std() > 1e-2
    torch.testing.assert_close(chunked(model, mel, 55, CONTEXT_FRAMES), whole, rtol=1e-5, atol=1e-5)
    assert (chunked(model, mel, 55, 4) - whole).abs().max() > 1e-3, "too short a context should show, or this test shows nothing"


@torch.inference_mode()
def test_segments_vocoded_together_equal_each_alone() -> None:
    model = trained(SHORT)
    lengths = torch.tensor([17, 4, 11])
    mel = 2 * torch.randn(3, 12, 17)  # what lies in the padding must not matter
    together = model(mel, lengths)
    for row, wave, length in zip(mel, together, lengths.tolist(), strict=True):
        torch.testing.assert_close(wave[:, : 8 * length], model(row[None, :, :length])[0], rtol=1e-5, atol=1e-5)
        assert not wave[:, 8 * length :].any()
    naive = model(mel.masked_fill(torch.arange(17) >= lengths[:, None, None], 0))
    assert (naive[1, :, :32] - together[1, :, :32]).abs().max() > 1e-3, "zero padding alone should show, or this test shows nothing"


@torch.inference_mode()
def test_output_stays_in_range_with_clamp_and_with_tanh() -> None:
    mel = 30 * torch.randn(1, 12, 6)
    tanh, clamp = trained(SHORT), trained(THIN)
    assert tanh.unclamped(mel).abs().max() > 1
    torch.testing.assert_close(tanh(mel), tanh.unclamped(mel).tanh())
    torch.testing.assert_close(clamp(mel), clamp.unclamped(mel).clamp(-1, 1))


def test_every_parameter_learns() -> None:
    model = BigVGAN(SHORT)
    model(torch.randn(2, 12, 9), torch.tensor([9, 6])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_release_file_fits_the_release_sized_model() -> None:
    manifest = json.loads((TESTS / "manifest" / "bigvgan.json").read_text())
    model = build(lambda: BigVGAN(release_bigvgan()))
    file = {key: torch.empty(entry["shape"], device="meta") for key, entry in manifest.items()}
    wanted = model.state_dict()
    folded = fold_weight_norm(file)
    assert {key: tuple(folded[key].shape) for key in wanted} == {key: tuple(value.shape) for key, value in wanted.items()}
    load_weights(model, file, unused=BigVGAN.UNUSED)  # and what is left over is known to be unused
    written = unfold_weight_norm(model.state_dict(), model.WEIGHT_NORMED)
    assert {key: value.shape for key, value in written.items()} == {
        key: value.shape for key, value in file.items() if not manifest[key].get("constant")
    }
    assert all(buffer.device.type == "cpu" for buffer in model.buffers()), "constant taps must survive a build without storage"


@torch.inference_mode()
def test_written_release_file_loads_into_the_same_vocoder() -> None:
    model = trained(SHORT)
    again = build(lambda: BigVGAN(SHORT))
    load_weights(again, unfold_weight_norm(model.state_dict(), model.WEIGHT_NORMED), unused=BigVGAN.UNUSED)
    mel = torch.randn(1, 12, 8)
    torch.testing.assert_close(again(mel), model(mel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["resblocks.2.activations.5.act.beta", "conv_post.bias"])
def test_missing_key_is_named(key: str) -> None:
    state = trained(SHORT).state_dict()
    del state[key]
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        load_weights(build(lambda: BigVGAN(SHORT)), state, unused=BigVGAN.UNUSED)
