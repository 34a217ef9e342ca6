"""The switches panel: a control that shows another state than the engine's, or hides why it is grey, teaches the wrong thing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from widgets.switches import SwitchesPanel


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def panel(lab_session: Any) -> Iterator[SwitchesPanel]:
    made = SwitchesPanel(lab_session)
    yield made
    wait_for(lambda: not made.changing)
    made.close()


def test_what_this_machine_cannot_do_is_disabled_with_the_reason(panel: SwitchesPanel) -> None:
    precision = panel.rows["precision"].control
    assert precision._buttons["fp16"].disabled
    assert not precision._buttons["bf16"].disabled
    assert "not supported on the CPU" in precision._buttons["fp16"].tooltip
    assert "float16: is not supported on the CPU" in panel.rows["precision"].words.value
    assert panel.rows["cuda_graphs"].control._buttons["True"].disabled
    assert "needs a CUDA GPU" in panel.rows["cuda_graphs"].words.value


def test_turning_a_control_turns_the_engine_in_the_background(panel: SwitchesPanel, small_engine: Any) -> None:
    control = panel.rows["precision"].control
    control._buttons["bf16"].value = True
    wait_for(lambda: not panel.changing)
    assert small_engine.precision == "bf16"
    assert "recommended: float32" in panel.rows["precision"].label.value
    assert not panel.best.disabled
    panel.best.click()
    wait_for(lambda: not panel.changing and small_engine.precision == "fp32")
    assert control.value == "fp32"
    assert panel.best.disabled
    assert panel.error_text == ""


def test_sizes_change_what_calls_default_to(panel: SwitchesPanel, small_engine: Any) -> None:
    before = small_engine.cfg.inference.num_beams
    panel.rows["num_beams"].control.value = 5
    wait_for(lambda: not panel.changing and small_engine.cfg.inference.num_beams == 5)
    panel.rows["num_beams"].control.value = before
    wait_for(lambda: not panel.changing and small_engine.cfg.inference.num_beams == before)


def test_a_busy_engine_says_so_and_locks_what_cannot_be_undone(panel: SwitchesPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    hold = threading.Event()
    monkeypatch.setattr("widgets.switches.set_switch", lambda *_: hold.wait(10))
    panel.rows["precision"].control._buttons["bf16"].value = True
    assert panel.changing
    assert "Changing Precision" in panel.status.value
    assert all(button.disabled for button in panel.rows["attention"].control._buttons.values())
    hold.set()
    wait_for(lambda: not panel.changing)
    assert not panel.rows["attention"].control._buttons["math"].disabled
    assert panel.rows["attention"].control._buttons["flash"].disabled
    assert panel.rows["precision"].control.value == "fp32", "what the engine is, not what was asked for"


def test_failures_are_words_and_the_control_goes_back(panel: SwitchesPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA graphs could not be captured")

    monkeypatch.setattr("widgets.switches.set_switch", fail)
    panel.turn("precision", "bf16")
    wait_for(lambda: not panel.changing)
    assert panel.error_text == "CUDA graphs could not be captured."
    assert panel.rows["precision"].control.value == "fp32"


def test_it_follows_changes_made_in_python_and_ends_with_close(panel: SwitchesPanel, small_engine: Any, lab_session: Any) -> None:
    small_engine.set_attention("math")
    lab_session.run(lambda progress: None).wait(10)
    wait_for(lambda: panel.rows["attention"].control.value == "math")
    assert panel._repr_mimebundle_() == panel._repr_mimebundle_()
    panel.close()
    small_engine.set_attention("auto")
    lab_session.run(lambda progress: None).wait(10)
    assert panel.rows["attention"].control.value == "math", "closed: it follows no more"
