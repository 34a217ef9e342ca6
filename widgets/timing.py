"""Where the time went: stages of every run, the timeline of one, what would help, and the table of all runs."""

from __future__ import annotations

import html
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as W

from indextts.engine.hints import find_hints
from indextts.runs import RunRecord
from widgets.base import Panel, group
from widgets.chart import Chart
from widgets.files import Download
from widgets.player import Player
from widgets.plots import stage_bars, timeline
from widgets.session import Session
from widgets.table import Table
from widgets.throttle import Throttle

__all__ = ["TimingPanel", "settings_words"]

MOST_BARS = 10
NO_RUN = 0  # runs are counted from 1; a menu whose value is None shows nothing at all
COLUMNS: list[dict[str, Any]] = [
    {"key": "id", "label": "Run", "number": True},
    {"key": "time", "label": "At"},
    {"key": "what", "label": "Label and text", "wide": True},
    {"key": "settings", "label": "Settings", "wide": True},
    {"key": "audio", "label": "Sound, s", "number": True},
    {"key": "total", "label": "Time, s", "number": True},
    {"key": "rtf", "label": "RTF", "number": True},
    {"key": "rate", "label": "Codes/s", "number": True},
]


class TimingPanel(Panel):
    """Charts and a table of the session's runs. Chosen rows are compared; without any, the latest runs are."""

    title = "Timing"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.bars, self.timeline = Chart(stage_bars([])), Chart(timeline({}))
        self.base = W.Dropdown(description="Speed-up against", options=[("none", NO_RUN)], style={"description_width": "initial"})
        self.run = W.Dropdown(description="Run", options=[("the last", NO_RUN)], style={"description_width": "initial"})
        self.hints = W.HTML()
        self.filter = W.Text(placeholder="Filter by label, text or settings", continuous_update=True)
        self.table = Table(
            COLUMNS,
            (("play", "Play"), ("show", "Timeline"), ("delete", "Delete")),
            self._act,
            selectable=True,
            empty="No runs yet: generate speech, and every run appears here.",
        )
        self.delete = W.Button(description="Delete chosen", icon="trash")
        self.player = Player()
        self.player.layout.display = "none"
        self.base.observe(lambda _: self._draw_bars(), "value")
        self.run.observe(lambda _: self._draw_run(), "value")
        self.filter.observe(lambda _: self._fill(), "value")
        self.table.observe(lambda _: self._draw_bars(), "selected")
        self.delete.on_click(lambda _: session.history.remove(*self.table.selected))
        bar = W.HBox(
            [
                self.filter,
                self.delete,
                Download("Export JSON", lambda: self._export("json"), self.show_error),
                Download("Export CSV", lambda: self._export("csv"), self.show_error),
            ]
        )
        bar.add_class("itl-actions")
        self.set_content(
            group("Stages by run", self.base, self.bars),
            group("One run", self.run, self.timeline, self.hints),
            group("All runs", bar, self.table, self.player),
        )
        self._updating = False
        self._throttle: Throttle = self.own(Throttle(self.refresh))
        self.own(session.history.subscribe(self._throttle.call))
        self.refresh()

    @property
    def shown(self) -> list[RunRecord]:
        """The runs that pass the filter, oldest first."""
        wanted = self.filter.value.lower().split()
        return [record for record in self.session.history if all(word in _searched(record) for word in wanted)]

    @property
    def compared(self) -> list[RunRecord]:
        """The runs in the bar chart: the chosen ones, or the latest of those shown."""
        shown = self.shown
        chosen = [record for record in shown if record.id in self.table.selected]
        return chosen or shown[-MOST_BARS:]

    @property
    def inspected(self) -> RunRecord | None:
        """The run whose timeline is shown."""
        records = list(self.session.history)
        return next((record for record in records if record.id == self.run.value), records[-1] if records else None)

    def refresh(self) -> None:
        """Show the history as it is."""
        if self.closed:
            return
        records = list(self.session.history)
        options = [(f"{record.id} · {record.label}", record.id) for record in reversed(records)]
        self._updating = True
        try:
            for menu, first in ((self.base, ("none", NO_RUN)), (self.run, ("the last", NO_RUN))):
                value = menu.value if any(record.id == menu.value for record in records) else NO_RUN
                menu.options = [first, *options]
                menu.value = value
        finally:
            self._updating = False
        self._fill()
        self._draw_run()

    def _fill(self) -> None:
        shown, total = self.shown, len(self.session.history)
        self.table.caption = f"{len(shown)} of {total} runs; choose some to compare only them." if total else ""
        self.table.empty = "No run passes the filter." if total else "No runs yet: generate speech, and every run appears here."
        self.table.show([_row(record) for record in reversed(shown)])
        self._draw_bars()

    def _draw_bars(self) -> None:
        self.delete.disabled = not self.table.selected
        if self._updating:
            return
        runs = [
            {"id": record.id, "label": record.label, "rtf": record.rtf, "total_s": record.total_s}
            | {f"{stage}_s": getattr(record.telemetry, f"{stage}_s") for stage in ("gpt", "s2mel", "bigvgan", "other")}
            for record in self.compared
        ]
        base = self.base.value
        compared = any(run["id"] == base for run in runs)
        self.bars.show(stage_bars(runs, base if compared else None))

    def _draw_run(self) -> None:
        if self._updating:
            return
        record = self.inspected
        self.timeline.show(timeline(record.telemetry.to_dict() if record else {}))
        self.hints.value = hints_html(record) if record else ""

    def _act(self, name: str, number: Any) -> None:
        try:
            record = self.session.history.get(number)
        except KeyError as error:
            self.show_error(error)
            return
        self.clear_error()
        if name == "delete":
            self.session.history.remove(number)
        elif name == "show":
            self.run.value = record.id
        else:
            self.player.layout.display = None
            self.player.autoplay = True
            self.player.show(record)

    def _export(self, kind: str) -> tuple[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"runs.{kind}"
            (self.session.history.to_json if kind == "json" else self.session.history.to_csv)(path)
            return path.name, path.read_bytes()


def settings_words(settings: Mapping[str, Any]) -> str:
    """The settings of a run in a few words: ``bf16, accelerated, graphs, 3 beams, 25 steps``."""
    if not settings:
        return ""
    beams, steps = settings.get("num_beams"), settings.get("diffusion_steps")
    parts = [
        settings.get("precision"),
        None if "use_accel" not in settings else "accelerated" if settings["use_accel"] else "plain",
        f"{settings['attention']} attention" if settings.get("attention", "auto") != "auto" else None,
        "graphs" if settings.get("cuda_graphs") else None,
        "compiled" if settings.get("torch_compile") else None,
        f"{beams} beam{'s' * (beams != 1)}" if beams else None,
        f"{steps} steps" if steps else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def hints_html(record: RunRecord, total_memory_mb: float = 0.0) -> str:
    """What the run's record says about its speed, as a list; the kind of each is in its words, too."""
    kinds = {"warning": "Mind: ", "info": "", "good": "Good: "}
    items = "".join(
        f'<li class="{hint.kind}"><b>{kinds[hint.kind]}</b>{html.escape(hint.text)} '
        f'<span class="itl-hint">{html.escape(hint.advice)}</span></li>'
        for hint in find_hints(record.telemetry, total_memory_mb)
    )
    return f'<ul class="itl-hints" aria-label="Hints for {html.escape(record.label)}">{items}</ul>'


def _searched(record: RunRecord) -> str:
    return f"{record.id} {record.label} {record.telemetry.text} {settings_words(record.settings)}".lower()


def _row(record: RunRecord) -> dict[str, Any]:
    telemetry, text = record.telemetry, " ".join(record.telemetry.text.split())
    what = text if record.label == f"run {record.id}" else f"{record.label}: {text}"
    numbers = {"id": record.id, "audio": record.audio_s, "total": record.total_s, "rtf": record.rtf, "rate": telemetry.tokens_per_s}
    return {
        "id": record.id,
        "name": f"run {record.id}",
        "cells": {
            "id": str(record.id),
            "time": time.strftime("%H:%M:%S", time.localtime(record.created_s)),
            "what": what if len(what) <= 48 else what[:47] + "…",
            "settings": settings_words(record.settings),
            "audio": f"{record.audio_s:.2f}",
            "total": f"{record.total_s:.2f}",
            "rtf": f"{record.rtf:.3g}",
            "rate": f"{telemetry.tokens_per_s:.0f}",
        },
        "sort": {**numbers, "time": record.created_s},
        "titles": {"what": what[:500]},
    }
