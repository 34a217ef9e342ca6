"""Warnings and log lines of the engine become text in a panel instead of output from a thread."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_collected = threading.local()
_lock = threading.Lock()


@contextlib.contextmanager
def collecting(notices: list[str]) -> Iterator[None]:
    """While the body runs, what this thread would warn or log from ``indextts`` goes to ``notices``, each text once.

    Other threads keep their usual output.
    """
    _install()
    before = getattr(_collected, "notices", None)
    _collected.notices = notices
    try:
        yield
    finally:
        _collected.notices = before


def _note(text: str) -> bool:
    notices: list[str] | None = getattr(_collected, "notices", None)
    if notices is None:
        return False
    if text not in notices:
        notices.append(text)
    return True


class _Collector(logging.Handler):
    """Takes a collecting thread's records; leaves the others to whoever would have had them."""

    def emit(self, record: logging.LogRecord) -> None:
        if _note(record.getMessage()) or logging.getLogger().handlers or logging.lastResort is None:
            return
        if record.levelno >= logging.lastResort.level:  # without this handler Python would have used the last resort
            logging.lastResort.handle(record)


def _install() -> None:
    with _lock:
        engine_log = logging.getLogger("indextts")
        if not any(isinstance(handler, _Collector) for handler in engine_log.handlers):
            engine_log.addHandler(_Collector(logging.WARNING))
        shown = warnings.showwarning
        if not getattr(shown, "collects_notices", False):

            def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
                if not _note(str(message)):
                    shown(message, category, filename, lineno, file, line)

            show.collects_notices = True  # type: ignore[attr-defined]
            warnings.showwarning = show
            # Once a run, not once a session; appended, so that the user's own filters come first.
            warnings.filterwarnings("always", module=r"indextts\.", append=True)
