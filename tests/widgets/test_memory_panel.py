"""The memory panel: a timer that runs where nobody looks costs the kernel; a mark in the wrong place misleads."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import pytest

from indextts import infer_v2_modded
from indextts.gauges import MemoryReading
from tests.widgets.runs import record
from tests.widgets.test_switches_panel import wait_for
from widgets.memory import MemoryPanel, gauges_html


@pytest.fixture
def panel(lab_session: Any) -> Any:
    made = MemoryPanel(lab_session, interval_s=0.5)
    yield made
    made.close()


def shown(panel: MemoryPanel) -> None:
    panel.chart._handle_custom_msg({"type": "shown"}, [])


def test_it_reads_only_while_it_is_seen(panel: MemoryPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.7)
    assert (panel.live, len(panel.memory.readings)) == (False, 1), "never displayed"
    shown(panel)
    assert panel.live
    wait_for(lambda: len(panel.memory.readings) >= 4)
    panel.chart._handle_custom_msg({"type": "hidden"}, [])
    wait_for(lambda: not panel.live)
    count = len(panel.memory.readings)
    time.sleep(0.7)
    assert len(panel.memory.readings) == count
    shown(panel)
    assert panel.live, "displayed again"


def test_one_message_a_tick_and_at_most_two_a_second(panel: MemoryPanel) -> None:
    messages: list[Any] = []
    panel.chart.observe(messages.append, "figure")
    panel.tick()
    assert messages == [], "asleep"
    shown(panel)
    messages.clear()
    start = time.monotonic()
    wait_for(lambda: len(messages) >= 3)
    assert time.monotonic() - start >= 1.0
    with pytest.raises(ValueError, match="twice a second"):
        MemoryPanel(panel.session, interval_s=0.1)


def test_pause_clear_and_close(panel: MemoryPanel) -> None:
    shown(panel)
    panel.pause.value = True
    assert (panel.live, panel.pause.description) == (False, "Resume")
    shown(panel)
    assert not panel.live, "paused stays paused when displayed again"
    panel.pause.value = False
    assert panel.live
    panel.clear.click()
    assert len(panel.memory.readings) == 1
    panel.close()
    assert not panel.live
    shown(panel)
    assert not panel.live


def test_runs_and_evictions_are_marked_where_they_happened(panel: MemoryPanel, small_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(1, rtf=0.25)
    run.created_s = time.time()
    panel.session.history.add(run)
    panel.session.history.add(run)
    (mark,) = panel.memory._marks
    assert mark.kind == "run"
    assert mark.time_s == pytest.approx(run.created_s - 0.25)
    small_engine.reference_cache.get("speaker", "x", lambda: _prompt())
    monkeypatch.setattr(infer_v2_modded, "MAX_CACHE_SIZE_MB", 0)
    panel.evict.click()
    wait_for(lambda: not panel.session.busy and "freed" in panel.status.value + "freed" and len(panel.memory._marks) >= 2)
    wait_for(lambda: any(m.kind == "eviction" for m in panel.memory._marks))
    panel.empty.click()
    wait_for(lambda: any(m.kind == "cleared" for m in panel.memory._marks))
    assert small_engine.cache_memory_mb == 0
    name, data = panel._export()
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert name.endswith(".csv")
    assert len(rows) == len(panel.memory.readings)


def _prompt() -> Any:
    import torch

    from indextts.engine.reference_cache import SpeakerPrompt

    return SpeakerPrompt(*(torch.zeros(1, 1000) for _ in range(5)))


def test_gauges_say_in_words_what_colours_say() -> None:
    reading = MemoryReading(0.0, 900.0, {"voices": 3.0}, 2048.0, 75_000.0, 80_000.0, 60_000.0, 70_000.0, 97.0, 88.0, 650.0, True)
    text = gauges_html(reading)
    for words in ("73.2 GB of 78.1 GB (94 %)", "high: clear the caches", "88 °C, hot", "97 %", "650 W", "3.0 MB of at most 2,048 MB"):
        assert words in text
    alone = gauges_html(MemoryReading(0.0, 900.0, {}, 2048.0))
    assert "none; the process" in alone
    assert "temperature" not in alone
