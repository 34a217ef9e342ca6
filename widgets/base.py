"""What all panels share: life cycle, errors in words, the look."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as W

from widgets.loop import SHORTEST_INTERVAL_S, Ticker, on_loop, remember_loop
from widgets.session import Session

__all__ = ["CSS", "PALETTE", "SHORTEST_INTERVAL_S", "Panel", "Ticker", "group", "on_loop", "style_sheet", "words"]

# One colour a meaning, each at least 3:1 against white and against #111, told apart by the colour-blind too; text always stands next to it.
PALETTE = {
    "gpt": "#3b7dd8",
    "s2mel": "#d9730d",
    "bigvgan": "#1a936f",
    "other": "#7a7f87",
    "accent": "#3b7dd8",
    "good": "#1a936f",
    "warning": "#c07a00",
    "error": "#d64545",
    "limit": "#d64545",
    "muted": "#7a7f87",
    "first": "#3b7dd8",
    "second": "#d9730d",
    "third": "#9b5de5",
}

_HERE = Path(__file__).parent
CSS = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("panels.css", "instruments.css"))


class _Look(anywidget.AnyWidget):
    """Nothing to see: the style sheet, and the guard that keeps a notebook's one-key shortcuts out of the panels."""

    _esm = (_HERE / "keys.js").read_text(encoding="utf-8") + "\nexport default { render() {} };\n"
    _css = CSS


def style_sheet() -> anywidget.AnyWidget:
    """The panels' style sheet as a widget; every panel brings its own copy, so that each can be shown alone."""
    return _Look(layout={"display": "none"})


def words(error: BaseException) -> str:
    """An exception as a sentence for a person: what it says, or what kind it is."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = text.strip() or type(error).__name__
    if re.match(r"[a-z]+ ", text):  # a word, not the name of a file or an argument
        text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def group(heading: str, *children: W.Widget) -> W.VBox:
    """Children under a small heading."""
    label = W.HTML(f'<div class="itl-heading" role="heading" aria-level="4">{html.escape(heading)}</div>')
    box = W.VBox([label, *children])
    box.add_class("itl-group")
    return box


class Panel(W.VBox):
    """A view of one session. Showing it again, also after a page reload with a living kernel, shows its present state.

    Subclasses call :meth:`set_content` once, :meth:`own` for whatever must end with the panel, and set ``title``.
    """

    title = "Panel"
    _closed = True  # until it is built: a panel that could not be must not be torn down

    def __init__(self, session: Session, **layout: Any) -> None:
        remember_loop()
        super().__init__(**layout)
        self.session = session
        self._owned: list[Callable[[], object]] = []
        self._closed = False
        self._error = W.HTML("")
        self._error.add_class("itl-error-slot")
        self._style = style_sheet()
        self.add_class("itl-panel")
        self.set_content()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def error_text(self) -> str:
        """The error on display, as plain text; empty if there is none."""
        return getattr(self, "_error_text", "")

    def set_content(self, *children: W.Widget) -> None:
        """The panel's widgets, below its place for errors."""
        self.children = (self._style, self._error, *children)

    def show_error(self, error: str | BaseException) -> None:
        """Say in the panel what went wrong, until :meth:`clear_error`."""
        self._error_text = words(error) if isinstance(error, BaseException) else error
        self._error.value = f'<div class="itl-error" role="alert"><b>Error.</b> {html.escape(self._error_text)}</div>' if error else ""

    def clear_error(self) -> None:
        """Take the error away."""
        if self.error_text:
            self._error_text = ""
            self._error.value = ""

    def own(self, what: Any) -> Any:
        """End ``what`` with the panel: a function to call (an unsubscribe), or a thing with ``stop`` or ``close``. Returns it."""
        end = getattr(what, "stop", None) or getattr(what, "close", None) or what
        if not callable(end):
            raise TypeError(f"nothing to call at the end of {what!r}")
        self._owned.append(end)
        return what

    def every(self, interval_s: float, function: Callable[[], object]) -> Ticker:
        """A running :class:`Ticker` that ends with the panel."""
        ticker: Ticker = self.own(Ticker(interval_s, function))
        ticker.start()
        return ticker

    def close(self) -> None:
        """Stop timers, end subscriptions, and close the panel and all widgets in it. The session stays open."""
        if self._closed:
            return
        self._closed = True
        for end in reversed(self._owned):
            end()
        self._owned.clear()
        for part in _parts(self):
            if part is not self:
                part.close()
        super().close()


def _parts(panel: W.Widget) -> list[W.Widget]:
    """All widgets of a panel, those that are not on display included: its children and whatever its parts hold, with their looks."""
    found: dict[int, W.Widget] = {}
    waiting: list[Any] = [panel]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, (list, tuple)):
            waiting += thing
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, W.Widget) and id(thing) not in found:
            found[id(thing)] = thing
            held = [value for name, value in vars(thing).items() if not name.startswith("__")]
            waiting += [getattr(thing, name, None) for name in ("children", "layout", "style")] + held
    return list(found.values())
