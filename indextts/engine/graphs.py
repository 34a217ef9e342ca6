"""CUDA graphs: a call is recorded once per input shape and replayed, which removes the launch of every single kernel."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MB = 1024 * 1024


@contextlib.contextmanager
def own_workspace() -> Iterator[None]:
    """To be put around a capture: cuBLAS takes its workspace from the graph's own pool.

    Torch keeps one workspace per stream and lets graphs record its address. Once it is given back, by another capture or a closing
    engine, every graph that recorded it would write to memory that is no longer there.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    several: bool  # whether the function returned a tuple
    memory_mb: float


class GraphedCall:
    """``function(*inputs)`` replayed from a graph per shapes of the inputs; the least recently used of ``most`` graphs is dropped.

    The function returns a tensor or a tuple of tensors. Graphs take turns, so the inputs of all lie in the same memory, as far as it is
    large enough. ``pool``: of :func:`torch.cuda.graph_pool_handle`, for graphs that take turns in the same memory.
    """

    def __init__(self, function: Callable[..., Any], warmup_steps: int = 3, most: int = 16, pool: Any = None) -> None:
        self.function = function
        self.warmup_steps = warmup_steps
        self.most = most
        self.pool = pool
        self._captured: OrderedDict[tuple[tuple[int, ...], ...], _Captured] = OrderedDict()
        self._rooms: dict[tuple[int, torch.dtype], Tensor] = {}  # of each input, the largest so far

    def __call__(self, *inputs: Tensor) -> Any:
        """The result of ``function(*inputs)``, in tensors of its own."""
        key = tuple(tuple(x.shape) for x in inputs)
        if key in self._captured:
            self._captured.move_to_end(key)
        else:
            while len(self._captured) >= self.most:
                self._captured.popitem(last=False)
            self._captured[key] = self._capture(inputs)
        entry = self._captured[key]
        for held, given in zip(entry.inputs, inputs, strict=True):
            held.copy_(given)
        entry.graph.replay()
        results = tuple(output.clone() for output in entry.outputs)
        return results if entry.several else results[0]

    @property
    def memory_mb(self) -> float:
        """Megabytes of the graphs' private pools."""
        return sum(entry.memory_mb for entry in list(self._captured.values()))  # a copy, since panels ask from other threads

    def clear(self) -> None:
        """Drop all graphs; they are captured again when needed."""
        for entry in self._captured.values():
            torch.cuda.synchronize(entry.inputs[0].device)  # a graph that still runs must not be dropped
        self._captured.clear()
        self._rooms.clear()

    def held_inputs(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Buffers that a graph reads, filled with ``given``."""
        held = []
        with torch.inference_mode(False):  # so that they can be written inside and outside of inference mode
            for place, x in enumerate(given):
                if not x.is_contiguous():
                    held.append(x.clone())
                    continue
                room = self._rooms.get((place, x.dtype))
                if room is None or room.numel() < x.numel():
                    room = self._rooms[place, x.dtype] = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
                held.append(room[: x.numel()].view(x.shape))
                held[-1].copy_(x)
        return tuple(held)

    def _capture(self, given: tuple[Tensor, ...]) -> _Captured:
        inputs = self.held_inputs(given)
        device = inputs[0].device
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(self.warmup_steps):
                self.function(*inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # capturing does so too, and must not be mistaken for memory that the graph gave back
        before = torch.cuda.memory_reserved(device)
        graph = torch.cuda.CUDAGraph()
        with own_workspace(), torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            output = self.function(*inputs)
        several = isinstance(output, tuple)
        return _Captured(graph, inputs, output if several else (output,), several, max(0, torch.cuda.memory_reserved(device) - before) / MB)
