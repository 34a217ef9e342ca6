"""CUDA graphs for a function that works in place on static buffers: recorded once per shape, then replayed with one launch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indextts.engine.graphs import own_workspace
from indextts.engine.solver_step import StepInputs

MB = 1024 * 1024
Replay = Callable[[], None]


@dataclass
class CapturedStep:
    """One graph: its buffers, how to replay it, and what panels show."""

    inputs: StepInputs
    replay: Replay
    memory_mb: float
    table: Tensor | None = None  # kept, since the graph reads it

    def describe(self) -> dict[str, Any]:
        """Samples, slots, slots of the window, whether guided, and megabytes."""
        batch, window, _ = self.inputs.x.shape
        rows, slots, _ = self.inputs.static.shape
        return {"batch": batch, "slots": slots, "window": window, "guided": rows > batch, "memory_mb": self.memory_mb}


class StepGraphs:
    """Graphs of ``step(inputs)`` per shape of the inputs; the least recently used of ``most`` is dropped.

    All graphs work in one memory pool: they never run at the same time, and what must outlive a replay lies in the buffers, outside it.
    ``record(call)`` makes the replay of a call; tests give one that needs no GPU.
    """

    def __init__(
        self,
        step: Callable[[StepInputs], None],
        device: torch.device,
        *,
        warmup_steps: int = 3,
        most: int = 64,
        record: Callable[[Replay], Replay] | None = None,
    ) -> None:
        self.step, self.device, self.warmup_steps, self.most = step, device, warmup_steps, most
        self._record = record or self._record_cuda
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None  # one for all: libraries keep a workspace per stream
        self._captured: OrderedDict[Any, CapturedStep] = OrderedDict()

    def load(self, fresh: StepInputs, table: Tensor | None = None) -> CapturedStep:
        """The graph for inputs of this shape, recorded if there is none yet, its buffers filled with ``fresh``.

        Of one step, or of one for each row of ``table``, which the graph holds on to.
        """
        key = (fresh.key, None if table is None else table.data_ptr())
        entry = self._captured.pop(key, None)
        if entry is None:
            while len(self._captured) >= self.most:
                self._captured.popitem(last=False)
            before = _reserved_mb(self.device)
            inputs = fresh.clone()
            entry = CapturedStep(inputs, self._record(lambda: self._work(inputs, table)), 0.0, table)
            entry.memory_mb = max(0.0, _reserved_mb(self.device) - before)
        self._captured[key] = entry
        entry.inputs.copy_(fresh)
        return entry

    @property
    def captured(self) -> list[dict[str, Any]]:
        """What is recorded, least recently used first; see :meth:`CapturedStep.describe`."""
        return [entry.describe() for entry in self._captured.values()]

    @property
    def memory_mb(self) -> float:
        """Megabytes of buffers and of the graphs' pool, as far as graphs that are still held caused them."""
        return sum(entry.memory_mb for entry in list(self._captured.values()))  # a copy, since panels ask from other threads

    def clear(self) -> None:
        """Drop all graphs; they are recorded again when needed."""
        if self._captured and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # a graph that still runs must not be dropped
        self._captured.clear()

    def _work(self, inputs: StepInputs, table: Tensor | None) -> None:
        if table is None:
            self.step(inputs)
            return
        for row in table:
            inputs.row.copy_(row)
            self.step(inputs)

    def _record_cuda(self, call: Replay) -> Replay:
        """Warm up on a stream of its own, since libraries allocate and choose kernels on first use, then record on it."""
        with torch.cuda.device(self.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self.device)
            if not self._captured:  # a pool ends with its last graph
                self._pool = torch.cuda.graph_pool_handle()
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                for _ in range(self.warmup_steps):
                    call()
            torch.cuda.synchronize(self.device)
            graph = torch.cuda.CUDAGraph()
            with own_workspace(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                call()
        replay: Replay = graph.replay
        return replay


def _reserved_mb(device: torch.device) -> float:
    """Memory reserved on a CUDA device without what is merely kept for later, which recording hands back."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) / MB
