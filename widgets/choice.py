"""One of a few, each of which may be impossible here, with the reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as W
import traitlets as T


class Choice(W.HBox):
    """Buttons of which one is down; ``value`` is its value. ``options``: (label, value, reason), a reason disables the option."""

    value = T.Unicode()

    def __init__(self, options: Sequence[tuple[str, str, str | None]], value: str | None = None) -> None:
        self.reasons = {key: reason for _, key, reason in options if reason}
        self._keys = [key for _, key, _ in options]
        self._buttons = {
            key: W.ToggleButton(description=label, disabled=bool(reason), tooltip=reason or "") for label, key, reason in options
        }
        first = next(key for key in self._keys if key not in self.reasons)
        super().__init__(tuple(self._buttons.values()))
        self.add_class("itl-choice")
        self.value = value if value is not None else first
        for key, button in self._buttons.items():
            button.observe(lambda change, key=key: self._pressed(key, change["new"]), "value")

    @T.validate("value")
    def _possible(self, proposal: Any) -> str:
        value = str(proposal["value"])
        if value not in self._keys or value in self.reasons:
            raise T.TraitError(self.reasons.get(value) or f"{value!r} is not one of {', '.join(self._keys)}")
        return value

    @T.observe("value")
    def _show(self, _: Any) -> None:
        for key, button in self._buttons.items():
            button.value = key == self.value

    def _pressed(self, key: str, down: bool) -> None:
        if down:
            self.value = key
        elif key == self.value:
            self._buttons[key].value = True  # one is always down
