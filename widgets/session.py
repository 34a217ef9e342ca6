"""One engine and one history of runs, shared by all panels; its one thread does the work, and panels hear of it on the kernel's loop."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from indextts.engine.worker import Cancelled
from indextts.runs import RunHistory, render
from widgets.loop import SHORTEST_INTERVAL_S, on_loop, remember_loop
from widgets.notices import collecting

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

__all__ = ["Cancelled", "Session", "Task"]

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
IDLE = (0.0, "")


class Task:
    """Work that was handed to a :class:`Session`.

    ``state`` is ``waiting``, ``running``, ``done``, ``error`` or ``cancelled``. ``progress`` is the latest (fraction, message),
    ``notices`` what the engine warned of. Callbacks run on the kernel's loop: ``on_progress(fraction, message)`` at most twice a second,
    then one of ``on_done(result)`` and ``on_error(exception)``; a cancelled task ends with ``on_error(Cancelled)``.
    """

    def __init__(
        self,
        function: Callable[[Progress], Any],
        on_done: Callable[[Any], object] | None,
        on_error: Callable[[BaseException], object] | None,
        on_progress: Progress | None,
    ) -> None:
        self._function = function
        self._callbacks = (on_done, on_error, on_progress)
        self._cancel, self._over = threading.Event(), threading.Event()
        self._told_s = 0.0
        self.state = "waiting"
        self.progress: tuple[float, str] = (0.0, "waiting")
        self.notices: list[str] = []
        self.value: Any = None
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._over.is_set()

    def cancel(self) -> None:
        """Give it up: work that has begun ends at its next report of progress."""
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was given up (it may not have noticed yet)."""
        return self._cancel.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is over; False if ``timeout`` seconds were not enough. Interrupting the wait cancels the task."""
        try:
            return self._over.wait(timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def result(self, timeout: float | None = None) -> Any:
        """Wait, then return what it returned or raise what it raised. Errors: ``TimeoutError``, :class:`Cancelled`, the work's own."""
        if not self.wait(timeout):
            raise TimeoutError(f"not done within {timeout} s")
        if self.error is not None:
            raise self.error
        return self.value

    def _report(self, fraction: float, message: str) -> bool:
        """Take a report of the work; True if it is time to tell the panels."""
        if self._cancel.is_set():
            raise Cancelled("cancelled")
        self.progress = (float(fraction), str(message))
        now = time.monotonic()
        if now - self._told_s < SHORTEST_INTERVAL_S:
            return False
        self._told_s = now
        return True

    def _run(self, tell: Callable[[], None]) -> None:
        on_progress = self._callbacks[2]

        def report(fraction: float, message: str) -> None:
            if self._report(fraction, message):
                if on_progress is not None:
                    on_loop(on_progress, *self.progress)
                tell()

        try:
            report(0.0, "starting")
            self.state = "running"
            with collecting(self.notices):
                self.value = self._function(report)
            self.state, self.progress = "done", (1.0, "done")
        except Cancelled as error:
            self.state, self.error = "cancelled", error
        except BaseException as error:
            self.state, self.error = "error", error

    def _finish(self) -> None:
        self._over.set()
        on_done, on_error, on_progress = self._callbacks
        if self.state == "done":
            if on_progress is not None:
                on_loop(on_progress, *self.progress)
            if on_done is not None:
                on_loop(on_done, self.value)
        elif on_error is not None:
            on_loop(on_error, self.error)


class Session:
    """An engine, the history of its runs, and one thread that works through tasks in the order in which they come.

    >>> session = Session(tts)  # doctest: +SKIP
    >>> session.render(text="Hello.", spk_audio_prompt="me.wav", on_done=show)  # doctest: +SKIP
    """

    def __init__(self, tts: IndexTTS2, history: RunHistory | None = None) -> None:
        remember_loop()
        self.tts = tts
        self.history = RunHistory() if history is None else history
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._open: list[Task] = []  # waiting and running, oldest first
        self._subscribers: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def busy(self) -> bool:
        """Whether any task is running or waiting."""
        with self._lock:
            return bool(self._open)

    @property
    def waiting(self) -> int:
        """How many tasks wait behind the running one."""
        with self._lock:
            return max(0, len(self._open) - 1)

    @property
    def progress(self) -> tuple[float, str]:
        """(fraction, message) of the running task; (0, "") when idle."""
        with self._lock:
            return self._open[0].progress if self._open else IDLE

    def render(
        self,
        label: str | None = None,
        on_done: Callable[[Any], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
        on_progress: Progress | None = None,
        on_piece: Callable[[Any], object] | None = None,
        **infer_arguments: Any,
    ) -> Task:
        """Speak in the background: :func:`indextts.runs.render` into this session's history; ``on_done`` gets the ``RunRecord``.

        Returns at once. ``on_piece`` gets the sound while it is made, float32 (n,) a piece, on the loop like every callback.
        """
        arguments = dict(infer_arguments)
        if on_piece is not None:
            arguments["on_piece"] = lambda piece: on_loop(on_piece, piece)
        return self.run(
            lambda progress: render(self.tts, self.history, label, progress, **arguments),
            on_done=on_done,
            on_error=on_error,
            on_progress=on_progress,
        )

    def run(
        self,
        function: Callable[[Progress], Any],
        on_done: Callable[[Any], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
        on_progress: Progress | None = None,
    ) -> Task:
        """Run ``function(progress)`` in the background and return at once. Calling ``progress(fraction, message)`` in it notices
        cancellation. It may use ``indextts.runs.render``; waiting in it for another task of this session would never end.

        Errors: ``RuntimeError`` if the session is closed.
        """
        remember_loop()
        task = Task(function, on_done, on_error, on_progress)
        with self._lock:
            if self._closed:
                raise RuntimeError("this session is closed; make a new one")
            self._open.append(task)
            self._tasks.put(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="indextts-session", daemon=True)
                self._thread.start()
        self._tell()
        return task

    def cancel(self) -> None:
        """Give up the running task and all that wait."""
        with self._lock:
            tasks = list(self._open)
        for task in tasks:
            task.cancel()

    def close(self, wait_s: float = 30.0) -> None:
        """Cancel everything, end the thread (waiting at most ``wait_s`` seconds for it) and forget the subscribers.

        The engine stays open: it belongs to whoever made it.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
        self.cancel()
        self._tasks.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait_s)
            if thread.is_alive():
                logger.warning("work in progress did not notice within %.0f s that the session was closed", wait_s)
        with self._lock:
            self._subscribers.clear()

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback()`` on the kernel's loop when work begins, ends or (at most twice a second) advances; returns the way out."""
        with self._lock:
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._subscribers:
                    self._subscribers.remove(callback)

        return unsubscribe

    def _tell(self) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for callback in subscribers:
            on_loop(callback)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task._run(self._tell)
            with self._lock:
                self._open.remove(task)
            task._finish()
            self._tell()
            del task  # its result must not outlive it while we wait
