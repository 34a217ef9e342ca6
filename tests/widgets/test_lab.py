"""The lab: one session for all panels, and nothing left running when it is closed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ipywidgets.widgets import widget as widget_module

import widgets
from tests.widgets.fake import VOICE, FakeTTS
from widgets.base import Panel
from widgets.lab import PANELS, Lab


class Plain(Panel):
    """A panel that remembers its session."""

    title = "Plain"


@pytest.fixture(autouse=True)
def simple_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other panels have tests of their own, and need more of an engine than the stand-in."""
    for name in PANELS[1:]:
        monkeypatch.setitem(widgets.__dict__, name, Plain)


def test_tabs_share_one_session(tts: FakeTTS) -> None:
    lab = Lab(tts)  # type: ignore[arg-type]
    assert next(iter(lab.panels)) == "SynthesisPanel"
    assert {panel.session for panel in lab.panels.values()} == {lab.session}
    assert [lab.tabs.get_title(i) for i in range(len(lab.tabs.children))] == [panel.title for panel in lab.panels.values()]
    for fact in ("fake", "cpu", "fp32", "idle"):
        assert fact in lab.header.value
    tts.hold.clear()
    task = lab.session.render(spk_audio_prompt=VOICE, text="Hello.")
    assert tts.entered.wait(5)
    lab.refresh()
    assert "working" in lab.header.value
    tts.precision = "bf16"
    tts.hold.set()
    assert task.wait(5)
    lab.refresh()
    assert "bf16" in lab.header.value
    lab.close()


def test_close_ends_threads_and_widgets(tts: FakeTTS) -> None:
    before, open_before = set(threading.enumerate()), set(widget_module._instances)
    lab = Lab(tts)  # type: ignore[arg-type]
    tts.hold.clear()
    task = lab.panels["SynthesisPanel"].generate()  # type: ignore[attr-defined]
    assert tts.entered.wait(5)
    lab.close()
    lab.close()
    assert task.state == "cancelled"
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
    assert set(threading.enumerate()) <= before
    left = [widget for key, widget in widget_module._instances.items() if key not in open_before]
    assert left == [], "also what was not on display, such as the upload while the recorder was"


def test_unknown_panels_are_refused(tts: Any) -> None:
    with pytest.raises(ValueError, match="no panel NoPanel"):
        Lab(tts, panels=("NoPanel",))
