"""Figures that were measured elsewhere and are kept beside the lessons, each with what it was measured on and how."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widgets.lessons.pages import Shown, table

KEYS = ("machine", "software", "settings", "command", "measured", "rows")


@dataclass(frozen=True)
class Recorded:
    """One file of ``notebooks/data``.

    ``rows``: the figures, one dict each. ``measured``: when and with what reservations, for example that a row is of a former build.
    """

    name: str
    machine: str
    software: str
    settings: str
    command: str
    measured: str
    rows: list[dict[str, Any]]

    @property
    def caption(self) -> str:
        """Where the figures come from, in one line."""
        return f"{self.machine}; {self.software}; {self.settings}. {self.measured} Command: `{self.command}`"

    def where(self, **match: Any) -> list[dict[str, Any]]:
        """The rows that have all the given values."""
        return [row for row in self.rows if all(row.get(key) == value for key, value in match.items())]

    def row(self, **match: Any) -> dict[str, Any]:
        """The one row that has all the given values; ``LookupError`` unless there is exactly one."""
        found = self.where(**match)
        if len(found) != 1:
            raise LookupError(f"{len(found)} rows of {self.name}.json match {match}; one was expected")
        return found[0]

    def curve(self, x: str, y: str, **match: Any) -> tuple[list[Any], list[Any]]:
        """Two columns of the matching rows, as ``lines`` draws them."""
        rows = self.where(**match)
        return [row[x] for row in rows], [row[y] for row in rows]

    def table(self, *columns: str, **match: Any) -> Shown:
        """The rows (those that match) as a table with the caption below it."""
        return table(self.where(**match), self.caption, columns or None)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return self.table()._repr_mimebundle_()


def data_folder() -> Path:
    """``notebooks/data`` of this checkout, or ``data`` beside a notebook that was taken elsewhere.

    Errors: ``FileNotFoundError`` that says where it was looked for.
    """
    places = [Path(__file__).resolve().parents[2] / "notebooks" / "data", Path.cwd() / "data"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"the recorded figures are in none of {', '.join(map(str, places))}; run lessons from a clone of the repository"
    )


def recorded(name: str) -> Recorded:
    """The figures of ``notebooks/data/NAME.json``.

    Errors: ``FileNotFoundError`` that lists what there is; ``ValueError`` for a file that does not say how it was measured.
    """
    folder = data_folder()
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no record {name!r}; there are: {', '.join(sorted(p.stem for p in folder.glob('*.json')))}")
    found = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in KEYS if not found.get(key)]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}; a figure must say what it was measured on and how")
    return Recorded(name, **{key: found[key] for key in KEYS})
