"""Memory while it is used: device or process memory and the engine's caches over time, with runs and evictions marked."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as W

from indextts.gauges import MemoryLog, MemoryReading
from indextts.preflight import MOST_DEGREES_C
from widgets.base import Panel, Ticker, group
from widgets.chart import Chart
from widgets.files import Download
from widgets.plots import memory_lines
from widgets.session import Session

__all__ = ["MemoryPanel"]

INTERVAL_S = 1.0


class MemoryPanel(Panel):
    """A live plot and gauges. It reads once a second while somebody sees it, and not at all while it is paused, hidden or closed."""

    title = "Memory"

    def __init__(self, session: Session, interval_s: float = INTERVAL_S) -> None:
        super().__init__(session)
        self.memory = MemoryLog(session.tts)
        self.chart = Chart(memory_lines([]))
        self.gauges = W.HTML()
        self.pause = W.ToggleButton(description="Pause", icon="pause", tooltip="Stop reading; the plot stays")
        self.clear = W.Button(description="Clear plot", icon="eraser")
        self.evict = W.Button(description="Evict", icon="compress", tooltip="Drop least recently used voices until under the cache limit")
        self.empty = W.Button(description="Empty caches", icon="trash", tooltip="Drop all cached voices, buffers and graphs")
        self.export = Download("Export CSV", self._export, self.show_error)
        self.status = W.HTML()
        self.pause.observe(lambda _: self._pace(), "value")
        self.clear.on_click(lambda _: self._clear())
        self.evict.on_click(lambda _: self._free(session.tts.evict_cache, "eviction", "evicted by hand"))
        self.empty.on_click(lambda _: self._free(session.tts.clear_caches, "cleared", "caches emptied by hand"))
        bar = W.HBox([self.pause, self.clear, self.evict, self.empty, self.export, self.status])
        bar.add_class("itl-actions")
        self.set_content(group("Now", self.gauges), group("Over time", self.chart, bar))
        self._known: set[int] = {record.id for record in session.history}
        self.ticker: Ticker = self.own(Ticker(interval_s, self.tick))
        self.chart.on_shown(self._pace)
        self.own(session.history.subscribe(self._note_runs))
        self._sample()

    @property
    def live(self) -> bool:
        """Whether it is reading at present."""
        return self.ticker.running

    def tick(self) -> None:
        """Read and draw, unless nobody looks any more: then stop until the chart is shown again."""
        if self.closed or self.pause.value or not self.chart.awake:
            self.ticker.stop()
            return
        self._sample()

    def _pace(self) -> None:
        if self.closed:
            return
        self.pause.description, self.pause.icon = ("Resume", "play") if self.pause.value else ("Pause", "pause")
        if self.pause.value or not self.chart.awake:
            self.ticker.stop()
        else:
            self._sample()
            self.ticker.start()
        self.status.value = '<span class="itl-hint">paused</span>' if self.pause.value else ""

    def _sample(self) -> None:
        try:
            reading = self.memory.sample()
        except RuntimeError as error:  # the engine was closed
            self.ticker.stop()
            self.show_error(error)
            return
        self._draw(reading)

    def _draw(self, reading: MemoryReading) -> None:
        facts = self.memory.to_dict()
        self.chart.show(memory_lines(facts["readings"], facts["marks"]))  # one message a tick, however many curves
        self.gauges.value = gauges_html(reading)

    def _note_runs(self) -> None:
        """Mark new runs at the time at which they began; called from the thread that made them."""
        for record in self.session.history:
            if record.id not in self._known:
                self._known.add(record.id)
                self.memory.mark("run", f"{record.label} began ({record.audio_s:.1f} s of sound)", record.created_s - record.total_s)

    def _clear(self) -> None:
        self.memory.clear()
        self._sample()

    def _free(self, function: Any, kind: str, text: str) -> None:
        self.clear_error()
        before = self.session.tts.cache_memory_mb

        def done(_: Any) -> None:
            if self.closed:
                return
            freed = max(0.0, before - self.session.tts.cache_memory_mb)
            self.memory.mark(kind, f"{text}: {freed:.1f} MB")
            self._sample()
            said = f"{freed:.1f} MB freed." if freed >= 0.05 else "Nothing to free: the caches are within their limit."
            self.status.value = f'<span class="itl-hint" role="status">{said}</span>'

        self.session.run(lambda progress: function(), on_done=done, on_error=self.show_error)

    def _export(self) -> tuple[str, bytes]:
        return "memory.csv", self.memory.to_csv_text().encode("utf-8")


def gauges_html(reading: MemoryReading) -> str:
    """The reading as a row of figures with their names; what the machine does not tell is left out."""
    facts: list[tuple[str, str, str]] = []
    if reading.device_used_mb is not None and reading.device_total_mb:
        share = 100 * reading.device_used_mb / reading.device_total_mb
        facts.append(("device memory", f"{_mb(reading.device_used_mb)} of {_mb(reading.device_total_mb)} ({share:.0f} %)", ""))
        facts.append(("torch allocated / reserved", f"{_mb(reading.allocated_mb or 0)} / {_mb(reading.reserved_mb or 0)}", ""))
        facts.append(("out-of-memory risk", "high: clear the caches" if reading.at_risk else "low", "bad" if reading.at_risk else "good"))
    else:
        facts.append(("GPU", "none; the process's memory is shown", ""))
    facts.append(("process", _mb(reading.process_mb), ""))
    facts.append(("caches", f"{_mb(reading.cached_mb)} of at most {_mb(reading.limit_mb)}", ""))
    if reading.temperature_c is not None:
        hot = reading.temperature_c >= MOST_DEGREES_C
        facts.append(("temperature", f"{reading.temperature_c:.0f} °C{', hot' if hot else ''}", "bad" if hot else ""))
    if reading.utilization_percent is not None:
        facts.append(("utilisation", f"{reading.utilization_percent:.0f} %", ""))
    if reading.power_w is not None:
        facts.append(("power", f"{reading.power_w:.0f} W", ""))
    return figures_html(facts)


def figures_html(facts: list[tuple[str, str, str]]) -> str:
    """(name, value, kind) as figures side by side; ``kind`` ``good`` or ``bad`` adds a colour to what the text says already."""
    cells = "".join(
        f'<div class="itl-figure {kind}" role="listitem"><span>{html.escape(name)}</span><b>{html.escape(value)}</b></div>'
        for name, value, kind in facts
    )
    return f'<div class="itl-figures" role="list">{cells}</div>'


def _mb(value: float) -> str:
    return f"{value / 1024:.1f} GB" if value >= 10_000 else f"{value:,.0f} MB" if value >= 100 else f"{value:.1f} MB"
