"""One thread per engine: it alone touches the device, and calls from any number of threads queue up for it.

Progress and streamed items travel back to the caller's thread, so callbacks run where they were given and an exception in one of
them (or Ctrl-C, or a generator that is closed early) cancels the work instead of being lost in a thread.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

ProgressCallback = Callable[[float, str], None]


class Cancelled(Exception):  # noqa: N818  (an outcome that was asked for, not an error)
    """The caller gave the work up."""


class Job:
    """One piece of work, seen from inside: report progress, hand over results, notice cancellation."""

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self.function = function
        self.events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._cancel = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop at its next check."""
        self._cancel.set()

    def check(self) -> None:
        """Raise :class:`Cancelled` if the caller has given up; cheap enough for every decode step."""
        if self._cancel.is_set():
            raise Cancelled("cancelled by the caller")

    def progress(self, fraction: float, message: str) -> None:
        """Report how far the work is (0 to 1)."""
        self.check()
        self.events.put(("progress", (fraction, message)))

    def put(self, item: Any) -> None:
        """Hand over one streamed result."""
        self.check()
        self.events.put(("item", item))

    def run(self) -> None:
        """Execute (on the engine's thread)."""
        try:
            self.check()
            self.events.put(("done", self.function(self)))
        except BaseException as error:
            self.events.put(("error", error))


class EngineWorker:
    """A daemon thread with a queue of jobs; it ends with :meth:`close` or when its owner is garbage-collected."""

    def __init__(self, owner: object, name: str = "indextts-engine") -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        self._closed = False
        weakref.finalize(owner, self._jobs.put, None)

    def call(self, function: Callable[[Job], Any], progress: ProgressCallback | None = None) -> Any:
        """Run ``function(job)`` on the engine's thread and return its result; progress callbacks run here."""
        result = None
        with contextlib.closing(self._events(function)) as events:
            for kind, value in events:
                if kind == "progress" and progress is not None:
                    progress(*value)
                elif kind == "done":
                    result = value
        return result

    def stream(self, function: Callable[[Job], Any], progress: ProgressCallback | None = None) -> Iterator[Any]:
        """Yield what ``function(job)`` hands over with ``job.put``, as it comes."""
        with contextlib.closing(self._events(function)) as events:
            for kind, value in events:
                if kind == "progress" and progress is not None:
                    progress(*value)
                elif kind == "item":
                    yield value

    def close(self) -> None:
        """Finish the queued jobs and end the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _events(self, function: Callable[[Job], Any]) -> Generator[tuple[str, Any], None, None]:
        if self._closed:
            raise RuntimeError("this engine is closed; make a new IndexTTS2")
        job = Job(function)
        if threading.current_thread() is self._thread:
            job.run()  # a call from within a job: waiting for ourselves would never end
        else:
            self._jobs.put(job)
        finished = False
        try:
            while not finished:
                kind, value = job.events.get()
                finished = kind in ("done", "error")
                if kind == "error":
                    raise value
                yield kind, value
        finally:
            if not finished:
                job.cancel()


def _serve(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # what the job holds must not outlive it while the thread waits for the next
