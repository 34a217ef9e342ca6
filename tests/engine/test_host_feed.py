"""A decode step's stack as the CPU runs it. If this fails, laptops speak other words than GPUs."""

from __future__ import annotations

import pytest
import torch

from indextts import IndexTTS2
from indextts.engine.host_feed import HostFeed
from indextts.engine.kernels import checks

CPU = torch.device("cpu")


@pytest.mark.parametrize(("rows", "beams"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_equals_the_stack_for_all_devices(rows: int, beams: int) -> None:
    gpt = checks.small_gpt(CPU, torch.float32)
    with torch.inference_mode():
        assert checks._decoded(gpt, HostFeed(), rows, beams, heads=2) < 1e-6


def test_other_formats_take_the_stack_for_all_devices() -> None:
    gpt = checks.small_gpt(CPU, torch.bfloat16)
    with torch.inference_mode():
        assert checks._decoded(gpt, HostFeed(), 1, 2, heads=2) == 0


def test_an_engine_on_the_cpu_takes_it() -> None:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        decoder = tts._stages.decoder
        assert decoder is not None
        assert isinstance(decoder.stack, HostFeed)
