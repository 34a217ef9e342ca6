"""A profile of one warm call: where the time of host and device goes, kernel by kernel, and what held memory when."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

logger = logging.getLogger(__name__)
TOP = 40  # operations in the summary


def profile(tts: IndexTTS2, directory: str | Path, call: dict[str, Any]) -> list[Path]:
    """Profile ``tts.infer(**call)`` once after a warm-up call; ``call`` may hold ``forced_codes``. Returns the files written.

    ``trace.json`` opens in chrome://tracing or ui.perfetto.dev, ``operations.txt`` is a table of the slowest operations, and on CUDA
    ``memory.pickle`` opens at pytorch.org/memory_viz.
    """
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = tts.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    trace, summary, memory = folder / "trace.json", folder / "operations.txt", folder / "memory.pickle"

    def work(_: object) -> None:
        # On the engine's own thread, since operations are recorded on the thread that profiles.
        tts.infer_batch([call])
        if on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        with torch_profile(activities=activities, acc_events=True) as recorded:
            tts.infer_batch([call])
            if on_gpu:
                torch.cuda.synchronize(tts.device)
        if on_gpu:
            torch.cuda.memory._dump_snapshot(str(memory))
            torch.cuda.memory._record_memory_history(enabled=None)
        recorded.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        summary.write_text(recorded.key_averages().table(sort_by=order, row_limit=TOP) + "\n", encoding="utf-8")

    tts._worker.call(work)
    return [trace, summary, *([memory] if on_gpu else [])]
