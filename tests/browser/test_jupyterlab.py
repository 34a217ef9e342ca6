"""The first lesson and its lab in JupyterLab, from the first cell to the last click."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.pages import SLOW_MS, TABS, LabPage

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "00_quick_start.ipynb"
CLOSE = """import threading
lab.close()
tts.close()
print("timers left:", sum(thread.name.startswith("indextts-ticker") for thread in threading.enumerate()))"""

# Runs cells as the menu does. JupyterLab takes cells that are out of sight out of the page, so one must be scrolled to first.
RUN = """async ({ command, place }) => {
  const panel = jupyterapp.shell.currentWidget;
  await panel.sessionContext.ready;
  panel.content.activeCellIndex = place;
  await panel.content.scrollToItem(place, "start");
  await jupyterapp.commands.execute(command);
}"""
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.map((cell) => ({ code: cell.model.type === "code",
  source: cell.model.sharedModel.getSource(), count: cell.model.executionCount ?? null,
  failed: cell.model.type === "code" && cell.model.outputs.toJSON().some((output) => output.output_type === "error") }))"""


@pytest.fixture(scope="module")
def lab(browser: Any, jupyter: tuple[str, str, Path]) -> Iterator[LabPage]:
    """The first lesson, run from top to bottom, at its lab; what the tests below do to it adds up."""
    address, token, folder = jupyter
    notebook = json.loads(LESSON.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    close = {"cell_type": "code", "execution_count": None, "id": "close", "metadata": {}, "outputs": [], "source": CLOSE}
    notebook["cells"].append(close)
    (folder / "lesson.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    made = LabPage(page)
    page.goto(f"{address}/doc/tree/lesson.ipynb?token={token}")
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    last = len(notebook["cells"]) - 1
    page.evaluate(RUN, {"command": "notebook:run-all-above", "place": last})
    cells = page.evaluate(CELLS)
    assert [cell["source"] for cell in cells if cell["failed"]] == []
    assert all(cell["count"] for cell in cells[:-1] if cell["code"]), "every cell of the lesson has run"
    place = next(i for i, cell in enumerate(cells) if "Lab(tts)" in cell["source"])
    page.evaluate("(place) => jupyterapp.shell.currentWidget.content.scrollToItem(place, 'start')", place)
    page.locator(".itl-tabs").first.wait_for()
    yield made
    page.close()


def cells_in(page: Any) -> int:
    return len(page.evaluate(CELLS))


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
    lab.watch_memory()


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
    before = cells_in(lab.page)
    lab.listen_to_the_reveal()
    assert cells_in(lab.page) == before, "JupyterLab's own shortcuts stay out of it"


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
    lab.cancel_a_long_run()


def test_closing_ends_everything(lab: LabPage) -> None:
    lab.page.evaluate(RUN, {"command": "notebook:run-cell", "place": cells_in(lab.page) - 1})
    lab.page.get_by_text("timers left: 0").wait_for(timeout=SLOW_MS)
    lab.page.wait_for_function("() => !document.querySelector('.itl-tabs')")
    assert lab.problems == []
    assert [url for url in lab.strangers if "jupyter" not in url] == []
