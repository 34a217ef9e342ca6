"""Panels' common life: timers that outlive a panel, or errors as tracebacks, are what a user would see."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

import widgets
from widgets.base import PALETTE, Panel, Ticker, group, on_loop, words
from widgets.session import Session

ROOT = Path(__file__).resolve().parents[2]


class Counting(Panel):
    """Counts its ticks and what it hears."""

    title = "Counting"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.ticks = self.heard = 0
        self.inner = group("A <group>")
        self.set_content(self.inner)
        self.own(session.history.subscribe(self.hear))
        self.ticker = self.every(0.5, self.tick)

    def tick(self) -> None:
        self.ticks += 1

    def hear(self) -> None:
        self.heard += 1


def test_importing_the_package_is_light() -> None:
    code = "import sys, widgets; print(*[name for name in ('torch', 'ipywidgets', 'plotly', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == ""
    assert widgets.Panel is Panel
    assert set(widgets.__all__) == set(widgets._HOMES)
    with pytest.raises(AttributeError, match="NoPanel"):
        _ = widgets.NoPanel


def test_close_stops_timers_and_subscriptions(session: Session) -> None:
    panel = Counting(session)
    deadline = time.monotonic() + 5
    while panel.ticks == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    session.history.clear()
    assert (panel.ticks > 0, panel.heard) == (True, 1)
    comms = [panel, panel.inner, *panel.inner.children]
    panel.close()
    panel.close()
    ticks = panel.ticks
    session.history.clear()
    time.sleep(0.7)
    assert (panel.ticks, panel.heard) == (ticks, 1)
    assert all(widget.comm is None for widget in comms), "closed widgets must leave the page's memory too"
    assert not session.closed


def test_showing_again_shows_the_present_state(session: Session) -> None:
    panel = Counting(session)
    view = "application/vnd.jupyter.widget-view+json"
    first = panel._repr_mimebundle_()[view]
    panel.show_error("nothing to say")
    assert panel._repr_mimebundle_()[view] == first, "the same model, hence the same state"
    assert panel.error_text == "nothing to say"
    panel.close()


def test_errors_are_words(session: Session) -> None:
    panel = Counting(session)
    panel.show_error(ValueError("the text is <empty>"))
    assert panel.error_text == "The text is <empty>."
    assert "&lt;empty&gt;" in panel._error.value
    assert 'role="alert"' in panel._error.value
    panel.clear_error()
    assert panel._error.value == panel.error_text == ""
    panel.close()
    assert words(FileNotFoundError(2, "No such file", "a.wav")) == "No such file: a.wav."
    assert words(KeyError("there is no run 3")) == "There is no run 3."
    assert words(RuntimeError()) == "RuntimeError."


def test_ticks_come_on_the_loop_and_never_pile_up(kernel: Any) -> None:
    seen: list[threading.Thread] = []
    busy = threading.Event()
    ticker = Ticker(0.5, lambda: (seen.append(threading.current_thread()), busy.wait(1.6)))
    kernel.cell(ticker.start)
    kernel.cell(ticker.start)
    time.sleep(2.3)  # the loop is blocked from 0.5 to 2.1 s: what fell due meanwhile is made up for once at most
    ticker.stop()
    busy.set()
    assert set(seen) == {kernel.thread}
    assert len(seen) <= 2
    with pytest.raises(ValueError, match="twice a second"):
        Ticker(0.1, print)


def test_a_forgotten_panel_takes_its_timer_along() -> None:
    class Owner:
        def tick(self) -> None:
            raise AssertionError

    owner = Owner()
    ticker = Ticker(0.5, owner.tick)
    ticker.start()
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
    time.sleep(0.7)
    assert not ticker.running


def test_on_loop_from_any_thread(kernel: Any) -> None:
    where: list[threading.Thread] = []
    on_loop(lambda: where.append(threading.current_thread()))
    kernel.cell(lambda: Session(None).close())  # type: ignore[arg-type]
    done = threading.Event()
    on_loop(lambda: (where.append(threading.current_thread()), done.set()))
    assert done.wait(5)
    kernel.close()
    on_loop(lambda: where.append(threading.current_thread()))
    assert where[0] is where[2] is threading.current_thread()
    assert where[1] is not where[0]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_can_be_seen_in_both_themes() -> None:
    for name, colour in PALETTE.items():
        light, dark = 1.05 / (luminance(colour) + 0.05), (luminance(colour) + 0.05) / (luminance("#111111") + 0.05)
        assert min(light, dark) >= 3, f"{name} {colour}: contrast {light:.1f} on white, {dark:.1f} on dark"
