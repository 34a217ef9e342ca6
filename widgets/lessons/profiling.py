"""Lesson 11: a profile of one call, by operation and by stage."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity

from widgets.lessons.engine import SEED, SENTENCE, length_limit, quiet_limits

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2


@dataclass(frozen=True)
class Profiled:
    """Self time in milliseconds and calls by operation, slowest first; ``total_ms`` of all operations, ``wall_ms`` of the call.

    ``device``: where the time was measured, ``cuda`` or ``cpu``.
    """

    device: str
    self_ms: dict[str, float]
    calls: dict[str, int]
    total_ms: float
    wall_ms: float

    def top(self, count: int = 8) -> list[dict[str, Any]]:
        """The slowest operations as table rows."""
        return [
            {"operation": name, "self time (ms)": ms, "calls": self.calls[name], "us a call": 1e3 * ms / self.calls[name]}
            for name, ms in list(self.self_ms.items())[:count]
        ]


def profile_call(tts: IndexTTS2, text: str = SENTENCE, **arguments: Any) -> Profiled:
    """Profile one warm ``infer`` of the engine, with a fixed seed.

    The profiler records the thread that starts it, and the engine works in a thread of its own; so it is started in that one.
    """
    request = {"spk_audio_prompt": tts.default_voice(), "text": text, "seed": SEED, **length_limit(tts, text), **arguments}
    on_gpu = tts.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def work(_: object) -> Any:
        tts.infer(**request)
        with torch.profiler.profile(activities=activities, acc_events=True) as recorded:
            tts.infer(**request)
            if on_gpu:
                torch.cuda.synchronize(tts.device)
        return recorded.key_averages()

    _prepare()
    with quiet_limits(tts, "max_mel_tokens" in arguments):
        averages = tts._worker.call(work)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = sorted(((row.key, getattr(row, key) / 1e3, row.count) for row in averages), key=lambda entry: -entry[1])
    found = [entry for entry in found if entry[1] > 0]
    return Profiled(
        device=tts.device.type,
        self_ms={name: ms for name, ms, _ in found},
        calls={name: count for name, _, count in found},
        total_ms=sum(ms for _, ms, _ in found),
        wall_ms=1e3 * tts.last_telemetry.total_s,
    )


def _prepare() -> None:
    """Torch's profiler complains on stderr if its first use is not in the main thread, and about a missing GPU."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], acc_events=True):
        pass


def families(profiled: Profiled) -> dict[str, float]:
    """Percent of the self time by kind of operation."""
    kinds = {
        "matrix products": ("mm", "linear", "matmul", "gemm"),
        "convolutions": ("conv",),
        "attention": ("attention", "flash"),
        "norms": ("norm",),
        "copies and views": ("copy", "cat", "clone", "contiguous", "index", "select", "slice", "view", "pad", "stack", "fill", "empty"),
    }
    sums: dict[str, float] = {}
    for name, ms in profiled.self_ms.items():
        kind = next((kind for kind, words in kinds.items() if any(word in name.lower() for word in words)), "all else")
        sums[kind] = sums.get(kind, 0.0) + 100 * ms / profiled.total_ms
    return dict(sorted(sums.items(), key=lambda entry: -entry[1]))
