"""Plots of the lessons as Plotly figures: small JSON, no script inside, readable on light and dark pages.

Figures are plain dictionaries, since that is all a notebook stores; ``plotly`` itself draws them in the browser.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from widgets.lessons.pages import number, publish

MIME = "application/vnd.plotly.v1+json"
# The panels' colours, each at least 3:1 against white and against near-black; labels stand next to them.
COLOURS = ("#3b7dd8", "#d9730d", "#1a936f", "#9b5de5", "#c07a00", "#7a7f87")
_INK = "#7a7f87"
_GRID = "rgba(128,128,128,0.25)"
_DIGITS = 5
_MOST_TICKS = 8


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
    """Bars by label: ``{series: {label: value}}``, side by side or stacked, the value written on each; lying if labels are long."""
    lying = _lie(groups)
    data = [_bar_trace(name, values, COLOURS[i % len(COLOURS)], stacked, lying) for i, (name, values) in enumerate(groups.items())]
    layout = _layout(title, max(height, _lying_height(groups, stacked)) if lying else height)
    layout |= {"barmode": "stack" if stacked else "group", "showlegend": len(groups) > 1, **_bar_axes(unit, log, lying)}
    return Figure(data, layout, _words(title, unit, groups))


def panels(parts: Mapping[str, Mapping[str, float | None]], *, title: str, unit: str, log: bool = False, height: int = 320) -> Figure:
    """Bars in panels side by side, each on its own scale, for machines not to be compared directly: ``{panel: {label: value}}``."""
    known = {name: {label: value for label, value in values.items() if value is not None} for name, values in parts.items()}
    lying, count, data = _lie(known), len(parts), []
    layout = _layout(title, height) | {"showlegend": False, "annotations": []}
    left = 0.0
    for index, (name, values) in enumerate(known.items()):
        suffix = "" if index == 0 else str(index + 1)
        colour = COLOURS[index % len(COLOURS)]
        data.append(_bar_trace(name, values, colour, False, lying) | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
        # Lying bars need room for their labels before every panel but the first, whose labels are in the margin.
        left, right = index / count + (0.16 if lying and index else 0.035), (index + 1) / count - 0.035
        axes = _bar_axes(unit, log, lying)
        layout[f"xaxis{suffix}"] = axes["xaxis"] | {"domain": [left, right], "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = axes["yaxis"] | {"anchor": f"x{suffix}"}
        layout["annotations"].append(
            {"text": name, "x": (left + right) / 2, "y": 1.0, "xref": "paper", "yref": "paper", "yanchor": "bottom", "showarrow": False}
        )
    return Figure(data, layout, _words(title, unit, known))


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
    measured = sorted({float(value) for xs, _ in series.values() for value in xs})
    if log_x and len(measured) <= _MOST_TICKS:  # the values themselves, since powers of ten say little between 32 and 512
        layout["xaxis"] |= {"tickvals": measured, "ticktext": [number(value) for value in measured]}
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
    matrix = np.asarray(values.cpu() if hasattr(values, "cpu") else values, dtype=np.float32)
    data = [
        {
            "type": "heatmap",
            "z": packed(matrix),
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


def packed(matrix: npt.NDArray[np.float32]) -> dict[str, str]:
    """A matrix as Plotly's typed array: as text it would take a line of the notebook for every number."""
    coded = base64.b64encode(matrix.astype("<f4").tobytes()).decode("ascii")
    return {"dtype": "f4", "bdata": coded, "shape": ", ".join(map(str, matrix.shape))}


def _bar_trace(name: str, values: Mapping[str, float], colour: str, inside: bool, lying: bool) -> dict[str, Any]:
    along, across = ("x", "y") if lying else ("y", "x")
    return {
        "type": "bar",
        "name": name,
        "orientation": "h" if lying else "v",
        across: list(values),
        along: rounded(list(values.values())),
        "text": [number(float(value)) for value in values.values()],
        "textposition": "inside" if inside else "outside",
        "cliponaxis": False,
        "marker": {"color": colour},
    }


def _bar_axes(unit: str, log: bool, lying: bool) -> dict[str, Any]:
    if lying:
        return {"xaxis": _axis(unit, log), "yaxis": _axis("") | {"autorange": "reversed"}}  # read from the top
    return {"xaxis": _axis(""), "yaxis": _axis(unit, log)}


def _lie(groups: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether the labels would not fit below standing bars."""
    room = 90 / max(1, len(groups))
    return any(sum(len(label) + 2 for label in values) > max(room, 45) for values in groups.values())


def _lying_height(groups: Mapping[str, Mapping[str, float]], stacked: bool) -> int:
    labels = {label for values in groups.values() for label in values}
    return 140 + 26 * len(labels) * (1 if stacked else len(groups))


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
    return axis | {"type": "log", "dtick": 1, "exponentformat": "power"} if log else axis


def _words(title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    parts = [f"{name}, {label}: {number(float(value))}" for name, values in groups.items() for label, value in values.items()]
    return f"{title} ({unit}): " + "; ".join(parts)
