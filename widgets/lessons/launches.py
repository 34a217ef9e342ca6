"""Lesson 05: how many operations a decode step is, and what starting an operation costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from widgets.lessons.engine import SENTENCE, quiet_limits
from widgets.lessons.measure import timed

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

# They make tensors without running a kernel.
_NO_KERNEL = {"aten::empty", "aten::empty_like", "aten::_unsafe_view", "aten::new_empty", "aten::empty_strided", "aten::promote_types"}


class OperationCount(TorchDispatchMode):
    """Counts torch's operations inside a ``with`` block; views, which only describe memory in another way, are left out.

    On a GPU each of them is at least one kernel that the host has to launch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Operations so far."""
        return sum(self.names.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        is_view = any(argument.alias_info is not None and not argument.alias_info.is_write for argument in schema.arguments)
        if not is_view and schema.name not in _NO_KERNEL:
            self.names[schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def count_operations(call: Callable[[], object]) -> OperationCount:
    """Run ``call`` and count its operations."""
    with torch.no_grad(), OperationCount() as counted:
        call()
    return counted


def decode_step_operations(context: int = 200) -> OperationCount:
    """Operations of one plain decode step of a GPT with the release's layers. It is made narrow, which changes no count, only the time."""
    from indextts.models.gpt import UnifiedVoice
    from indextts.models.gpt2 import KVCache
    from indextts.release.sizes import release_config, small_config

    config = replace(small_config().config.gpt, layers=release_config().config.gpt.layers)
    gpt = UnifiedVoice(config).eval()
    cache = KVCache()
    shape = (1, config.heads, context, config.model_dim // config.heads)
    cache.layers = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.layers)]
    code = torch.zeros(1, dtype=torch.long)
    return count_operations(lambda: gpt.decode_step(code, 1, cache, None))


def step_ms_by_width(widths: list[int], layers: int = 4, context: int = 64, runs: int = 15) -> list[float]:
    """Milliseconds of a decode step of small GPT stacks of these widths, on the GPU if there is one.

    Narrow ones compute next to nothing: what they still take is the cost of starting operations.
    """
    from indextts.models.gpt2 import GPT2Stack, KVCache

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for width in widths:
        torch.manual_seed(0)
        stack = GPT2Stack(width, layers, heads=4).to(device).eval()
        past = [(torch.randn(1, 4, context, width // 4, device=device), torch.randn(1, 4, context, width // 4, device=device))] * layers
        x = torch.randn(1, 1, width, device=device)

        def step(stack: GPT2Stack = stack, past: list[Any] = past, x: torch.Tensor = x) -> None:
            cache = KVCache()
            cache.layers = list(past)
            stack(x, None, cache)

        with torch.inference_mode():
            found.append(1e3 * timed(step, runs, warmup=3).best)
    return found


def stack_operations(layers: int = 4) -> int:
    """Operations of a step of :func:`step_ms_by_width`."""
    from indextts.models.gpt2 import GPT2Stack, KVCache

    stack = GPT2Stack(32, layers, heads=4).eval()
    cache = KVCache()
    cache.layers = [(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))] * layers
    return count_operations(lambda: stack(torch.zeros(1, 1, 32), None, cache)).total


def gpt_ms_a_code(tts: IndexTTS2, codes: int = 100, runs: int = 2) -> float:
    """Milliseconds of the GPT stage for each of ``codes`` forced codes, warm, in the settings in force."""
    arguments = {"spk_audio_prompt": tts.default_voice(), "text": SENTENCE, "seed": 1}
    times = []
    with quiet_limits(tts):
        for _ in range(runs + 1):
            tts.infer_forced(codes, **arguments)
            times.append(tts.last_gpt_time)
    return 1e3 * min(times[1:]) / codes


def paths_ms(tts: IndexTTS2, codes: int = 100) -> dict[str, float]:
    """GPT milliseconds a code: plain path, static cache without graphs, and with them where the device can capture."""
    before, found = tts.use_accel, {}
    tts.use_accel = False
    found["plain path"] = gpt_ms_a_code(tts, codes)
    tts.use_accel = True
    tts.disable_cuda_graphs()
    found["static cache"] = gpt_ms_a_code(tts, codes)
    if tts.enable_cuda_graphs():
        found["static cache, one graph a step"] = gpt_ms_a_code(tts, codes)
    tts.use_accel = before
    return found
