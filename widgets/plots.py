"""The panels' charts: Plotly figures as pure functions of plain data.

A figure is a dict with ``data`` and ``layout``, so that nothing heavy is imported; colours of text and grid are left to the page. Every
axis has its unit, and ``layout.meta.words`` says in text what the chart shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from widgets.base import PALETTE

__all__ = ["Figure", "bench_bars", "memory_lines", "stage_bars", "timeline"]

Figure = dict[str, Any]
STAGES = {"gpt": "GPT", "s2mel": "S2Mel", "bigvgan": "Vocoder", "other": "Other"}
PATTERNS = {"gpt": "", "s2mel": "/", "bigvgan": "x", "other": "."}  # told apart without colour too
CACHE_COLOURS = {"voices": "#3b7dd8", "KV buffers": "#d9730d", "graph pools": "#1a936f", "solver tables": "#9b5de5"}
MARKS = {"run": ("triangle-up", "run began"), "eviction": ("x", "eviction"), "cleared": ("diamond", "caches cleared")}
LIMIT_IN_VIEW = 3.0  # a limit further above the curves than this would flatten them; it is written instead
MOST_SEGMENTS = 60


def figure(data: list[dict[str, Any]], words: str, *, height: int = 300, **layout: Any) -> Figure:
    """A figure with the look that all share."""
    base = {
        "height": height,
        "margin": {"l": 56, "r": 20, "t": 34, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "showlegend": bool(data),
        "meta": {"words": words},
    }
    return {"data": data, "layout": {**base, **layout}}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title, which names the unit."""
    return {"title": {"text": title, "standoff": 8, "font": {"size": 12}}, **more}


def empty(text: str, height: int = 300) -> Figure:
    """A figure that says in words why there is nothing to see."""
    note = {"text": text, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "font": {"size": 13}}
    return figure([], text, height=height, xaxis={"visible": False}, yaxis={"visible": False}, annotations=[note])


def stage_bars(runs: Sequence[Mapping[str, Any]], base: int | None = None, *, height: int = 320) -> Figure:
    """Seconds of every run by stage, stacked, with the RTF as a line on a second axis.

    ``runs``: dicts with ``id``, ``label``, ``gpt_s``, ``s2mel_s``, ``bigvgan_s``, ``other_s``, ``total_s``, ``rtf``. ``base``: id of the
    run that the others' speed-ups are said against.
    """
    if not runs:
        return empty("No runs yet: generate speech, and its times appear here.", height)
    names = [f"{run['id']} · {short(run['label'])}" for run in runs]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": label,
            "x": names,
            "y": rounded(run[f"{stage}_s"] for run in runs),
            "marker": {"color": PALETTE[stage], "pattern": {"shape": PATTERNS[stage], "fgopacity": 0.35, "size": 6, "fillmode": "overlay"}},
            "hovertemplate": f"{label}: %{{y:.3g}} s<extra>%{{x}}</extra>",
        }
        for stage, label in STAGES.items()
    ]
    data.append(
        {
            "type": "scatter",
            "name": "RTF (right axis)",
            "x": names,
            "y": rounded(run["rtf"] for run in runs),
            "yaxis": "y2",
            "mode": "lines+markers",
            "line": {"color": PALETTE["third"], "width": 2, "dash": "dot"},
            "marker": {"size": 9, "symbol": "diamond", "line": {"color": "rgba(255,255,255,0.9)", "width": 1.5}},
            "hovertemplate": "RTF %{y:.3g}<extra>%{x}</extra>",
        }
    )
    reference = next((run for run in runs if run["id"] == base), None)
    labels = [_speed_up(run, reference) for run in runs]
    notes = [
        {"x": name, "y": sum(max(0.0, run[f"{stage}_s"]) for stage in STAGES), "text": text, "showarrow": False, "yanchor": "bottom"}
        for name, run, text in zip(names, runs, labels, strict=True)
    ]
    words = "; ".join(
        f"{name}: {run['total_s']:.2f} s, RTF {run['rtf']:.3g}" + (f", {text}" if reference else "")
        for name, run, text in zip(names, runs, labels, strict=True)
    )
    return figure(
        data,
        f"Stage times of {len(runs)} runs. {words}.",
        height=height,
        barmode="stack",
        bargap=0.45 if len(runs) > 3 else 0.7,
        xaxis=axis("run", type="category", tickangle=0 if len(runs) <= 8 else -35),
        yaxis=axis("time (s)", range=[0, 1.15 * max(run["total_s"] for run in runs) or 1]),
        yaxis2=axis(
            "RTF (s per s of sound)",
            overlaying="y",
            side="right",
            range=[0, 1.4 * max(run["rtf"] for run in runs) or 1],  # its line stays clear of the labels
            showgrid=False,
            tickmode="auto",
        ),
        margin={"l": 56, "r": 60, "t": 34, "b": 44},
        annotations=notes,
    )


