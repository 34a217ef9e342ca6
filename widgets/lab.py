"""All panels in one place: tabs over one engine."""

from __future__ import annotations

import html
import importlib.util
from typing import TYPE_CHECKING, Any

import ipywidgets as W

import widgets
from widgets.base import Panel
from widgets.cells import after_cells
from widgets.session import Session

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2
    from indextts.runs import RunHistory

PANELS = ("SynthesisPanel", "SwitchesPanel", "TimingPanel", "MemoryPanel", "ListeningPanel", "ModelCardPanel", "WorkersPanel")


class Lab(Panel):
    """Tabs of all panels over one session; ``lab.panels`` holds them by class name. :meth:`close` ends them and the session.

    The engine stays open. ``panels`` chooses which to show, in which order.

    >>> Lab(tts)  # doctest: +SKIP
    """

    title = "IndexTTS2 lab"

    def __init__(self, tts: IndexTTS2, history: RunHistory | None = None, panels: tuple[str, ...] = PANELS) -> None:
        unknown = set(panels) - set(PANELS)
        if unknown:
            raise ValueError(f"there is no panel {', '.join(sorted(unknown))}; there are {', '.join(PANELS)}")
        super().__init__(Session(tts, history))
        self.panels: dict[str, Panel] = {name: getattr(widgets, name)(self.session) for name in panels if _present(name)}
        self.header = W.HTML("")
        self.tabs = W.Tab(list(self.panels.values()))
        self.tabs.add_class("itl-tabs")
        for index, panel in enumerate(self.panels.values()):
            self.tabs.set_title(index, panel.title)
        self.set_content(self.header, self.tabs)
        self.own(self.session.subscribe(self.refresh))
        self.own(after_cells(self.refresh))
        self.refresh()

    def refresh(self) -> None:
        """Show the engine as it is now: its name, device and precision, and what it is doing."""
        self.header.value = header(self.session)

    def close(self) -> None:
        """Close all panels and the session; the engine stays open."""
        if self.closed:
            return
        for panel in self.panels.values():
            panel.close()
        self.session.close()
        super().close()


def header(session: Session) -> str:
    """The line above the tabs, as HTML."""
    tts: Any = session.tts
    facts = [str(tts.device), str(tts.precision)]
    if session.busy:
        waiting = f", {session.waiting} waiting" if session.waiting else ""
        state = f"working, {session.progress[0]:.0%}{waiting}"
    else:
        state = "idle"
    name = html.escape(str(tts.name))
    rest = " · ".join(html.escape(fact) for fact in facts)
    return f'<div class="itl-header"><b>{name}</b><span>{rest}</span><span role="status">{state}</span></div>'


def _present(name: str) -> bool:
    """Whether a panel's module is part of this installation; one that is there but broken is an error, not an absence."""
    return importlib.util.find_spec(f"widgets.{widgets._HOMES[name]}") is not None
