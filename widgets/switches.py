"""The optimisation switches of the loaded engine: turn them, see why one cannot be turned here, and what a change costs."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as W

from indextts.switches import (
    Switch,
    apply_recommended,
    available_switches,
    captured,
    describe_device,
    set_switch,
)
from widgets.base import Panel, group
from widgets.cells import after_cells
from widgets.choice import Choice
from widgets.session import Cancelled, Session

__all__ = ["SwitchesPanel"]


class _Row(W.VBox):
    """One switch: its control, and in words what it does, what a change costs, and what cannot be had."""

    def __init__(self, switch: Switch, on_change: Any) -> None:
        self.name, self.title = switch.name, switch.label
        self._values = {str(choice.value): choice.value for choice in switch.choices}
        self._on_change = on_change
        self._quiet = False
        self.control: Choice | W.BoundedIntText
        if switch.choices:
            options = [(choice.label, str(choice.value), choice.reason or None) for choice in switch.choices]
            self.control = Choice(options, str(switch.value))
        else:
            self.control = W.BoundedIntText(switch.value, min=switch.low, max=switch.high, continuous_update=False)
            self.control.add_class("itl-short")
        self.label = W.HTML()
        self.words = W.HTML()
        head = W.HBox([self.label, self.control])
        head.add_class("itl-switch-head")
        super().__init__([head, self.words])
        self.add_class("itl-switch")
        self.control.observe(self._changed, "value")
        self.show(switch)

    @property
    def value(self) -> Any:
        """What the control says."""
        return self._values.get(self.control.value, self.control.value)

    def show(self, switch: Switch) -> None:
        """Show a switch's present state without turning it."""
        self._quiet = True
        try:
            self.control.value = str(switch.value) if switch.choices else switch.value
        finally:
            self._quiet = False
        best = switch.recommended
        label = next((choice.label for choice in switch.choices if choice.value == best), best)
        state = ""
        if best is not None:
            state = "as recommended" if best == switch.value else f"recommended: {label}"
        elif switch.default:
            state = "unless a call says otherwise"
        self.label.value = f"<b>{html.escape(switch.label)}</b><br>{_hint(state)}" if state else f"<b>{html.escape(switch.label)}</b>"
        reason = f"<br><b>Not here.</b> {html.escape(switch.reason)}" if switch.reason else ""
        self.words.value = _hint(f"{html.escape(switch.what)} <i>A change:</i> {html.escape(switch.cost)}{reason}", escape=False)

    def lock(self, locked: bool) -> None:
        """Take no changes for the time being. Options that are impossible stay disabled."""
        if isinstance(self.control, Choice):
            for key, button in self.control._buttons.items():
                button.disabled = locked or key in self.control.reasons
        else:
            self.control.disabled = locked

    def _changed(self, _: Any) -> None:
        if not self._quiet:
            self._on_change(self.name, self.value)


class SwitchesPanel(Panel):
    """Precision, attention, graphs, compile, caches, beams and batch of the loaded engine; changes run in the background."""

    title = "Switches"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        switches = available_switches(session.tts)
        self.rows = {switch.name: _Row(switch, self.turn) for switch in switches}
        self.best = W.Button(description="Use what is recommended", icon="magic")
        self.best.add_class("itl-wide")
        self.best.on_click(lambda _: self.use_recommended())
        self.status = W.HTML()
        self.status.add_class("itl-say")
        self.captured = W.HTML()
        device = W.HTML(f"This engine runs on <b>{html.escape(describe_device(session.tts))}</b>.")
        engine = [self.rows[s.name] for s in switches if s.choices and not s.special]
        sizes = [self.rows[s.name] for s in switches if not s.choices]
        special = [self.rows[s.name] for s in switches if s.special]
        beside = W.VBox([group("In place now", self.captured), group("Sizes and limits", *sizes), group("Further", *special)])
        top = W.HBox([device, self.best, self.status])
        top.add_class("itl-actions")
        columns = W.HBox([group("Optimisations", *engine), beside])
        columns.add_class("itl-columns")
        self.set_content(top, columns)
        self._task: Any = None
        self.own(session.subscribe(self.refresh))
        self.own(after_cells(self.refresh))
        self.refresh()

    @property
    def changing(self) -> bool:
        """Whether a change is on its way."""
        return self._task is not None and not self._task.over

    def turn(self, name: str, value: Any) -> None:
        """Turn a switch in the background; the panel says when it is done, or why not."""
        self._start(lambda progress: set_switch(self.session.tts, name, value), f"changing {self.rows[name].title}")

    def use_recommended(self) -> None:
        """Turn all switches to what suits this device."""
        self._start(lambda progress: apply_recommended(self.session.tts), "setting what is recommended")

    def refresh(self) -> None:
        """Show the engine as it is."""
        if self.closed:
            return
        busy = self.session.busy
        if not self.changing:
            try:
                for switch in available_switches(self.session.tts):
                    self.rows[switch.name].show(switch)
            except RuntimeError as error:  # the engine was closed
                self.show_error(error)
                return
        differs = any(s.recommended is not None and s.recommended != s.value for s in available_switches(self.session.tts))
        for row in self.rows.values():
            row.lock(self.changing)
        self.best.disabled = self.changing or not differs
        self.best.tooltip = "" if differs else "Everything is set as recommended for this device."
        if not self.changing:
            self.status.value = _hint("A run is in progress; changes wait for it." if busy else "")
            lines = "".join(f"<li>{html.escape(line)}</li>" for line in captured(self.session.tts))
            self.captured.value = f'<ul class="itl-list">{lines}</ul>' + _hint(f"Caches hold {self.session.tts.cache_memory_mb:.1f} MB.")

    def _start(self, function: Any, message: str) -> None:
        self.clear_error()
        self._task = self.session.run(function, on_done=lambda _: self._ended(None), on_error=self._ended)
        if self.changing:
            self.status.value = f'<span role="status" class="itl-busy">{html.escape(message[0].upper() + message[1:])}…</span>'
            self.refresh()

    def _ended(self, error: BaseException | None) -> None:
        self._task = None
        if error is not None and not isinstance(error, Cancelled) and not self.closed:
            self.show_error(error)
        self.refresh()


def _hint(text: str, escape: bool = True) -> str:
    return f'<span class="itl-hint">{html.escape(text) if escape else text}</span>' if text else ""
