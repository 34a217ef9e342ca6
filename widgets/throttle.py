"""Changes that come in bursts, shown at most twice a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from widgets.loop import SHORTEST_INTERVAL_S, Ticker, on_loop

__all__ = ["Throttle"]


class Throttle:
    """``call()``, from any thread, runs ``function()`` on the kernel's loop: at once, or a little later if it has just run.

    However many calls come, it runs at most twice a second, and always once after the last of them.
    """

    def __init__(self, function: Callable[[], object], interval_s: float = SHORTEST_INTERVAL_S) -> None:
        self._function, self._interval_s = function, interval_s
        self._last_s = -interval_s
        self._stale = self._stopped = False
        self._ticker = Ticker(interval_s, self._catch_up)

    def call(self) -> None:
        """Something changed."""
        on_loop(self._changed)

    def stop(self) -> None:
        """Run no more."""
        self._stopped = True
        self._ticker.stop()

    def _changed(self) -> None:
        if self._stopped:
            return
        if time.monotonic() - self._last_s >= self._interval_s:
            self._run()
        else:
            self._stale = True
            self._ticker.start()

    def _catch_up(self) -> None:
        if self._stale and not self._stopped:
            self._run()
        else:
            self._ticker.stop()

    def _run(self) -> None:
        self._stale, self._last_s = False, time.monotonic()
        self._function()
