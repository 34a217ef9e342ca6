"""Model card and workers: a card of another engine, or a request without an answer, is what a user would be left with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from indextts.parallel import PoolFullError
from tests.widgets.test_switches_panel import wait_for
from widgets.model_card import ModelCardPanel
from widgets.workers import WorkersPanel

pytestmark = pytest.mark.filterwarnings("ignore:generation was stopped")


def test_the_card_follows_the_engine(lab_session: Any, small_engine: Any) -> None:
    panel = ModelCardPanel(lab_session)
    total = sum(p.numel() for network in (small_engine._stages.gpt, small_engine._stages.s2mel) for p in network.parameters())
    assert f"{sum(m.parameters for m in panel.card.modules if m.name in ('gpt', 's2mel')):,}" == f"{total:,}"
    assert "float32" in panel.modules.value
    assert "there are no files" in panel.files.value
    try:
        lab_session.run(lambda progress: small_engine.set_precision("bf16")).result(20)
        wait_for(lambda: "bfloat16" in panel.modules.value)
    finally:
        small_engine.set_precision("fp32")
    name, data = panel._export()
    assert (name, json.loads(data)["name"]) == ("model_card.json", small_engine.name)
    panel.close()


def test_names_from_files_cannot_become_markup(small_engine: Any) -> None:
    from dataclasses import replace

    from indextts.model_card import FileFact, model_card
    from widgets.model_card import card_html

    card = replace(model_card(small_engine), name="<script>x</script>", files=(FileFact("gpt", "<b>.pth", 1.0, "2026-01-01 00:00"),))
    parts = card_html(card)
    assert "<script>" not in parts["summary"]
    assert "&lt;b&gt;.pth" in parts["files"]


@pytest.fixture
def panel(lab_session: Any, small_engine: Any) -> Iterator[WorkersPanel]:
    made = WorkersPanel(lab_session)
    yield made
    made.close()
    wait_for(lambda: all(entry.over for entry in made.requests), 60)


def pool_of(panel: WorkersPanel) -> Any:
    """The panel's pool once it is there; what the panel says if there is none."""
    wait_for(lambda: panel.pool is not None or bool(panel.error_text))
    assert panel.pool is not None, panel.error_text
    return panel.pool


def requests(tts: Any, *texts: str) -> list[dict[str, Any]]:
    return [{"spk_audio_prompt": tts.default_voice(), "text": text, "seed": 1, "num_beams": 1, "diffusion_steps": 2} for text in texts]


def test_requests_are_answered_and_can_be_played(panel: WorkersPanel, small_engine: Any) -> None:
    assert (panel.pool, panel.table.rows) == (None, [])
    panel.submit(requests(small_engine, "One.", "Two."))  # starts the pool by itself
    pool_of(panel)
    wait_for(lambda: len(panel.requests) == 2 and all(entry.over for entry in panel.requests), 60)
    panel.refresh()
    assert [row["cells"]["state"] for row in panel.table.rows] == ["done", "done"]
    assert float(panel.table.rows[0]["cells"]["audio"]) > 0
    assert panel.workers.rows[0]["cells"]["done"] == "2"
    assert "sound per second of work" in panel.figures.value
    panel._act("play", 1)
    assert panel.player.wav
    assert panel.player.label == "request 1"
    wait_for(lambda: not panel.ticker.running, 5)
    panel.clear_finished()
    assert panel.table.rows == []
    panel.toggle.click()
    assert panel.pool is None
    assert panel.toggle.description == "Start"


def test_bad_and_surplus_requests_are_said_in_words(panel: WorkersPanel, small_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panel.texts.value = "  \n "
    panel.queue_lines()
    assert "There is no text" in panel.error_text
    panel.start_pool()
    pool = pool_of(panel)

    def full(request: Any) -> Any:
        raise PoolFullError("256 requests wait already")

    monkeypatch.setattr(pool, "submit", full)
    panel.submit(requests(small_engine, "One.", "Two.", "Three."))
    assert panel.error_text == "256 requests wait already. 3 requests were not taken."
    assert panel.requests == []


def test_a_failed_request_says_why_and_a_cancelled_one_that_it_is(panel: WorkersPanel, small_engine: Any) -> None:
    bad, *slow = requests(small_engine, "One.", *["Two, three, four, five, six, seven, eight."] * 4)
    panel.submit([{**bad, "num_beams": 65}, *slow])
    pool_of(panel)
    wait_for(lambda: len(panel.requests) == 5)
    panel.table._handle_custom_msg({"type": "action", "action": "cancel", "id": 5}, [])
    panel.cancel_all()
    wait_for(lambda: all(entry.over for entry in panel.requests), 60)
    panel.refresh()
    by_id = {row["id"]: row["cells"] for row in panel.table.rows}
    assert by_id[5]["state"] == "cancelled"
    assert by_id[1]["state"] in ("failed", "cancelled")
    if by_id[1]["state"] == "failed":
        assert "num_beams" in by_id[1]["progress"]


def test_the_engine_of_the_session_survives_the_panel(panel: WorkersPanel, small_engine: Any) -> None:
    panel.start_pool()
    pool = pool_of(panel)
    panel.close()
    wait_for(lambda: pool.stats()["workers"][0]["state"] == "closed", 20)
    assert small_engine.infer(small_engine.default_voice(), "One.", num_beams=1, seed=1)[1].size > 0
    assert panel.table.comm is None
