"""The switches panel: a control that shows another state than the engine's, or hides why it is grey, teaches the wrong thing."""

from __future__ import annotations

import threading
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


class Driven:
    """A panel on a kernel's loop, where its callbacks run as in a notebook; everything done to it happens there too."""

    def __init__(self, kernel: Any, session: Any) -> None:
        self.kernel, self.session = kernel, session
        self.panel: SwitchesPanel = kernel.cell(lambda: SwitchesPanel(session))

    def do(self, function: Callable[[SwitchesPanel], Any]) -> Any:
        return self.kernel.cell(lambda: function(self.panel))

    def settle(self) -> None:
        wait_for(lambda: self.do(lambda panel: panel._task is None and not self.session.busy))
        self.do(lambda panel: None)  # the last callback has had its turn


@pytest.fixture
def driven(kernel: Any, lab_session: Any) -> Iterator[Driven]:
    made = Driven(kernel, lab_session)
    yield made
    made.settle()
    made.do(lambda panel: panel.close())


def test_what_this_machine_cannot_do_is_disabled_with_the_reason(driven: Driven) -> None:
    rows = driven.panel.rows
    precision = rows["precision"].control
    assert precision._buttons["fp16"].disabled
    assert not precision._buttons["bf16"].disabled
    assert "not supported on the CPU" in precision._buttons["fp16"].tooltip
    assert "float16: is not supported on the CPU" in rows["precision"].words.value
    assert rows["cuda_graphs"].control._buttons["True"].disabled
    assert "needs a CUDA GPU" in rows["cuda_graphs"].words.value


def test_turning_a_control_turns_the_engine_in_the_background(driven: Driven, small_engine: Any) -> None:
    panel = driven.panel
    driven.do(lambda panel: setattr(panel.rows["precision"].control._buttons["bf16"], "value", True))
    driven.settle()
    assert small_engine.precision == "bf16"
    assert "recommended: float32" in panel.rows["precision"].label.value
    assert not panel.best.disabled
    driven.do(lambda panel: panel.best.click())
    driven.settle()
    assert (small_engine.precision, panel.rows["precision"].control.value) == ("fp32", "fp32")
    assert panel.best.disabled
    assert panel.error_text == ""


def test_sizes_change_what_calls_default_to(driven: Driven, small_engine: Any) -> None:
    before = small_engine.cfg.inference.num_beams
    for value in (5, before):
        driven.do(lambda panel, value=value: setattr(panel.rows["num_beams"].control, "value", value))
        driven.settle()
        assert small_engine.cfg.inference.num_beams == value


def test_a_busy_engine_says_so_and_locks_what_cannot_be_undone(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    monkeypatch.setattr("widgets.switches.set_switch", lambda *_: hold.wait(30))
    panel, attention = driven.panel, driven.panel.rows["attention"].control._buttons
    driven.do(lambda panel: setattr(panel.rows["precision"].control._buttons["bf16"], "value", True))
    assert panel.changing
    assert "Changing Precision" in panel.status.value
    assert all(button.disabled for button in attention.values())
    hold.set()
    driven.settle()
    assert not attention["math"].disabled
    assert attention["flash"].disabled
    assert panel.rows["precision"].control.value == "fp32", "what the engine is, not what was asked for"


def test_failures_are_words_and_the_control_goes_back(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA graphs could not be captured")

    monkeypatch.setattr("widgets.switches.set_switch", fail)
    driven.do(lambda panel: panel.turn("precision", "bf16"))
    driven.settle()
    assert driven.panel.error_text == "CUDA graphs could not be captured."
    assert driven.panel.rows["precision"].control.value == "fp32"


def test_it_follows_changes_made_in_python_and_ends_with_close(driven: Driven, small_engine: Any, lab_session: Any) -> None:
    panel = driven.panel
    small_engine.set_attention("math")
    lab_session.run(lambda progress: None).wait(60)
    driven.settle()
    assert panel.rows["attention"].control.value == "math"
    assert panel._repr_mimebundle_() == panel._repr_mimebundle_()
    driven.do(lambda panel: panel.close())
    small_engine.set_attention("auto")
    lab_session.run(lambda progress: None).wait(60)
    assert panel.rows["attention"].control.value == "math", "closed: it follows no more"
