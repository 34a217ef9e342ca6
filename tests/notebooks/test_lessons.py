"""Every lesson runs from top to bottom, shows what it promises, and the committed notebooks are those of the sources."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("plotly")

REPOSITORY = Path(__file__).resolve().parents[2]


def _load_builder():
    spec = importlib.util.spec_from_file_location("notebooks_build", REPOSITORY / "notebooks" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_builder()
LESSONS = build.sources()
WITH_SOUND = ("00", "01", "03", "13")
PARTS = ("**Question:", "## Predict", "## Measure", "## Conclude", "**When it does not help:**", "## Exercises", "## What must hold")


def prose(source: Path) -> str:
    return "\n".join(cell["source"] for cell in build.read(source).cells if cell["cell_type"] == "markdown")


def test_all_sixteen_lessons_are_there():
    assert [path.stem[:2] for path in LESSONS] == [f"{number:02d}" for number in range(16)]


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_lesson_has_the_parts_of_a_lesson(source):
    text = prose(source)
    for part in PARTS:
        assert text.count(part) == 1, part
    assert text.count("<details><summary>Answer</summary>") == text.count("</details>") == 2
    position = [text.index(part) for part in PARTS[:4]]
    assert position == sorted(position)


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_cells_are_short(source):
    for cell in build.read(source).cells:
        if cell["cell_type"] == "code":
            assert len(cell["source"].splitlines()) <= 13, cell["source"]


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_committed_notebook_is_in_step_with_its_source(source):
    assert build.in_step(source), f"run: python notebooks/build.py {source.stem}"


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_committed_notebook_is_complete_and_clean(source):
    path = build.FOLDER / f"{source.stem}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert build.complaints(notebook) == []
    check_outputs(notebook, source)
    assert path.stat().st_size <= build.MOST_BYTES
    text = build.readable(path.read_text(encoding="utf-8"))
    assert not re.search(r"(/home/|/root/|/Users/|/tmp/|C:\\\\)\w", text), "a path of somebody's machine"
    assert "Plotly.newPlot" not in text
    assert build.WIDGET not in text, "a widget that nobody can load"


def test_notebooks_are_small_together():
    assert sum(path.stat().st_size for path in build.FOLDER.glob("*.ipynb")) < 6_000_000


@pytest.mark.parametrize("source", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs_from_top_to_bottom(source):
    notebook = build.execute(source)
    assert build.complaints(notebook) == []
    check_outputs(notebook, source)


def test_changed_text_is_taken_over_and_changed_code_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    source = tmp_path / "00_x.py"
    source.write_text("# %% [markdown]\n# old words\n\n# %%\n1 + 1\n")
    notebook = build.read(source)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(notebook, tmp_path / "00_x.ipynb")
    assert build.in_step(source)

    source.write_text(source.read_text().replace("old words", "new words"))
    assert not build.in_step(source)
    assert build.take_over_text(source)
    assert build.in_step(source)
    assert nbformat.read(tmp_path / "00_x.ipynb", as_version=4).cells[1].outputs[0]["text"] == "2"

    source.write_text(source.read_text().replace("1 + 1", "1 + 2"))
    assert not build.take_over_text(source)
    assert not build.in_step(source)


def test_what_must_not_be_in_an_output_is_found(tmp_path):
    source = tmp_path / "00_x.py"
    source.write_text("# %%\n1 + 1\n")
    notebook = build.read(source)
    assert build.complaints(notebook) == []
    notebook.cells[0].outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        nbformat.v4.new_output("stream", name="stdout", text=f"{REPOSITORY}/x"),
        nbformat.v4.new_output("error", ename="ValueError", evalue="bad"),
    ]
    found = "; ".join(build.complaints(notebook))
    assert "stderr" in found
    assert f"shows the path {REPOSITORY}" in found
    assert "ValueError: bad" in found


def check_outputs(notebook, source):
    """Figures that Plotly accepts, and sound where the lesson is about listening."""
    import plotly.graph_objects as go

    from widgets.lessons.sound import decoded

    bundles = [output.get("data", {}) for _, output in build.outputs(notebook)]
    figures = [bundle[build.PLOTLY] for bundle in bundles if build.PLOTLY in bundle]
    assert figures, "no plot"
    for figure in figures:
        go.Figure({"data": figure["data"], "layout": figure["layout"]})  # refuses unknown properties and values
        assert all(len(trace.get("y", trace.get("z", [])) or []) for trace in figure["data"]), "an empty curve"
        axes = [axis for name, axis in figure["layout"].items() if name.startswith(("xaxis", "yaxis"))]
        assert any(axis["title"]["text"] for axis in axes), "an axis without a unit"
    clips = [clip for bundle in bundles for clip in decoded("".join(bundle.get("text/html", "")))]
    if source.stem.startswith(WITH_SOUND):
        assert clips
    for samples, rate in clips:
        assert rate == 22050
        assert len(samples) > rate // 5
        assert samples.any(), "silence"


def test_recorded_figures_say_how_they_were_measured():
    from widgets.lessons.records import KEYS, data_folder, recorded

    files = sorted(data_folder().glob("*.json"))
    assert files
    for path in files:
        assert set(KEYS) <= set(json.loads(path.read_text(encoding="utf-8")))
        assert recorded(path.stem).rows
