"""Threads and the kernel's event loop: widgets are touched on the loop only, and no more often than a person can read."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

SHORTEST_INTERVAL_S = 0.5
_known: dict[str, Any] = {"loop": None, "thread": None}


def remember_loop() -> asyncio.AbstractEventLoop | None:
    """Note the event loop that runs in this thread, if one does (a kernel runs its cells in one); returns the loop in use."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _usable_loop()
    _known.update(loop=loop, thread=threading.current_thread())
    return loop


def _usable_loop() -> asyncio.AbstractEventLoop | None:
    loop = _known["loop"]
    return loop if loop is not None and loop.is_running() else None


def on_loop(function: Callable[..., object], *args: Any) -> None:
    """Run ``function(*args)`` on the kernel's event loop, from any thread; directly where there is no loop, or where we are on it.

    What ``function`` raises is logged, not raised: the thread that reports must not die of a panel's mistake.
    """
    loop = _usable_loop()
    if loop is None or threading.current_thread() is _known["thread"]:
        _guarded(function, *args)
        return
    try:
        loop.call_soon_threadsafe(_guarded, function, *args)
    except RuntimeError:  # the loop has ended since we looked: the kernel is shutting down, nobody is left to see it
        logger.debug("the event loop is closed; a callback was dropped")


def _guarded(function: Callable[..., object], *args: Any) -> None:
    try:
        function(*args)
    except (Exception, KeyboardInterrupt) as error:  # an interrupt that gets here would end the kernel's loop
        logger.warning("a panel's callback failed: %s", error or type(error).__name__, exc_info=logger.isEnabledFor(logging.DEBUG))


class Ticker:
    """Calls ``function()`` on the kernel's loop every ``interval_s`` seconds (at least 0.5) between :meth:`start` and :meth:`stop`.

    Calls never pile up: while the kernel is busy they are left out. A bound method is held weakly, so that a forgotten panel can go, and
    the ticker with it.
    """

    def __init__(self, interval_s: float, function: Callable[[], object]) -> None:
        if interval_s < SHORTEST_INTERVAL_S:
            raise ValueError(f"panels refresh at most twice a second; interval_s must be at least {SHORTEST_INTERVAL_S}, got {interval_s}")
        self.interval_s = interval_s
        self._function: Callable[[], Callable[[], object] | None]
        self._function = weakref.WeakMethod(function) if hasattr(function, "__self__") else (lambda: function)
        self._stop: threading.Event | None = None

    @property
    def running(self) -> bool:
        """Whether it ticks."""
        return self._stop is not None and not self._stop.is_set()

    def start(self) -> None:
        """Begin to tick; the first call comes after one interval. Starting twice changes nothing."""
        if self.running:
            return
        remember_loop()
        self._stop = threading.Event()
        threading.Thread(target=_tick, args=(weakref.ref(self), self._stop, self.interval_s), name="indextts-ticker", daemon=True).start()

    def stop(self) -> None:
        """No call begins after this returns, except one that is being made right now."""
        if self._stop is not None:
            self._stop.set()


def _tick(ticker: weakref.ref[Ticker], stop: threading.Event, interval_s: float) -> None:
    waiting = threading.Event()

    def call() -> None:
        waiting.clear()
        alive = ticker()
        function = None if alive is None else alive._function()
        if function is None:
            stop.set()
        elif not stop.is_set():
            function()

    while not stop.wait(interval_s):
        if ticker() is None:
            return
        if not waiting.is_set():
            waiting.set()
            on_loop(call)


class Latest:
    """Works off the latest of many requests in a thread: ``deliver(function(request))`` on the loop, at most twice a second.

    For what follows typing: requests that are overtaken are never worked on. ``function`` must not touch widgets.
    """

    def __init__(self, function: Callable[[Any], Any], deliver: Callable[[Any], object]) -> None:
        self._function, self._deliver = function, deliver
        self._wanted, self._stop = threading.Event(), threading.Event()
        self._request: Any = None
        self._thread: threading.Thread | None = None

    def submit(self, request: Any) -> None:
        """Ask for ``request``, in place of any that has not begun."""
        remember_loop()
        self._request = request
        self._wanted.set()
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._work, name="indextts-latest", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Deliver nothing from now on."""
        self._stop.set()
        self._wanted.set()

    def _work(self) -> None:
        while self._wanted.wait() and not self._stop.is_set():
            self._wanted.clear()
            try:
                on_loop(self._hand_over, self._function(self._request))
            except Exception as error:  # the next request may fare better
                logger.warning("a panel's background work failed: %s", error, exc_info=logger.isEnabledFor(logging.DEBUG))
            self._stop.wait(SHORTEST_INTERVAL_S)

    def _hand_over(self, result: Any) -> None:
        if not self._stop.is_set():
            self._deliver(result)
