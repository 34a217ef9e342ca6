"""The listening panel: a name that shows before the reveal, or a vote that counts for the wrong sound, spoils the test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyloudnorm", reason="the lab extra is not installed")

from indextts.listening import match_loudness
from tests.widgets.runs import record
from tests.widgets.test_switches_panel import wait_for
from widgets.listening import ListeningPanel
from widgets.sound import wav_samples


@pytest.fixture
def panel(lab_session: Any) -> Iterator[ListeningPanel]:
    made = ListeningPanel(lab_session)
    yield made
    made.close()


@pytest.fixture
def ready(panel: ListeningPanel) -> ListeningPanel:
    quiet, loud = record(1, label="quiet"), record(2, label="loud", precision="bf16")
    loud.samples = np.clip(loud.samples.astype(np.int32) * 6, -32767, 32767).astype(np.int16)
    for run in (quiet, loud):
        panel.session.history.add(run)
    wait_for(lambda: panel.form.second.value == 2)
    assert panel.form.chosen_runs == (1, 2)
    panel.start.click()
    assert panel.error_text == ""
    return panel


def heard(panel: ListeningPanel) -> list[int]:
    """Which of the two sounds each track is."""
    matched = match_loudness([run.samples for run in panel.records], 22050)
    found = []
    for track in panel.player.tracks:
        samples = wav_samples(track["wav"])[1] / 32767
        found.append(int(np.argmax([np.dot(samples, sound) / np.linalg.norm(sound) for sound in matched])))
    return found


def test_nothing_says_which_is_which_before_the_reveal(ready: ListeningPanel) -> None:
    assert ready.player.blind
    sent = json.dumps([track["label"] for track in ready.player.tracks]) + ready.help.value + ready.count.value + ready.status.value
    assert "quiet" not in sent
    assert "loud" not in sent
    assert len({len(track["wav"]) for track in ready.player.tracks}) == 1
    levels = [np.abs(wav_samples(track["wav"])[1].astype(np.float64)).mean() for track in ready.player.tracks]
    assert levels[0] == pytest.approx(levels[1], rel=0.03), "the louder would win"
    with pytest.raises(ValueError, match="reveal first"):
        ready._export()


def test_votes_count_for_the_sound_heard_behind_the_letter(ready: ListeningPanel) -> None:
    for _ in range(8):
        letter = "AB"[heard(ready).index(1)]
        ready.votes._handle_custom_msg({"type": "vote", "answer": letter}, [])
    assert "Trial 9; 8 answers so far" in ready.count.value
    ready.reveal_button.click()
    assert "8 for \u201c2 · loud\u201d" in ready.result.value
    assert "p = 0.00781" in ready.result.value
    assert ready.outcome.layout.display is None
    assert not ready.player.blind
    assert ready.votes.disabled
    assert ready.first.figure["layout"]["title"]["text"] == "1 · quiet"
    assert "LUFS" in ready.result.value
    assert ready.rest_player.wav
    name, data = ready._export()
    facts = json.loads(data)
    assert (name, facts["tally"]["votes"], len(facts["runs"])) == ("listening.json", 8, 2)
    ready.votes._handle_custom_msg({"type": "vote", "answer": "A"}, [])
    assert ready.test.tally()["votes"] == 8, "no vote after the reveal"


def test_abx_has_a_third_sound_and_begins_anew(ready: ListeningPanel) -> None:
    ready.vote("A")
    ready.mode.value = "abx"
    assert ready.test.tally()["votes"] == 0
    assert [option["label"] for option in ready.votes.options] == ["X is A", "X is B"]
    for _ in range(5):
        a, b, x = heard(ready)
        assert {a, b} == {0, 1}
        ready.vote("A" if x == a else "B")
    ready.reveal()
    assert "5 of 5 right" in ready.result.value
    ready.again.click()
    assert (ready.player.blind, ready.outcome.layout.display, ready.votes.disabled) == (True, "none", False)


def test_without_two_runs_it_says_so(panel: ListeningPanel) -> None:
    assert panel.votes.disabled
    panel.start.click()
    assert "There are no two runs yet" in panel.error_text
    run = record(1)
    panel.session.history.add(run)
    with pytest.raises(ValueError, match="with itself"):
        panel.begin(run, run)


@pytest.mark.filterwarnings("ignore:generation was stopped")
def test_two_settings_are_rendered_with_one_seed_and_the_engine_is_as_before(panel: ListeningPanel, small_engine: Any) -> None:
    panel.form.source.value = "settings"
    panel.form.text.value = "One."
    first, second = (side.menus["precision"].value for side in panel.form.sides)
    assert (first, second) == ("fp32", "bf16"), "there is something to hear from the start"
    panel.form.sides[1].menus["precision"].value = first
    panel.render.click()
    assert "the same: change at least one" in panel.error_text
    for side, precision in zip(panel.form.sides, ("fp32", "bf16"), strict=True):
        side.menus["precision"].value = precision
        side.menus["num_beams"].value = 1
        side.menus["diffusion_steps"].value = 2
    options = [value for _, value in panel.form.sides[0].menus["precision"].options]
    assert options == ["fp32", "bf16"], "what this machine cannot do is not offered"
    panel.render.click()
    wait_for(lambda: panel.records is not None and not panel.session.busy, 60)
    first, second = panel.records
    assert (first.settings["precision"], second.settings["precision"]) == ("fp32", "bf16")
    assert first.telemetry.seed == second.telemetry.seed == 1
    assert first.settings["num_beams"] == 1
    assert (first.label, second.label) == ("precision fp32", "precision bf16")
    assert small_engine.precision == "fp32"
    assert len(panel.session.history) == 2


def test_cancelling_and_closing(panel: ListeningPanel, small_engine: Any) -> None:
    panel.form.source.value = "settings"
    panel.form.sides[1].menus["precision"].value = "bf16"
    panel.render.click()
    panel.cancel.click()
    wait_for(lambda: not panel.session.busy, 60)
    wait_for(lambda: "Cancelled" in panel.status.value)
    assert (small_engine.precision, panel.render.disabled, panel.error_text) == ("fp32", False, "")
    panel.close()
    panel.session.history.add(record(1))
    assert panel.first.comm is None
