"""Make the lessons' notebooks from their sources: ``python notebooks/build.py [NAME ...]``.

``src/NN_name.py`` holds a lesson as text (jupytext's percent format), which is what is edited and what diffs show. This script runs it in a
fresh kernel and writes ``NN_name.ipynb`` with its outputs. An error, a warning or a path of this machine in an output stops it.
Plots also get a picture for readers without Plotly (GitHub's viewer) if ``playwright`` and a Chromium are there.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

logger = logging.getLogger("build")
FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "src"
TIMEOUT_S = 120
MOST_BYTES = 900_000  # of one notebook
PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
_LIVE_ONLY = "<p><i>A panel with a kernel behind it: run this cell to use it.</i></p>"
_PICTURE_WIDTH = 760


def sources(names: list[str] | None = None) -> list[Path]:
    """The sources of the lessons, in order; with ``names`` those whose file names begin with one of them.

    Errors: ``ValueError`` for a name that fits no lesson.
    """
    every = sorted(SOURCES.glob("[0-9][0-9]_*.py"))
    unknown = [name for name in names or [] if not any(path.stem.startswith(name) for path in every)]
    if unknown:
        raise ValueError(f"no lesson is called {', '.join(unknown)}; there are: {', '.join(path.stem for path in every)}")
    return [path for path in every if not names or path.stem.startswith(tuple(names))]


def read(source: Path) -> Any:
    """A lesson as a notebook without outputs."""
    notebook = jupytext.read(source)
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:02d}"  # not random, so that builds do not differ
        cell["metadata"] = {}
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def execute(source: Path, timeout_s: int = TIMEOUT_S) -> Any:
    """Run a lesson from top to bottom in a kernel of its own. Errors: ``CellExecutionError`` where a cell fails or takes too long."""
    notebook = read(source)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")])),
    }
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
    )
    # No debugger: it is slow to start, and complains on some Pythons.
    client.execute(env={**environment, "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    return notebook


def complaints(notebook: Any) -> list[str]:
    """What must not be in a finished lesson: errors, warnings, paths of the machine it ran on."""
    found = []
    places = {str(FOLDER.parent), str(Path.home()), sys.prefix}
    for cell, output in outputs(notebook):
        text = readable(json.dumps(output))
        if output["output_type"] == "error":
            found.append(f"{cell['id']}: {output['ename']}: {output['evalue']}")
        if output.get("name") == "stderr":
            found.append(f"{cell['id']} wrote to stderr: {output['text'][:200]!r}")
        found += [f"{cell['id']} shows the path {place}" for place in places if len(place) > 1 and place in text]
    return found


def readable(text: str) -> str:
    """``text`` without pictures and sound, in whose letters any short path may occur."""
    return re.sub(r"[A-Za-z0-9+/]{120,}={0,2}", "", text)


def outputs(notebook: Any) -> Iterator[tuple[Any, Any]]:
    """All (cell, output) of a notebook."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield cell, output


def tidy(notebook: Any) -> Any:
    """Keep what reads well without a kernel: widgets give way to their HTML, times of execution go."""
    for cell in notebook.cells:
        cell["metadata"] = {}
    for _, output in outputs(notebook):
        data = output.get("data", {})
        if WIDGET in data:
            del data[WIDGET]
            data.setdefault("text/html", _LIVE_ONLY)
        if str(data.get("text/plain", "")).startswith("<") or (data.get("text/html") == _LIVE_ONLY):
            data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", str(data.get("text/plain", "")))[:200]
    notebook.metadata.pop("widgets", None)
    return notebook


