"""Lesson 06: what torch.compile takes to start, what it gives, and when that is paid back."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from widgets.lessons.launches import count_operations
from widgets.lessons.measure import timed


@dataclass(frozen=True)
class CompileResult:
    """A function before and after compilation, seconds; ``reason`` says why there is no compiled figure, if there is none."""

    operations: int
    eager_s: float
    compiled_s: float | None
    startup_s: float | None
    largest_difference: float | None
    reason: str = ""

    @property
    def words(self) -> str:
        """The result as a sentence."""
        if self.compiled_s is None or self.startup_s is None:
            return f"**This machine cannot compile**: {self.reason}"
        calls = calls_to_pay(self.startup_s, self.eager_s, self.compiled_s)
        paid = f"paid back after {calls:.0f} calls" if calls < float("inf") else "never paid back"
        return (
            f"Start-up {self.startup_s:.1f} s; a call {1e3 * self.eager_s:.2f} ms eager, {1e3 * self.compiled_s:.2f} ms compiled: {paid}."
        )


def gated_block(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise, modulate, gate: what flow matching does around its matrix products, (B, T, 2 D) to (B, T, D)."""
    x = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
    a, b = x.chunk(2, dim=-1)
    return torch.tanh(a) * torch.sigmoid(b) + F.gelu(a, approximate="tanh")


def compile_block(frames: int = 800, width: int = 512) -> CompileResult:
    """Compile :func:`gated_block` for this machine from scratch, compare times and results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    x, scale, shift = (torch.randn(1, n, 2 * width, device=device, generator=generator) for n in (frames, 1, 1))
    with torch.inference_mode():
        operations = count_operations(lambda: gated_block(x, scale, shift)).total
        eager = timed(lambda: gated_block(x, scale, shift), runs=9, warmup=2)
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would remark on a machine without a GPU
        try:
            # An empty cache, or the second run of this lesson would find the first one's work.
            with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", TORCHINDUCTOR_CACHE_DIR=folder):
                compiled = torch.compile(gated_block, dynamic=False)
                begin = time.perf_counter()
                result = compiled(x, scale, shift)
                startup = time.perf_counter() - begin
                fast = timed(lambda: compiled(x, scale, shift), runs=9, warmup=2)
        except Exception as error:  # no C++ compiler, no Triton: many ways, all of which leave the eager figure
            logging.getLogger(__name__).debug("torch.compile does not work here", exc_info=True)
            return CompileResult(operations, eager.median, None, None, None, f"{type(error).__name__}: is a C++ compiler installed?")
        difference = float((result - gated_block(x, scale, shift)).abs().max())
    return CompileResult(operations, eager.median, fast.median, startup, difference)


def traced(frames: int = 800, width: int = 512) -> Counter[str]:
    """Operations that ``torch.compile`` traces of :func:`gated_block`, by name; nothing is generated."""
    found: Counter[str] = Counter()

    def look(graph: Any, _: Any) -> Any:
        found.update(_operation(node) for node in graph.graph.nodes if node.op.startswith("call_"))
        return graph.forward

    with torch.inference_mode():
        torch.compile(gated_block, backend=look, dynamic=False)(torch.zeros(1, frames, 2 * width), torch.zeros(1, 1), torch.zeros(1, 1))
    return found


def _operation(node: Any) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__.strip("_")


def traffic_mb(frames: int = 800, width: int = 512) -> tuple[float, float]:
    """Megabytes that :func:`gated_block` reads and writes in float32: each operation alone, and merged into one pass."""
    full, half = frames * 2 * width * 4 / 2**20, frames * width * 4 / 2**20
    # norm, times scale, plus shift: full in, full out; tanh, sigmoid, gelu: half in, half out; product and sum: two halves in, one out
    return 3 * 2 * full + 3 * 2 * half + 2 * 3 * half, full + half


def calls_to_pay(startup_s: float, before_s: float, after_s: float) -> float:
    """Calls after which the start-up is paid back; infinite if nothing was gained."""
    gain = before_s - after_s
    return startup_s / gain if gain > 0 else float("inf")


def saved_s(calls: float, startup_s: float, before_s: float, after_s: float) -> float:
    """Seconds saved after so many calls, the start-up included; negative until it is paid back."""
    return calls * (before_s - after_s) - startup_s