def timeline(telemetry: Mapping[str, Any], *, height: int | None = None) -> Figure:
    """When each segment was in which stage, on the run's own clock. ``telemetry``: as of ``Telemetry.to_dict()``."""
    stages = list(telemetry.get("stages") or [])
    if not stages:
        return empty("No run yet: its segments appear here, stage by stage.", height or 220)
    several = telemetry.get("requests", 1) > 1

    def row(time: Mapping[str, Any]) -> str:
        if time["stage"] == "prompt":
            return "voice"
        return (f"request {time['request'] + 1}, " if several else "") + f"segment {time['segment'] + 1}"

    in_order = sorted(stages, key=lambda time: (time["stage"] != "prompt", time["request"], time["segment"]))
    rows = list(dict.fromkeys(map(row, in_order)))[:MOST_SEGMENTS]
    data = []
    for stage, label in {"prompt": "Voice", **STAGES}.items():
        times = [time for time in stages if time["stage"] == stage and row(time) in rows]
        if not times:
            continue
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label,
                "y": [row(time) for time in times],
                "x": rounded(time["device_s"] for time in times),
                "base": rounded(time["start_s"] for time in times),
                "marker": {
                    "color": PALETTE.get(stage, PALETTE["third"]),
                    "pattern": {"shape": PATTERNS.get(stage, ""), "fgopacity": 0.35, "size": 6, "fillmode": "overlay"},
                },
                "hovertemplate": f"{label}: %{{x:.3g}} s from %{{base:.3g}} s<extra>%{{y}}</extra>",
            }
        )
    total = float(telemetry.get("total_s") or 0.0)
    words = f"Timeline of {len(rows)} rows over {total:.2f} s: " + ", ".join(
        f"{row(time)} {STAGES.get(time['stage'], 'voice')} from {time['start_s']:.2f} s for {time['device_s']:.2f} s"
        for time in stages[:12]
    )
    shapes, notes = [], []
    if telemetry.get("first_audio_s"):
        first = float(telemetry["first_audio_s"])
        shapes.append(
            {
                "type": "line",
                "x0": first,
                "x1": first,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": PALETTE["muted"], "dash": "dot"},
            }
        )
        notes.append(
            {"x": first, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "right", "text": "first sound", "showarrow": False}
        )
    return figure(
        data,
        words,
        height=height or min(520, 130 + 26 * len(rows)),
        barmode="overlay",
        bargap=0.25,
        xaxis=axis("time since the call (s)", range=[0, max(total, 1e-6)]),
        yaxis=axis("", autorange="reversed", type="category", categoryorder="array", categoryarray=rows),
        legend={"orientation": "h", "x": 0, "y": 1.08, "yanchor": "bottom", "traceorder": "normal"},
        margin={"l": 56, "r": 20, "t": 50, "b": 44},
        shapes=shapes,
        annotations=notes,
    )


