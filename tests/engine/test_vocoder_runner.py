"""The vocoder's buckets: if these fail, a voice ends wrong when graphs are on, or a graph is captured for every sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from indextts.engine import vocoder as vocoder_module
from indextts.engine.vocoder import BUCKET, VocoderRunner, activate
from indextts.models.bigvgan import BigVGAN
from tests.engine.test_pass_graphs import Pretended
from tests.engine.test_precision import random_vocoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vocoder() -> BigVGAN:
    return random_vocoder()


def mel(frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 80, frames, generator=torch.Generator().manual_seed(frames))


def graphed(vocoder: nn.Module, monkeypatch: pytest.MonkeyPatch, **options: Any) -> VocoderRunner:
    monkeypatch.setattr(vocoder_module, "GraphedCall", Pretended)
    runner = VocoderRunner(vocoder, CPU, **options)
    runner.use_graphs(1)
    return runner


def test_buckets_change_nothing_and_share_graphs(vocoder: BigVGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = graphed(vocoder, monkeypatch)
    assert isinstance(runner.graphs, Pretended)
    with torch.inference_mode():
        for frames in (1, 5, BUCKET, BUCKET + 3):
            torch.testing.assert_close(runner(mel(frames)), vocoder(mel(frames)), atol=1e-5, rtol=1e-4)
        assert {shapes[0][-1] for shapes in runner.graphs.shapes} == {BUCKET, 2 * BUCKET}
        lengths = torch.tensor([9, 4])
        torch.testing.assert_close(runner(mel(9, 2), lengths), vocoder(mel(9, 2), lengths), atol=1e-5, rtol=1e-4)
    assert runner.memory_mb == 2.0


def test_activations_go_through_the_kernel_when_there_is_one(vocoder: BigVGAN) -> None:
    used: list[torch.dtype] = []

    def kernel(x: Tensor, activation: Any, lengths: Tensor | None, dtype: torch.dtype) -> Tensor:
        used.append(dtype)
        return activate(x, activation, lengths, dtype)

    with torch.inference_mode():
        torch.testing.assert_close(VocoderRunner(vocoder, CPU, fused=kernel)(mel(3)), vocoder(mel(3)), atol=1e-5, rtol=1e-4)
    assert len(used) == 6 * 3 * 6 + 1


def test_another_vocoder_is_called_as_it_is() -> None:
    class Other(nn.Module):
        hop = 2

        def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
            assert lengths is None
            return mel[:, :1].repeat_interleave(2, dim=-1)

    runner = VocoderRunner(Other(), CPU, torch.float16, fused=activate)
    assert (runner.dtype, runner.fused) == (torch.float32, None)
    assert torch.equal(runner(mel(4)), Other()(mel(4)))
