"""CUDA graphs of a step that works in place: everything it reads and writes lies in buffers that outlive it, random numbers included."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indextts.engine.graphs import own_workspace

MB = 1024 * 1024


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    memory_mb: float
    replays: int = 0


class StepGraphs:
    """``run(key, step)`` captures ``step`` once per key and replays it from then on; the least recently used of ``most`` is dropped.

    All graphs share one memory pool, since none leaves a result in it and only one runs at a time.
    """

    def __init__(self, device: torch.device, warmup_steps: int = 3, most: int = 32) -> None:
        self.device = device
        self.warmup_steps = warmup_steps
        self.most = most
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._pool: Any = None

    def run(self, key: Hashable, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        """Do ``step`` once. ``state``: what it changes and depends on; ``generators``: all that it draws from, the same for a key.

        Errors: ``RuntimeError`` if it cannot be captured.
        """
        if key in self._captured:
            self._captured.move_to_end(key)
        else:
            while len(self._captured) >= self.most:
                self._finish_work()
                self._captured.popitem(last=False)
            self._captured[key] = self._capture(step, state, generators)
        entry = self._captured[key]
        entry.graph.replay()
        entry.replays += 1

    def replays(self) -> dict[Hashable, int]:
        """How often each captured step was replayed, least recently used first."""
        return {key: entry.replays for key, entry in self._captured.items()}

    @property
    def memory_mb(self) -> float:
        """Megabytes of the graphs' pool."""
        return sum(entry.memory_mb for entry in list(self._captured.values()))  # a copy, since panels ask from other threads

    def clear(self) -> None:
        """Drop all graphs; they are captured again when needed."""
        if self._captured:
            self._finish_work()
        self._captured.clear()
        self._pool = None

    def _finish_work(self) -> None:
        """A graph that still runs must not be dropped."""
        torch.cuda.synchronize(self.device)

    def _warm_up(self, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        """Make real steps and undo each."""
        before, draws = [tensor.clone() for tensor in state], [generator.get_state() for generator in generators]
        for _ in range(self.warmup_steps):
            try:
                step()
            finally:  # also if there is no memory for it, since the caller goes on without graphs
                for tensor, value in zip(state, before, strict=True):
                    tensor.copy_(value)
                for generator, drawn in zip(generators, draws, strict=True):
                    generator.set_state(drawn)

    def _capture(self, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator]) -> _Captured:
        """Record one step. The state is left as it was."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._warm_up(step, state, generators)
        current.wait_stream(side)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # capturing does so too, and must not be mistaken for memory that the graph gave back
        reserved = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:  # replays then draw what steps would draw, and advance the generators as they would
            graph.register_generator_state(generator)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with own_workspace(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        return _Captured(graph, max(0, torch.cuda.memory_reserved(self.device) - reserved) / MB)