def memory_lines(readings: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]] = (), *, height: int = 420) -> Figure:
    """Device (or process) memory above, the engine's caches by kind below, both in MB over time, with marks and limits.

    ``readings``, ``marks``: as of ``MemoryLog.to_dict()``.
    """
    if not readings:
        return empty("Nothing read yet.", height)
    start, last = readings[0]["time_s"], readings[-1]
    x = rounded(reading["time_s"] - start for reading in readings)
    on_device = last.get("device_used_mb") is not None
    data: list[dict[str, Any]] = []
    upper = {"device_used_mb": "device, all processes", "reserved_mb": "reserved by torch", "allocated_mb": "allocated by torch"}
    colours = ("#3b7dd8", "#d9730d", "#1a936f")
    for (key, name), colour, dash in zip(
        (upper if on_device else {"process_mb": "process (RSS)"}).items(), colours, ("solid", "dash", "dot"), strict=False
    ):
        y = rounded(reading[key] for reading in readings)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": x,
                "y": y,
                "line": {"color": colour, "dash": dash, "width": 2, "shape": "hv"},
            }
        )
    for kind, colour in CACHE_COLOURS.items():
        y = rounded(reading["caches_mb"].get(kind, 0.0) for reading in readings)
        if any(y) or kind == "voices":  # one at least, or the lower axes would vanish
            data.append(
                {
                    "type": "scatter", "mode": "lines", "name": f"cache: {kind}", "x": x, "y": y, "yaxis": "y2",
                    "stackgroup": "caches", "line": {"color": colour, "width": 1, "shape": "hv"},
                }
            )  # fmt: skip
    for kind, (symbol, name) in MARKS.items():
        happened = [mark for mark in marks if mark["kind"] == kind]
        if happened:
            times = rounded(mark["time_s"] - start for mark in happened)
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": name, "x": times, "y": [0] * len(times), "yaxis": "y2",
                    "cliponaxis": False, "marker": {"symbol": symbol, "size": 10, "color": PALETTE["third" if kind == "run" else "error"]},
                    "text": [mark["text"] for mark in happened], "hovertemplate": "%{text}<extra></extra>",
                }
            )  # fmt: skip
    shapes = [
        {
            "type": "line",
            "x0": t,
            "x1": t,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "layer": "below",
            "line": {"color": "rgba(128,128,128,0.45)", "dash": "dot", "width": 1},
        }
        for t in rounded(mark["time_s"] - start for mark in marks)
    ]
    notes = []
    cached = max(sum(reading["caches_mb"].values()) for reading in readings)
    peak = max(reading["device_used_mb" if on_device else "process_mb"] for reading in readings)
    limits = [("y2", last.get("limit_mb") or 0.0, cached, "cache limit", 0.475)]
    if on_device:
        limits.append(("y", last.get("device_total_mb") or 0.0, peak, "device memory", 1.0))
    for which, limit, highest, name, top in limits:
        in_view = limit <= LIMIT_IN_VIEW * max(highest, 1.0)
        if in_view:
            shapes.append(
                {
                    "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": which, "y0": limit, "y1": limit,
                    "line": {"color": PALETTE["limit"], "dash": "dash", "width": 1.5},
                }
            )  # fmt: skip
        place = {"yref": which, "y": limit, "yanchor": "bottom"} if in_view else {"yref": "paper", "y": top, "yanchor": "top"}
        text = f"{name} {limit:,.0f} MB" + ("" if in_view else ", above this scale")
        notes.append({"text": text, "xref": "paper", "x": 1, "xanchor": "right", "showarrow": False, "font": {"size": 11}, **place})
    what = "device" if on_device else "process"
    used = last["device_used_mb" if on_device else "process_mb"]
    kept = f"caches {sum(last['caches_mb'].values()):.1f} MB of at most {last.get('limit_mb', 0):.0f} MB"
    words = f"{what} memory {used:.0f} MB, {kept}; {len(marks)} events"
    return figure(
        data,
        words,
        height=height,
        xaxis=axis("time (s)", anchor="y2", range=[0, max(30.0, x[-1] or 0.0)]),
        yaxis=axis(f"{what} memory (MB)", domain=[0.5, 1], rangemode="tozero"),
        yaxis2=axis("caches (MB)", domain=[0, 0.42], rangemode="tozero"),
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        margin={"l": 64, "r": 20, "t": 56, "b": 44},
        shapes=shapes,
        annotations=notes,
        hovermode="x unified" if len(readings) > 1 else "closest",
        uirevision="memory",
    )


def bench_bars(rows: Sequence[Mapping[str, Any]], *, height: int | None = None) -> Figure:
    """Rows of a benchmark (``BenchRow.to_dict()``) as stacked bars of median seconds, with the speed-up over the first row."""
    if not rows:
        return empty("No benchmark yet.", height or 240)
    first = rows[0]["total_s"] / (rows[0]["audio_s"] or 1.0)  # rows may make different amounts of sound
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "y": [row["label"] for row in rows],
            "x": rounded(row["stages_s"].get(stage, 0.0) for row in rows),
            "marker": {"color": PALETTE[stage], "pattern": {"shape": PATTERNS[stage], "fgopacity": 0.35, "size": 6, "fillmode": "overlay"}},
            "hovertemplate": f"{label}: %{{x:.3g}} s<extra>%{{y}}</extra>",
        }
        for stage, label in STAGES.items()
    ]
    speed_ups = [first / (row["total_s"] / (row["audio_s"] or 1.0)) if row["total_s"] else 0.0 for row in rows]
    notes = [
        {
            "y": row["label"],
            "x": sum(row["stages_s"].values()),
            "text": f" RTF {row['rtf']:.3g} · {gain:.2f}x",
            "showarrow": False,
            "xanchor": "left",
        }
        for row, gain in zip(rows, speed_ups, strict=True)
    ]
    words = "; ".join(
        f"{row['label']}: RTF {row['rtf']:.3g}, {gain:.2f} times the first" for row, gain in zip(rows, speed_ups, strict=True)
    )
    longest = max(sum(row["stages_s"].values()) for row in rows)
    return figure(
        data,
        f"Benchmark. {words}.",
        height=height or 110 + 30 * len(rows),
        barmode="stack",
        bargap=0.3,
        xaxis=axis("median time of a call (s)", range=[0, 1.35 * longest]),
        yaxis=axis("", autorange="reversed", type="category"),
        annotations=notes,
    )


def rounded(values: Any, digits: int = 5) -> list[float]:
    """Numbers with few digits: small messages, readable hovers."""
    return [float(f"{float(value or 0.0):.{digits}g}") for value in values]


def short(text: str, most: int = 18) -> str:
    """A label that fits under a bar."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _speed_up(run: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    """How many times faster than the reference, per second of sound."""
    if reference is None or not run["rtf"] or not reference["rtf"]:
        return f"{run['total_s']:.2f} s"
    if run["id"] == reference["id"]:
        return "1x (base)"
    return f"{reference['rtf'] / run['rtf']:.2f}x"
