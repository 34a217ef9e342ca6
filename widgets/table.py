"""A table of plain rows that can be sorted, chosen and acted upon: one widget, however many rows there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets as T

__all__ = ["Table"]


class Table(anywidget.AnyWidget):
    """Shows ``rows``: dicts with ``id``, ``name`` (for screen readers), ``cells`` (column key to text), and where needed ``sort``
    (column key to number), ``titles`` (column key to a longer text) and ``actions`` (names of those this row has; all without it).

    ``columns``: dicts with ``key``, ``label``, and ``number`` or ``wide``. ``actions``: dicts with ``name`` and ``label``; pressing one
    calls ``on_action(name, id)``. ``selected``: ids of the rows whose check boxes are set, in the order in which they were.
    """

    _esm = Path(__file__).with_name("table.js").read_text(encoding="utf-8")
    columns = T.List(T.Dict()).tag(sync=True)
    rows = T.List(T.Dict()).tag(sync=True)
    actions = T.List(T.Dict()).tag(sync=True)
    selected = T.List().tag(sync=True)
    selectable = T.Bool(False).tag(sync=True)
    caption = T.Unicode("").tag(sync=True)
    empty = T.Unicode("Nothing yet.").tag(sync=True)

    def __init__(
        self,
        columns: Sequence[Mapping[str, Any]],
        actions: Sequence[tuple[str, str]] = (),
        on_action: Callable[[str, Any], object] | None = None,
        **traits: Any,
    ) -> None:
        super().__init__(
            columns=[dict(column) for column in columns], actions=[{"name": name, "label": label} for name, label in actions], **traits
        )
        self._on_action = on_action
        self.add_class("itl-table-host")
        self.on_msg(self._hear)

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put other rows in; what is no longer there is no longer chosen."""
        present = {row["id"] for row in rows}
        with self.hold_sync():
            self.rows = [dict(row) for row in rows]
            self.selected = [number for number in self.selected if number in present]

    def _hear(self, _: Any, message: dict[str, Any], __: Any) -> None:
        known = {action["name"] for action in self.actions}
        if message.get("type") == "action" and message.get("action") in known and self._on_action is not None:
            self._on_action(message["action"], message.get("id"))
