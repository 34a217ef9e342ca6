"""A Plotly figure on the page, redrawn whenever it changes: plain dictionaries in, the page's own colours and width.

Plotly's library travels to a page once, when its first chart comes into view, from the installed ``plotly`` package. (Its own
``FigureWidget`` would bring the 5 MB along with every single chart.)
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anywidget
import traitlets as T

__all__ = ["Chart"]

AWAKE_S = 12.0


class _Library(anywidget.AnyWidget):
    """Carries Plotly's library to a page; closed once it is there."""

    _esm = "export default {};"
    packed = T.Bytes().tag(sync=True)


class Chart(anywidget.AnyWidget):
    """Shows ``figure``, a dict with Plotly's ``data`` and ``layout``, as :mod:`widgets.plots` makes them.

    ``layout.height`` is respected, the width is the page's. ``layout.meta.words`` is what a screen reader reads. ``awake`` says whether
    the chart was in view lately; :meth:`on_shown` tells when it comes into view.
    """

    _esm = Path(__file__).with_name("chart.js").read_text(encoding="utf-8")
    figure = T.Dict().tag(sync=True)

    def __init__(self, figure: dict[str, Any] | None = None, **traits: Any) -> None:
        super().__init__(figure=dict(figure or {}), **traits)
        self._seen_s = -AWAKE_S
        self._shown: list[Callable[[], object]] = []
        self._library: _Library | None = None
        self.add_class("itl-chart-host")
        self.on_msg(self._hear)

    @property
    def awake(self) -> bool:
        """Whether a page has shown this chart within the last seconds."""
        return time.monotonic() - self._seen_s < AWAKE_S

    @property
    def words(self) -> str:
        """What the figure says, as text."""
        return str(self.figure.get("layout", {}).get("meta", {}).get("words", ""))

    def show(self, figure: dict[str, Any]) -> None:
        """Draw another figure: one message to the page, and none if it is the same."""
        self.figure = dict(figure)

    def on_shown(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` whenever the chart comes into view."""
        self._shown.append(callback)

    def close(self) -> None:
        """Take it off the page."""
        self._shown.clear()
        self._drop_library()
        super().close()

    def _hear(self, _: Any, message: dict[str, Any], __: Any) -> None:
        kind = message.get("type")
        if kind in ("shown", "seen"):
            self._seen_s = time.monotonic()
        elif kind == "hidden":
            self._seen_s = -AWAKE_S
        elif kind == "library":
            self._drop_library()
            self._library = _Library(packed=_packed_library())
            self.send({"type": "library", "id": self._library.model_id})
        elif kind == "library loaded":
            self._drop_library()
        if kind == "shown":
            for callback in list(self._shown):
                callback()

    def _drop_library(self) -> None:
        if self._library is not None:
            self._library.close()
            self._library = None


@lru_cache(maxsize=1)
def _packed_library() -> bytes:
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ImportError("charts need plotly: pip install 'indextts2-lab[lab]'")
    return gzip.compress((Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes(), 6)
