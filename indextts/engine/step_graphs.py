"""CUDA graphs of a step that works in place: everything it reads and writes lies in buffers that outlive it, random numbers included.

A graph holds one step or several: between graphs the device waits for a few microseconds, and the host has its own work to do for each.
Who stops in the middle of several steps wants the generator as it was then. A graph does not say, but a generator of CUDA is a seed and
an offset, which every step advances alike; that they do is tried before such a graph is used.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indextts.engine.graphs import own_workspace

MB = 1024 * 1024
StateAfter = Callable[[int], Tensor]  # the first generator's state after so many of a graph's steps


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    memory_mb: float
    advance: int = 0  # of the first generator's offset with every step, where there are several
    replays: int = 0


class StepGraphs:
    """``run(key, step)`` captures ``step`` once per key and replays it from then on; the least recently used of ``most`` is dropped.

    All graphs share one memory pool, since none leaves a result in it and only one runs at a time.
    """

    def __init__(self, device: torch.device, warmup_steps: int = 3, most: int = 64) -> None:
        self.device = device
        self.warmup_steps = warmup_steps
        self.most = most
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._uneven: set[Hashable] = set()
        self._pool: Any = None

    def run(
        self, key: Hashable, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator], count: int = 1
    ) -> StateAfter | None:
        """Do ``step`` ``count`` times. ``state``: what it changes and depends on; ``generators``: all that it draws from.

        ``count`` and ``generators`` are the same for a key. None, and nothing was done, if ``count`` steps do not draw evenly, so that
        they have to be done one by one. Errors: ``RuntimeError`` if it cannot be captured.
        """
        if key in self._uneven:
            return None
        if key in self._captured:
            self._captured.move_to_end(key)
        else:
            while len(self._captured) >= self.most:
                self._finish_work()
                self._captured.popitem(last=False)
            captured = self._capture(step, state, generators, count)
            if captured is None:
                self._uneven.add(key)
                return None
            self._captured[key] = captured
        entry = self._captured[key]
        before = generators[0].get_state() if count > 1 else None
        entry.graph.replay()
        entry.replays += 1
        if before is not None:
            return self._between(entry, before)
        return always(generators[0].get_state())

    def replays(self) -> dict[Hashable, int]:
        """How often each captured graph was replayed, least recently used first."""
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
        self._uneven.clear()
        self._pool = None

    def _finish_work(self) -> None:
        """A graph that still runs must not be dropped."""
        torch.cuda.synchronize(self.device)

    def _between(self, entry: _Captured, before: Tensor) -> StateAfter:
        """The states within a replay of several steps that began with ``before``."""
        return lambda steps: advanced(before, steps * entry.advance, self.device)

    def _warm_up(self, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator]) -> None:
        """Make real steps and undo each."""
        for _ in range(self.warmup_steps):
            with undone(state, generators):
                step()

    def _capture(
        self, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator], count: int
    ) -> _Captured | None:
        """Record ``count`` steps; None if they draw unevenly. The state is left as it was."""
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._warm_up(step, state, generators)
            advances = even_advances(step, state, generators, count) if count > 1 else [0] * len(generators)
        current.wait_stream(side)
        if advances is None:
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # capturing does so too, and must not be mistaken for memory that the graph gave back
        reserved = torch.cuda.memory_reserved(self.device)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:  # replays then draw what steps would draw, and advance the generators as they would
            graph.register_generator_state(generator)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with own_workspace(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            for _ in range(count):
                step()
        held = max(0, torch.cuda.memory_reserved(self.device) - reserved) / MB
        if count > 1:
            with undone(state, generators):
                before = [generator.get_offset() for generator in generators]
                graph.replay()
                made = [generator.get_offset() - start for generator, start in zip(generators, before, strict=True)]
            if made != [count * advance for advance in advances]:
                self._finish_work()
                return None
        return _Captured(graph, held, advances[0])


@contextlib.contextmanager
def undone(state: Sequence[Tensor], generators: Sequence[torch.Generator]) -> Iterator[None]:
    """What the body does to ``state`` and ``generators`` is taken back."""
    before, draws = [tensor.clone() for tensor in state], [generator.get_state() for generator in generators]
    try:
        yield
    finally:  # also if there is no memory for it, since the caller goes on without graphs
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        for generator, drawn in zip(generators, draws, strict=True):
            generator.set_state(drawn)


def even_advances(step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator], count: int) -> list[int] | None:
    """By how much each of ``count`` steps advances the offset of each generator, found by trying; None if not by the same every time."""
    with undone(state, generators):
        offsets = [[generator.get_offset() for generator in generators]]
        for _ in range(count):
            step()
            offsets.append([generator.get_offset() for generator in generators])
    advances = [[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(offsets)]
    return advances[0] if all(each == advances[0] for each in advances) else None


def advanced(state: Tensor, by: int, device: torch.device) -> Tensor:
    """The state of a CUDA generator whose offset is greater by ``by``."""
    generator = torch.Generator(device)
    generator.set_state(state)
    generator.set_offset(generator.get_offset() + by)
    return generator.get_state()


def always(state: Tensor) -> StateAfter:
    """``state``, after any number of steps: of what is a single one."""
    return lambda _: state


class DrawsAfter:
    """The state of a generator after each step of a generation, as graphs of several steps let it be known."""

    def __init__(self) -> None:
        self.steps = 0
        self._parts: list[tuple[int, StateAfter]] = []  # steps before, and the states after each of those that then were made

    def note(self, count: int, after: StateAfter) -> None:
        """``count`` more steps were made."""
        self._parts.append((self.steps, after))
        self.steps += count

    def at(self, steps: int) -> Tensor:
        """The state after ``steps`` steps, 1 or more."""
        first, after = next(part for part in reversed(self._parts) if part[0] < steps)
        return after(steps - first)
