"""Charts: a wrong number, an axis without a unit, or a figure Plotly refuses is what a reader would be misled by."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("plotly", reason="the lab extra is not installed")

from tests.widgets.runs import RATE, record
from widgets.base import PALETTE
from widgets.plots import bench_bars, memory_lines, stage_bars, timeline
from widgets.plots_sound import band_of, difference_image, mel_image, wave_lines


def runs(*rtfs: float) -> list[dict[str, Any]]:
    found = []
    for number, rtf in enumerate(rtfs, 1):
        telemetry = record(number, rtf).telemetry
        times = {f"{stage}_s": getattr(telemetry, f"{stage}_s") for stage in ("gpt", "s2mel", "bigvgan", "other", "total")}
        found.append({"id": number, "label": f"run {number}", "rtf": rtf, **times})
    return found


def readings(count: int = 5, **more: Any) -> list[dict[str, Any]]:
    caches = {"voices": 2.0, "KV buffers": 30.0, "graph pools": 0.0, "solver tables": 0.5}
    return [{"time_s": 100.0 + i, "process_mb": 900.0 + i, "caches_mb": caches, "limit_mb": 2048.0, **more} for i in range(count)]


def bench_rows() -> list[dict[str, Any]]:
    stages = {"gpt": 1.0, "s2mel": 0.5, "bigvgan": 0.3, "other": 0.2}
    slow = {"label": "plain path", "total_s": 2.0, "audio_s": 4.0, "rtf": 0.5, "stages_s": stages}
    return [slow, {**slow, "label": "4 at once", "total_s": 2.0, "audio_s": 16.0, "rtf": 0.125}]


MEL = np.linspace(-90, 0, 80 * 1000, dtype=np.float32).reshape(80, 1000)
DEVICE = {"device_used_mb": 5000.0, "device_total_mb": 8000.0, "allocated_mb": 3000.0, "reserved_mb": 3500.0}
MARKS = [{"time_s": 101.0, "kind": "run", "text": "run 1 began"}, {"time_s": 103.0, "kind": "eviction", "text": "2 prompts evicted"}]
FIGURES: dict[str, Any] = {
    "bars": lambda: stage_bars(runs(1.0, 0.5), base=1),
    "no bars": lambda: stage_bars([]),
    "timeline": lambda: timeline(record(1).telemetry.to_dict()),
    "no timeline": lambda: timeline({}),
    "memory": lambda: memory_lines(readings(), MARKS),
    "device memory": lambda: memory_lines(readings(**DEVICE), MARKS),
    "no memory": lambda: memory_lines([]),
    "bench": lambda: bench_bars(bench_rows()),
    "mel": lambda: mel_image(MEL, RATE, "run 1"),
    "difference": lambda: difference_image(MEL, MEL[:, :900] - 3, RATE),
    "wave": lambda: wave_lines(np.sin(np.arange(RATE)), RATE),
}


@pytest.mark.parametrize("name", FIGURES)
def test_plotly_accepts_every_figure_and_axes_have_units(name: str) -> None:
    import plotly.graph_objects as go

    figure = FIGURES[name]()
    go.Figure(figure)  # validates every property
    assert len(json.dumps(figure)) < 200_000
    layout = figure["layout"]
    assert layout["meta"]["words"]
    for key, axis in layout.items():
        if key.startswith(("xaxis", "yaxis")) and axis.get("visible", True):
            title = axis["title"]["text"]
            assert "(" in title or title in ("", "run", "amplitude"), (name, key, title)
    text = json.dumps(figure)
    assert "paper_bgcolor" not in text, "the page gives the background"
    assert '"color": "black"' not in text


def test_bars_show_the_stages_and_speed_up_per_second_of_sound() -> None:
    figure = stage_bars(runs(1.0, 0.25), base=1)
    by_name = {trace["name"]: trace for trace in figure["data"]}
    assert by_name["GPT"]["y"] == [0.5, 0.125]
    assert by_name["RTF (right axis)"]["y"] == [1.0, 0.25]
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["1x (base)", "4.00x"]
    assert [note["text"] for note in stage_bars(runs(1.0, 0.25))["layout"]["annotations"]] == ["1.00 s", "0.25 s"]
    assert len({trace["marker"]["pattern"]["shape"] for trace in figure["data"][:4]}) == 4, "told apart without colour"


def test_timeline_places_stages_on_the_runs_clock() -> None:
    telemetry = record(1, 1.0).telemetry.to_dict()
    bars = {trace["name"]: trace for trace in timeline(telemetry)["data"]}
    assert (bars["S2Mel"]["base"], bars["S2Mel"]["x"], bars["S2Mel"]["y"]) == ([0.51], [0.25], ["segment 1"])
    assert bars["Voice"]["y"] == ["voice"]
    several = {**telemetry, "requests": 2, "stages": [*telemetry["stages"], {**telemetry["stages"][1], "request": 1}]}
    assert "request 2, segment 1" in timeline(several)["data"][1]["y"]
    long_first = {**telemetry, "stages": [{**telemetry["stages"][1], "segment": 1}, *telemetry["stages"]]}
    assert timeline(long_first)["layout"]["yaxis"]["categoryarray"] == ["voice", "segment 1", "segment 2"], "in the text's order"


def test_memory_shows_limits_only_where_they_do_not_flatten_the_curves() -> None:
    far, near = memory_lines(readings(limit_mb=2048.0)), memory_lines(readings(limit_mb=40.0))
    assert any("above this scale" in note["text"] for note in far["layout"]["annotations"])
    assert [shape["y0"] for shape in near["layout"]["shapes"] if shape.get("yref") == "y2"] == [40.0]
    device = memory_lines(readings(**DEVICE), MARKS)
    names = [trace["name"] for trace in device["data"]]
    assert {"device, all processes", "reserved by torch", "cache: KV buffers", "run began", "eviction"} <= set(names)
    assert "cache: graph pools" not in names, "nothing there"
    assert "process (RSS)" in [trace["name"] for trace in far["data"]]
    assert any(trace.get("x") == [1.0] and trace["name"] == "run began" for trace in device["data"])


def test_bench_compares_time_per_second_of_sound() -> None:
    assert "4.00x" in bench_bars(bench_rows())["layout"]["annotations"][1]["text"]


def test_long_spectrograms_become_few_columns_over_the_same_time() -> None:
    trace = mel_image(MEL, RATE)["data"][0]
    assert len(trace["z"][0]) <= 360
    assert len(trace["z"][0]) * trace["dx"] == pytest.approx(1000 * 256 / RATE, rel=0.01)
    assert np.asarray(trace["z"]).min() >= MEL.max() - 80
    assert np.asarray(difference_image(MEL, MEL, RATE)["data"][0]["z"]).any() == False  # noqa: E712
    assert np.asarray(difference_image(MEL + 5, MEL, RATE)["data"][0]["z"]).min() > 0


def test_frequencies_stand_where_the_filters_are() -> None:
    torch = pytest.importorskip("torch")
    from indextts.models.mel import slaney_filters

    filters = slaney_filters(RATE, 4096, 80, 0.0, torch.device("cpu"))
    for hertz in (500, 1000, 4000):
        assert band_of(hertz, 80, RATE) == pytest.approx(int(filters[:, round(hertz * 4096 / RATE)].argmax()), abs=1)


def test_colours_can_be_told_from_white_and_from_black() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name, colour in PALETTE.items():
        value = luminance(colour)
        assert 1.05 / (value + 0.05) >= 3, name
        assert (value + 0.05) / (luminance("#111111") + 0.05) >= 3, name
