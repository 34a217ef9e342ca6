"""A pool's worker in this process: one engine, the default, which needs no other package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from indextts.parallel_host import EngineBrokenError, EngineHost
from indextts.parallel_jobs import Clip, Outcome, Ticket, WorkerDiedError
from indextts.parallel_lanes import Watch


class LocalWorker:
    """Runs an :class:`EngineHost` in the lane's own thread. An engine that was given ready-made stays open at the end."""

    def __init__(self, engine: Any, options: dict[str, Any], warm_up: bool) -> None:
        self._engine, self._options, self._warm_up = engine, options, warm_up
        self._given = engine is not None and not callable(engine)
        self._host: _WatchedHost | None = None

    def start(self) -> dict[str, Any]:
        """Make the engine."""
        self._host = _WatchedHost(self._make, None, self._warm_up)
        return self._host.start()

    def _make(self) -> Any:
        if self._given:
            return self._engine
        if self._engine is not None:
            return self._engine()
        from indextts.pipeline import IndexTTS2

        return IndexTTS2(**self._options)

    def run(self, batch: Sequence[Ticket], watch: Watch) -> list[Outcome]:
        """Render a batch here."""
        host = self._ready(watch)
        clips = clips_of(batch)
        try:
            return host.run([t.item for t in batch], [c.key for c in clips], [c.rate for c in clips], *(c.samples for c in clips))
        except EngineBrokenError as error:
            raise WorkerDiedError(str(error)) from error

    def stream(self, ticket: Ticket, watch: Watch) -> Iterator[np.ndarray | Outcome]:
        """Render piece by piece here."""
        host = self._ready(watch)
        clips = clips_of([ticket])
        try:
            yield from host.stream(ticket.item, [c.key for c in clips], [c.rate for c in clips], *(c.samples for c in clips))
        except EngineBrokenError as error:
            raise WorkerDiedError(str(error)) from error

    def check(self) -> dict[str, Any]:
        """Memory of this process."""
        return self._host.status() if self._host is not None else {}

    def stop(self) -> None:
        """Close the engine if it was made here."""
        if self._host is not None and not self._given:
            self._host.close()
        self._host = None

    def _ready(self, watch: Watch) -> _WatchedHost:
        if self._host is None:
            raise WorkerDiedError("the engine of this process is closed")
        self._host.watch = watch
        return self._host


class _WatchedHost(EngineHost):
    """Reports every step to the lane instead of being asked."""

    watch: Watch | None = None

    def _report(self, fraction: float, message: str) -> None:
        if self.watch is not None and self.watch({"progress": (fraction, message)}):
            self.cancel()
        super()._report(fraction, message)


def clips_of(batch: Sequence[Ticket]) -> list[Clip]:
    """The clips of a batch, each once."""
    return list({clip.key: clip for ticket in batch for clip in ticket.clips.values()}.values())
