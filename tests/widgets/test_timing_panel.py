"""The timing panel: comparisons of the wrong runs, or exports that lack some, would be believed."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.widgets.runs import record
from tests.widgets.test_switches_panel import wait_for
from widgets.timing import TimingPanel, settings_words


@pytest.fixture
def panel(session: Any) -> Iterator[TimingPanel]:
    for number, rtf in ((1, 1.0), (2, 0.5), (3, 0.25)):
        session.history.add(record(number, rtf, precision="bf16" if number == 3 else "fp32", text=f"Sentence {number}."))
    made = TimingPanel(session)
    yield made
    made.close()


def bars(panel: TimingPanel) -> list[str]:
    return panel.bars.figure["data"][0]["x"]


def test_all_runs_are_listed_newest_first_and_compared(panel: TimingPanel) -> None:
    assert [row["id"] for row in panel.table.rows] == [3, 2, 1]
    assert bars(panel) == ["1 · run 1", "2 · run 2", "3 · run 3"]
    assert panel.table.rows[0]["cells"]["settings"] == "bf16, accelerated, 3 beams, 25 steps"
    assert panel.inspected is not None
    assert panel.inspected.id == 3
    assert "Faster than real time: RTF 0.25" in panel.hints.value
    panel.session.history.add(record(4))
    wait_for(lambda: len(panel.table.rows) == 4)
    assert (panel.run.label, panel.base.label) == ("the last", "none"), "menus never show nothing"


def test_chosen_runs_are_compared_against_the_base(panel: TimingPanel) -> None:
    panel.table.selected = [1, 3]
    assert bars(panel) == ["1 · run 1", "3 · run 3"]
    panel.base.value = 1
    assert [note["text"] for note in panel.bars.figure["layout"]["annotations"]] == ["1x (base)", "4.00x"]
    panel.base.value = 2
    assert "x" not in panel.bars.figure["layout"]["annotations"][0]["text"], "the base is not among the chosen: no speed-ups"


def test_filter_delete_and_timeline(panel: TimingPanel) -> None:
    panel.filter.value = "BF16"
    assert [row["id"] for row in panel.table.rows] == [3]
    assert "1 of 3 runs" in panel.table.caption
    panel.filter.value = "nothing like it"
    assert panel.table.rows == []
    assert "No run passes" in panel.table.empty
    panel.filter.value = ""
    panel._act("show", 1)
    assert panel.inspected.id == 1
    assert "1.00 s" in panel.timeline.words
    panel.table.selected = [2]
    assert not panel.delete.disabled
    panel.delete.click()
    wait_for(lambda: [row["id"] for row in panel.table.rows] == [3, 1])
    assert panel.delete.disabled
    panel._act("delete", 3)
    wait_for(lambda: [row["id"] for row in panel.table.rows] == [1])


def test_play_puts_the_runs_own_samples_into_the_player(panel: TimingPanel) -> None:
    from widgets.sound import wav_samples

    panel._act("play", 2)
    rate, samples = wav_samples(panel.player.wav)
    assert rate == 22050
    assert (samples == panel.session.history.get(2).samples).all()
    panel._act("play", 99)
    assert "There is no run 99" in panel.error_text


def test_exports_hold_every_run(panel: TimingPanel) -> None:
    name, data = panel._export("json")
    assert (name, [entry["id"] for entry in json.loads(data)]) == ("runs.json", [1, 2, 3])
    name, data = panel._export("csv")
    assert [row["id"] for row in csv.DictReader(io.StringIO(data.decode()))] == ["1", "2", "3"]


def test_new_runs_appear_at_most_twice_a_second_until_closed(panel: TimingPanel) -> None:
    time.sleep(0.55)
    drawn: list[Any] = []
    panel.table.observe(drawn.append, "rows")
    for number in range(4, 24):
        panel.session.history.add(record(number, 0.5))
    assert len(drawn) == 1
    wait_for(lambda: len(panel.table.rows) == 23)
    assert len(drawn) == 2
    assert len(bars(panel)) == 10, "the latest"
    panel.close()
    panel.session.history.add(record(99, 0.5))
    time.sleep(0.6)
    assert len(drawn) == 2


def test_settings_in_a_few_words() -> None:
    assert settings_words({}) == ""
    full = {"precision": "bf16", "use_accel": False, "attention": "math", "cuda_graphs": True, "torch_compile": True, "num_beams": 1}
    assert settings_words(full) == "bf16, plain, math attention, graphs, compiled, 1 beam"
