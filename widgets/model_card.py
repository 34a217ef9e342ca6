"""What the engine is made of, to read: files, sizes, parameters, vocabulary, number formats."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import ipywidgets as W

from indextts.model_card import ModelCard, model_card
from widgets.base import Panel, group
from widgets.cells import after_cells
from widgets.files import Download
from widgets.memory import figures_html
from widgets.session import Session

__all__ = ["ModelCardPanel", "card_html"]


class ModelCardPanel(Panel):
    """The card of the loaded engine; it follows the engine's switches."""

    title = "Model card"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.summary, self.modules, self.files = W.HTML(), W.HTML(), W.HTML()
        self.card: ModelCard | None = None
        export = Download("Export JSON", self._export, self.show_error)
        self.set_content(group("Model", self.summary, export), group("Networks as loaded", self.modules), group("Files", self.files))
        self._state: tuple[Any, ...] = ()
        self.own(session.subscribe(self.refresh))
        self.own(after_cells(self.refresh))
        self.refresh()

    def refresh(self) -> None:
        """Read the engine again if its switches are not what they were."""
        tts = self.session.tts
        if self.closed or (self.session.busy and self.card is not None):
            return  # a switch that is being turned shows half of itself; there is a call when it is done
        try:
            state = (tts.precision, tts.attention, tts.use_accel, str(tts.device))
            if state == self._state:
                return
            self.card = model_card(tts)
        except RuntimeError as error:  # the engine was closed
            self.show_error(error)
            return
        self._state = state
        parts = card_html(self.card)
        self.summary.value, self.modules.value, self.files.value = parts["summary"], parts["modules"], parts["files"]

    def _export(self) -> tuple[str, bytes]:
        assert self.card is not None
        return "model_card.json", json.dumps(self.card.to_dict(), indent=1, ensure_ascii=False).encode("utf-8")


def card_html(card: ModelCard) -> dict[str, str]:
    """The card as HTML: ``summary``, ``modules``, ``files``."""
    facts: dict[str, Any] = {
        "name": card.name,
        "version": card.version,
        "source": card.source,
        "parameters": f"{card.parameters:,}",
        **card.settings,
        **{name: f"{value:,}" for name, value in card.vocabulary.items()},
        **{name: f"{value:,}" for name, value in card.audio.items()},
    }
    modules = [
        [
            m.label,
            m.what,
            f"{m.parameters:,}",
            f"{100 * m.parameters / max(1, card.parameters):.1f} %",
            f"{m.size_mb:.1f}",
            ", ".join(m.dtypes),
            m.device,
        ]
        for m in card.modules
    ]
    total = ["All", "", f"{card.parameters:,}", "100 %", f"{sum(m.size_mb for m in card.modules):.1f}", "", ""]
    files = [[fact.path, fact.role, f"{fact.size_mb:.2f}", fact.modified] for fact in card.files]
    return {
        "summary": figures_html([(name, str(value), "") for name, value in facts.items()]),
        "modules": _table(["Network", "Does", "Parameters", "Share", "MB", "Number format", "Device"], [*modules, total], (2, 3, 4)),
        "files": _table(["File", "Role", "MB", "Changed"], files, (2,)) if files else "<p>Random weights: there are no files.</p>",
    }


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        marked = "".join(
            f"<{tag}{' class=num' if place in numbers else ''}>{html.escape(cell)}</{tag}>" for place, cell in enumerate(cells)
        )
        return f"<tr>{marked}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="itl-scroll"><table class="itl-data"><thead>{line("th", columns)}</thead><tbody>{body}</tbody></table></div>'
