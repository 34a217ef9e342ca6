"""The lab in JupyterLab, from the first cell to the last click."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.pages import SLOW_MS, TABS, LabPage

MAKE = """import warnings
warnings.simplefilter("ignore")
from indextts import IndexTTS2
from widgets import Lab

tts = IndexTTS2.from_random("small", device="cpu")
lab = Lab(tts)
lab"""
CLOSE = """import threading
lab.close()
tts.close()
print("timers left:", sum(thread.name.startswith("indextts-ticker") for thread in threading.enumerate()))"""


@pytest.fixture(scope="module")
def lab(browser: Any, jupyter: tuple[str, str, Path]) -> Iterator[LabPage]:
    """A notebook whose first cell has been run; what the tests below do to it adds up."""
    address, token, folder = jupyter
    cells = [
        {"cell_type": "code", "execution_count": None, "id": f"c{i}", "metadata": {}, "outputs": [], "source": source}
        for i, source in enumerate((MAKE, CLOSE))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "lab.ipynb").write_text(json.dumps(notebook))
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    made = LabPage(page)
    page.goto(f"{address}/doc/tree/lab.ipynb?token={token}")
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    run_cell(page, 0)
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.first.inner_text()
    page.locator(".itl-tabs").first.wait_for()
    yield made
    page.close()


def run_cell(page: Any, place: int) -> None:
    """Press Ctrl+Enter in a cell, again if the notebook was still connecting to its kernel, and wait until it has run."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(place)
    deadline, pressed = time.monotonic() + SLOW_MS / 1000, -10.0
    while not re.search(r"\d", prompt := cell.locator(".jp-InputPrompt").inner_text()):
        assert time.monotonic() < deadline, f"the cell does not run: {prompt}"
        if "*" not in prompt and time.monotonic() - pressed > 5:
            pressed = time.monotonic()
            cell.locator(".cm-content").click()
            page.keyboard.press("Control+Enter")
        page.wait_for_timeout(300)


def test_speech_is_generated_and_can_be_heard(lab: LabPage) -> None:
    lab.generate("One two three.")
    sound = lab.heard()
    assert sound["seconds"] > 0.2
    assert 0.001 < sound["peak"] <= 1.0
    assert "RTF" in lab.page.locator(".itl-caption").locator("visible=true").first.inner_text()


def test_timing_shows_each_run(lab: LabPage) -> None:
    lab.tab("Timing")
    lab.wait_for_figure("figures.length === 2 && figures[0].lengths[0] === 1 && figures[0].drawn > 0")
    assert lab.figures()[0]["names"][:4] == ["GPT", "S2Mel", "Vocoder", "Other"]
    lab.generate("Four five six.")
    lab.tab("Timing")
    lab.wait_for_figure("figures[0]?.lengths[0] === 2 && figures[1]?.drawn >= 3")
    assert lab.page.locator(".itl-data tbody tr").locator("visible=true").count() == 2


def test_memory_moves_while_it_is_watched(lab: LabPage) -> None:
    lab.tab("Memory")
    lab.wait_for_figure("figures.length === 1 && figures[0].lengths[0] >= 2 && figures[0].names.includes('run began')")
    before = lab.figures()[0]["lengths"][0]
    lab.wait_for_figure(f"figures[0].lengths[0] >= {before + 2}")
    lab.button("Pause").click()
    lab.button("Resume").wait_for()


def test_precision_is_switched_with_a_click(lab: LabPage) -> None:
    lab.tab("Switches")
    assert lab.button("float16").is_disabled()
    assert "not supported on the CPU" in lab.page.locator(".itl-switch", has_text="Precision").first.inner_text()
    lab.button("bfloat16").click()
    lab.header("bf16")
    lab.generate("Seven eight.")
    lab.tab("Switches")
    lab.button("float32").click()
    lab.header("fp32")


def test_blind_listening_goes_to_the_reveal(lab: LabPage) -> None:
    lab.tab("Listening")
    lab.button("Compare these runs").click()
    votes = lab.page.locator(".itl-listening .itl-votes").first
    votes.locator("button:enabled").first.wait_for()
    listening = lab.page.locator(".itl-listening").first
    names = re.compile(r"A was \d+ · run \d+")
    assert not names.search(listening.inner_text())
    play = listening.locator(".a-main").locator("visible=true").first
    play.click()
    listening.get_by_role("button", name="Hear B").click()
    listening.locator("button[aria-label='Hear B'][aria-pressed=true]").wait_for()
    for number, key in enumerate("abs", 2):
        lab.page.keyboard.press("2" if key == "b" else "1")  # hear one, then answer, all by key
        lab.page.keyboard.press(key)
        listening.get_by_text(f"Trial {number};").wait_for()
    assert lab.page.locator(".jp-Notebook .jp-Cell").count() == 2, "JupyterLab's own shortcuts stay out of it"
    lab.button("Reveal").click()
    lab.wait_for_figure("figures.filter((figure) => figure.types[0] === 'heatmap' && figure.drawn).length === 3")
    text = listening.inner_text()
    assert names.search(text)
    assert "p = " in text
    assert votes.locator("button:enabled").count() == 0


def test_requests_are_queued_to_workers(lab: LabPage) -> None:
    lab.tab("Workers")
    lab.button("Queue all lines").click()
    rows = "[...document.querySelectorAll('.itl-data tbody tr')].filter((row) => row.offsetParent && /done/.test(row.innerText))"
    lab.page.wait_for_function(f"() => {rows}.length >= 3")


def test_photographs(lab: LabPage, photographs: Path | None) -> None:
    if photographs is None:
        pytest.skip("set INDEXTTS_SCREENSHOTS to a folder for photographs of every panel")
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        lab.page.evaluate("(theme) => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        lab.page.wait_for_function("(theme) => document.body.dataset.jpThemeName === theme", arg=theme)
        for width in (1280, 1920):
            lab.page.set_viewport_size({"width": width, "height": 2400})
            for name in TABS:
                lab.tab(name)
                lab.page.wait_for_timeout(1200)
                lab.photograph(photographs, f"{theme.split()[1].lower()}-{width}-{name.replace(' ', '-').lower()}")
    assert len(list(photographs.glob("*.png"))) >= 4 * len(TABS)


def test_a_long_run_is_cancelled(lab: LabPage) -> None:
    lab.tab("Synthesis")
    runs = "() => document.querySelectorAll('.itl-data tbody tr').length"
    before = lab.page.evaluate(runs)
    lab.page.locator(".itl-panel textarea").locator("visible=true").first.fill("The ferry came in at seven. " * 200)
    lab.page.keyboard.press("Tab")
    lab.button("Generate").click()
    lab.header("working")
    lab.button("Cancel").click()
    lab.header("idle")
    assert "Cancelled" in lab.page.locator(".itl-status").locator("visible=true").first.inner_text()
    assert lab.page.evaluate(runs) == before


def test_closing_ends_everything(lab: LabPage) -> None:
    run_cell(lab.page, 1)
    lab.page.get_by_text("timers left: 0").wait_for(timeout=SLOW_MS)
    lab.page.wait_for_function("() => !document.querySelector('.itl-tabs')")
    assert lab.problems == []
    assert [url for url in lab.strangers if "jupyter" not in url] == []