def add_pictures(notebook: Any) -> None:
    """Draw every Plotly figure in a headless Chromium and keep it as PNG beside the figure."""
    figures = [output["data"] for _, output in outputs(notebook) if PLOTLY in output.get("data", {})]
    if not figures:
        return
    from playwright.sync_api import sync_playwright
    from plotly.offline import get_plotlyjs

    with sync_playwright() as playwright:
        installed = shutil.which("chromium") or shutil.which("google-chrome")  # else playwright's own
        browser = playwright.chromium.launch(executable_path=installed, chromium_sandbox=False)
        page = browser.new_page()
        page.set_content("<div id='plot'></div>")
        page.add_script_tag(content=get_plotlyjs())
        for data in figures:
            figure = data[PLOTLY]
            size = {
                "format": "png",
                "width": _PICTURE_WIDTH,
                "height": figure["layout"].get("height", 320),
            }
            url = page.evaluate(
                "([figure, size]) => Plotly.toImage({data: figure.data, layout: figure.layout}, size)",
                [figure, size],
            )
            data["image/png"] = url.split(",", 1)[1]
            assert base64.b64decode(data["image/png"])[:4] == b"\x89PNG"
        browser.close()


def in_step(source: Path) -> bool:
    """Whether the committed notebook has the cells of its source."""
    target = FOLDER / f"{source.stem}.ipynb"
    if not target.is_file():
        return False
    built = nbformat.read(target, as_version=4)
    return [(cell["cell_type"], cell["source"]) for cell in built.cells] == [
        (cell["cell_type"], cell["source"]) for cell in read(source).cells
    ]


def take_over_text(source: Path) -> bool:
    """Bring the text of a built notebook up to date without running it; False if code has changed too, so that outputs would not fit."""
    target = FOLDER / f"{source.stem}.ipynb"
    if not target.is_file():
        return False
    built, wanted = nbformat.read(target, as_version=4), read(source)
    code = [[cell["source"] if cell["cell_type"] == "code" else "" for cell in notebook.cells] for notebook in (built, wanted)]
    if code[0] != code[1]:
        return False
    for cell, new in zip(built.cells, wanted.cells, strict=True):
        cell["source"] = new["source"]
    target.write_text(nbformat.writes(built) + "\n", encoding="utf-8")
    return True


def build(source: Path, pictures: bool) -> Path:
    """Run a lesson and write its notebook. Errors: ``RuntimeError`` that lists what is wrong with its outputs; nothing is written then."""
    notebook = execute(source)
    wrong = complaints(notebook)
    if wrong:
        raise RuntimeError(f"{source.stem}: " + "; ".join(wrong))
    tidy(notebook)
    if pictures:
        add_pictures(notebook)
    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    if len(text) > MOST_BYTES:
        raise RuntimeError(f"{source.stem} would take {len(text)} bytes, more than {MOST_BYTES}; shorten its sounds or thin out its plots")
    target = FOLDER / f"{source.stem}.ipynb"
    target.write_text(text, encoding="utf-8")
    return target


def main() -> int:
    """Build the lessons named on the command line, or all."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of lesson names, such as 03 (default: all)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="run nothing: only say which notebooks differ from their sources",
    )
    parser.add_argument("--text", action="store_true", help="run nothing: take over changed text where the code is the same")
    parser.add_argument("--no-pictures", action="store_true", help="leave out the pictures of the plots")
    options = parser.parse_args()
    try:
        chosen = sources(options.names)
    except ValueError as error:
        parser.error(str(error))
    if options.text:
        chosen = [source for source in chosen if not take_over_text(source)]
        if chosen:
            logger.error("code has changed too: %s", ", ".join(source.stem for source in chosen))
        return int(bool(chosen))
    if options.check:
        stale = [source.stem for source in chosen if not in_step(source)]
        if stale:
            logger.error(
                "not in step with their sources: %s; run: python notebooks/build.py %s",
                ", ".join(stale),
                " ".join(stale),
            )
        return int(bool(stale))
    for source in chosen:
        begin = time.perf_counter()
        target = build(source, not options.no_pictures)
        logger.info(
            "%s: %.0f s, %d kB",
            target.name,
            time.perf_counter() - begin,
            target.stat().st_size // 1000,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
