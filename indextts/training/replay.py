"""Whole training steps as CUDA graphs: forward, backward, optimiser and averaging are recorded once per shapes and then replayed.

A small network's step is hundreds of kernels that each take less time than their launch; replayed, it takes the time of the kernels. What
is recorded must not ask the device for values and must find its inputs' shapes again, so the stages draw from a few sizes.

On other devices, and where recording fails, the same function is simply called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Values = dict[str, Tensor]
_WARM_UP = 3  # calls with new shapes that run plainly; they are real steps


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    values: Values


class Replay:
    """``function(*inputs) -> values`` with the same effects, from a graph where possible; at most ``most`` graphs are kept.

    ``values`` are overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Values], device: torch.device, *, enabled: bool = True, most: int = 96) -> None:
        self._function, self._most = function, most
        self.enabled = enabled and device.type == "cuda"
        self._calls: dict[tuple[object, ...], int] = {}
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._pool: Any = None
        self._side: torch.cuda.Stream | None = None

    def __call__(self, *inputs: Tensor) -> Values:
        """One step."""
        if not self.enabled:
            return self._function(*inputs)
        key = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if key not in self._recorded:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= _WARM_UP or len(self._recorded) >= self._most or not self._record(key, inputs):
                return self._plainly(inputs)
        entry = self._recorded[key]
        for held, given in zip(entry.inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        entry.graph.replay()
        return dict(entry.values)  # callers may take things out

    def _plainly(self, inputs: tuple[Tensor, ...]) -> Values:
        """On a stream of its own, as recording needs it: gradients then belong to no stream that a graph would have to wait for."""
        if self._side is None:
            self._side = torch.cuda.Stream()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            values = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._side)
        return values

    def _record(self, key: tuple[object, ...], inputs: tuple[Tensor, ...]) -> bool:
        held = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # All graphs share one pool: each step makes its gradients anew, so none relies on what another left there.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                values = self._function(*held)
        except RuntimeError:
            logger.exception("a training step cannot be recorded; steps are launched kernel by kernel from now on (--no-replay)")
            self.enabled = False
            return False
        self._pool = graph.pool()
        self._recorded[key] = _Recorded(graph, held, values)
        logger.info("recorded step %d for shapes %s", len(self._recorded), [tuple(x.shape) for x in inputs])
        return True
