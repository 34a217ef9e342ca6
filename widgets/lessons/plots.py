"""Plots of the lessons as Plotly figures: small JSON, no script inside, readable on light and dark pages.

Figures are plain dictionaries, since that is all a notebook stores; ``plotly`` itself draws them in the browser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from widgets.lessons.pages import number, publish

MIME = "application/vnd.plotly.v1+json"
# The panels' colours, each at least 3:1 against white and against near-black; labels stand next to them.
COLOURS = ("#3b7dd8", "#d9730d", "#1a936f", "#9b5de5", "#c07a00", "#7a7f87")
_INK = "#7a7f87"
_GRID = "rgba(128,128,128,0.25)"
_DIGITS = 5


class Figure:
    """A Plotly figure: ``data`` and ``layout`` as Plotly defines them, and ``words`` for readers who see no plot."""

    def __init__(self, data: list[dict[str, Any]], layout: dict[str, Any], words: str) -> None:
        self.data = data
        self.layout = layout
        self.words = words

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            MIME: {"data": self.data, "layout": self.layout, "config": {"displaylogo": False, "responsive": True}},
            "text/plain": self.words,
        }

    def show(self) -> None:
        """Put the figure on the page now."""
        publish(self._repr_mimebundle_())


def bars(
    groups: Mapping[str, Mapping[str, float]], *, title: str, unit: str, stacked: bool = False, log: bool = False, height: int = 300
) -> Figure:
    """Bars by label: ``{series: {label: value}}``, side by side or stacked, the value written on each."""
    data = [_bar_trace(name, values, COLOURS[i % len(COLOURS)], stacked) for i, (name, values) in enumerate(groups.items())]
    layout = _layout(title, height)
    layout |= {
        "barmode": "stack" if stacked else "group",
        "xaxis": _axis(""),
        "yaxis": _axis(unit, log),
        "showlegend": len(groups) > 1,
    }
    return Figure(data, layout, _words(title, unit, groups))


def panels(parts: Mapping[str, Mapping[str, float | None]], *, title: str, unit: str, log: bool = False, height: int = 320) -> Figure:
    """Bars in panels side by side, each on its own scale, for machines not to be compared directly: ``{panel: {label: value}}``."""
    data, count = [], len(parts)
    layout = _layout(title, height)
    layout |= {"showlegend": False, "annotations": []}
    for index, (name, values) in enumerate(parts.items()):
        suffix = "" if index == 0 else str(index + 1)
        known = {label: value for label, value in values.items() if value is not None}
        data.append(_bar_trace(name, known, COLOURS[index % len(COLOURS)], False) | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
        left, right = index / count + 0.035, (index + 1) / count - 0.035
        layout[f"xaxis{suffix}"] = _axis("") | {"domain": [left, right], "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = _axis(unit if index == 0 else "", log) | {"anchor": f"x{suffix}"}
        layout["annotations"].append(
            {"text": name, "x": (left + right) / 2, "y": 1.0, "xref": "paper", "yref": "paper", "yanchor": "bottom", "showarrow": False}
        )
    return Figure(
        data, layout, _words(title, unit, {name: {k: v for k, v in values.items() if v is not None} for name, values in parts.items()})
    )


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[str, float] | None = None,
    dots: bool = True,
    height: int = 320,
) -> Figure:
    """Curves ``{name: (xs, ys)}``; ``marks`` are horizontal lines at a height, with their names."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if dots else "lines",
            "name": name,
            "x": rounded(xs),
            "y": rounded(ys),
            "line": {"color": COLOURS[i % len(COLOURS)], "width": 2},
        }
        for i, (name, (xs, ys)) in enumerate(series.items())
    ]
    layout = _layout(title, height) | {"xaxis": _axis(x, log_x), "yaxis": _axis(y, log_y), "showlegend": len(series) > 1}
    layout["shapes"], layout["annotations"] = [], []
    for name, level in (marks or {}).items():
        at = math.log10(level) if log_y else level
        layout["shapes"].append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": level,
                "y1": level,
                "line": {"color": _INK, "dash": "dot", "width": 1.5},
            }
        )
        layout["annotations"].append(
            {"text": name, "xref": "paper", "x": 1, "xanchor": "right", "y": at, "yanchor": "bottom", "showarrow": False}
        )
    words = f"{title}: {y} over {x}; " + "; ".join(
        f"{name} from {number(float(ys[0]))} to {number(float(ys[-1]))}" for name, (_, ys) in series.items()
    )
    return Figure(data, layout, words)


def heat(values: Any, *, title: str, x: str, y: str, x_step: float = 1.0, height: int = 260) -> Figure:
    """A matrix (rows, columns) as colours, first row at the bottom; ``x_step`` is the width of a column in the unit of ``x``."""
    matrix = np.asarray(values, dtype=np.float32)
    data = [
        {
            "type": "heatmap",
            "z": [rounded(row, 3) for row in matrix],
            "x0": 0,
            "dx": x_step,
            "colorscale": "Viridis",
            "colorbar": {"thickness": 10},
        }
    ]
    layout = _layout(title, height) | {"xaxis": _axis(x), "yaxis": _axis(y)}
    return Figure(
        data,
        layout,
        f"{title}: {matrix.shape[0]} x {matrix.shape[1]} values from {number(float(matrix.min()))} to {number(float(matrix.max()))}",
    )


def spread(samples: Mapping[str, Sequence[float]], *, title: str, unit: str, height: int = 320) -> Figure:
    """Every measurement as a dot beside the box of its quartiles: ``{label: values}``."""
    data = [
        {
            "type": "box",
            "name": name,
            "y": rounded(values),
            "boxpoints": "all",
            "jitter": 0.4,
            "marker": {"color": COLOURS[i % len(COLOURS)], "size": 6},
        }
        for i, (name, values) in enumerate(samples.items())
    ]
    layout = _layout(title, height) | {"xaxis": _axis(""), "yaxis": _axis(unit), "showlegend": False}
    medians = {name: {"median": float(np.median(values))} for name, values in samples.items()}
    return Figure(data, layout, _words(title, unit, medians))


def rounded(values: Any, digits: int = _DIGITS) -> list[float | None]:
    """Numbers with few digits, so that a saved notebook stays small; what is not finite becomes a gap."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in np.asarray(values, dtype=np.float64).tolist()]


def _bar_trace(name: str, values: Mapping[str, float], colour: str, inside: bool) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": list(values),
        "y": rounded(list(values.values())),
        "text": [number(float(value)) for value in values.values()],
        "textposition": "inside" if inside else "outside",
        "cliponaxis": False,
        "marker": {"color": colour},
    }


def _layout(title: str, height: int) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0, "xanchor": "left", "font": {"size": 15}},
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 70, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": _INK, "size": 12},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    }


def _axis(title: str, log: bool = False) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": title}, "gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True}
    return axis | {"type": "log", "dtick": 1} if log else axis


def _words(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    parts = [f"{name}, {label}: {number(float(value))}" for name, values in groups.items() for label, value in values.items()]
    return f"{title} ({unit}): " + "; ".join(parts)
