"""Charts, tables, votes and throttles: messages too many would stall a page, messages lost would leave it stale."""

from __future__ import annotations

import gzip
import time
from typing import Any

import pytest

pytest.importorskip("anywidget", reason="the lab extra is not installed")

from widgets.chart import Chart
from widgets.table import Table
from widgets.throttle import Throttle
from widgets.votes import Votes


def hear(widget: Any, **message: Any) -> None:
    widget._handle_custom_msg(message, [])


def test_a_chart_knows_whether_it_is_seen() -> None:
    chart, shown = Chart({"data": [], "layout": {"meta": {"words": "nothing"}}}), []
    chart.on_shown(lambda: shown.append(1))
    assert (chart.awake, chart.words) == (False, "nothing")
    hear(chart, type="shown")
    assert (chart.awake, shown) == (True, [1])
    hear(chart, type="hidden")
    assert not chart.awake
    hear(chart, type="seen")
    assert chart.awake
    chart.close()


def test_plotly_travels_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("plotly", reason="the lab extra is not installed")
    chart, sent = Chart(), []
    monkeypatch.setattr(chart, "send", lambda content, buffers=None: sent.append(content))
    hear(chart, type="library")
    library = chart._library
    assert library is not None
    assert sent == [{"type": "library", "id": library.model_id}]
    source = gzip.decompress(library.packed)
    assert b"window.Plotly = Plotly" in source
    assert len(library.packed) < 2_500_000, "servers drop messages beyond their rate limit"
    hear(chart, type="library loaded")
    assert (chart._library, library.comm) == (None, None), "it must not stay in the notebook's state"
    chart.close()


def test_nothing_is_fetched_from_elsewhere() -> None:

    for widget in (Chart, Table, Votes):
        assert "http://" not in str(widget._esm)
        assert "https://" not in str(widget._esm)


def test_table_acts_only_on_what_it_offers() -> None:
    heard: list[Any] = []
    table = Table([{"key": "a", "label": "A"}], (("play", "Play"),), lambda name, number: heard.append((name, number)))
    table.show([{"id": 1, "cells": {"a": "x"}}, {"id": 2, "cells": {"a": "y"}}])
    hear(table, type="action", action="play", id=2)
    hear(table, type="action", action="format disk", id=2)
    hear(table, type="other")
    assert heard == [("play", 2)]
    table.selected = [2, 1]
    table.show([{"id": 1, "cells": {"a": "x"}}])
    assert table.selected == [1], "a row that is gone is no longer chosen"


def test_votes_take_known_answers_while_open() -> None:
    heard: list[str] = []
    votes = Votes(heard.append, options=[{"answer": "A", "label": "A", "key": "a"}])
    hear(votes, type="vote", answer="A")
    votes.disabled = False
    hear(votes, type="vote", answer="A")
    hear(votes, type="vote", answer="Z")
    assert heard == ["A"]


def test_a_burst_of_changes_is_shown_twice_at_most_and_never_lost() -> None:
    shown: list[int] = []
    state = [0]
    throttle = Throttle(lambda: shown.append(state[0]))
    for value in range(1, 101):
        state[0] = value
        throttle.call()
    assert shown == [1], "at once"
    deadline = time.monotonic() + 5
    while len(shown) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.6)
    assert shown == [1, 100], "then only the last"
    state[0] = 101
    throttle.stop()
    throttle.call()
    time.sleep(0.6)
    assert shown == [1, 100]


def test_panels_hear_of_every_cell_until_they_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    import IPython

    from widgets.cells import after_cells

    class Events:
        def __init__(self) -> None:
            self.callbacks: dict[str, list[Any]] = {"post_run_cell": []}

        def register(self, event: str, function: Any) -> None:
            self.callbacks[event].append(function)

        def unregister(self, event: str, function: Any) -> None:
            self.callbacks[event].remove(function)

    class Shell:
        events = Events()

    class Hearer:
        def __init__(self) -> None:
            self.heard = 0

        def hear(self) -> None:
            self.heard += 1

    hearer = Hearer()
    after_cells(hearer.hear)()  # outside IPython: nothing to end
    monkeypatch.setattr(IPython, "get_ipython", Shell)
    callbacks = Shell.events.callbacks["post_run_cell"]
    stop = after_cells(hearer.hear)
    callbacks[0]("result")
    assert hearer.heard == 1
    stop()
    stop()
    assert callbacks == []
    after_cells(hearer.hear)
    del hearer
    gc.collect()
    callbacks[0]("result")
    assert callbacks == [], "a panel that is forgotten is not kept alive"
