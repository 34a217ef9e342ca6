"""What an evaluation found: plain data for JSON, and tables to read, the targets first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from indextts.evaluate.sections import Row

_PERCENT = frozenset(("wer", "choice", "own", "digits_wer"))
_HEADINGS = {
    "wer": "WER %", "choice": "of 40 %", "own": "own voice %", "digits_wer": "digits WER %", "dnsmos": "DNSMOS", "rtf": "RTF",
    "similarity": "cosine", "mean_length": "length", "length_off": "off > 25 %",
    "mean_spoken": "without pauses", "spoken_off": "off > 25 % without", "off_in": "off in", "pitch_hz": "pitch Hz, semitones",
    "melody_semitones": "melody semitones", "words_per_s": "words/s, %", "loudness_db": "loudness dB",
    "tilt_db_per_octave": "tilt dB/octave",
    "peak_mb": "peak MB", "load_s": "load s", "first_rtf": "first RTF", "again_rtf": "again RTF",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One thing that is wanted of a voice: ``better`` says which way. ``measured`` is None where nothing could be measured."""

    name: str
    wanted: float
    better: str  # "<=" or ">="
    measured: float | None
    unit: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether it is reached; None where nothing was measured."""
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.better == "<=" else self.measured >= self.wanted

    def row(self) -> Row:
        """For the table."""
        return {
            "aim": self.name,
            "wanted": f"{self.better} {self._shown(self.wanted)}",
            "measured": self._shown(self.measured),
            "pass": {True: "yes", False: "NO", None: "-"}[self.passed],
        }

    def _shown(self, value: float | None) -> str:
        return "-" if value is None else f"{100 * value if self.unit == '%' else value:.4g} {self.unit}".strip()


@dataclass
class Report:
    """``sections``: rows of every part that ran, by its name; ``setup``: what was measured, on what, how much of it."""

    setup: dict[str, Any]
    sections: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        """What the bundled voice is to reach, as far as the sections tell."""
        return targets(self.sections)

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dumps``: not-a-number is None."""
        reached = [{**asdict(target), "passed": target.passed} for target in self.targets]
        plain: dict[str, Any] = _plain({"setup": self.setup, "targets": reached, "sections": self.sections})
        return plain

    def __str__(self) -> str:
        parts = [", ".join(f"{name} {value}" for name, value in self.setup.items() if isinstance(value, (str, int)))]
        if self.targets:
            parts.append(table([target.row() for target in self.targets]))
        parts += [f"{name}\n{table(rows)}" for name, rows in self.sections.items() if rows]
        return "\n\n".join(parts)


def targets(sections: dict[str, list[Row]]) -> list[Target]:
    """The aims of the bundled voice against what was measured."""
    found: list[Target] = []

    def add(name: str, wanted: float, better: str, measured: float | None, unit: str = "") -> None:
        found.append(Target(name, wanted, better, None if measured is None or math.isnan(measured) else float(measured), unit))

    if "voices" in sections:
        clones = [row for row in sections["voices"] if row["kind"] == "clone"]
        human = [row for row in clones if row["human"]]
        add("free WER, human-like voices", 0.15, "<=", mean_of(human, "wer", "words"), "%")
        add("choice of 40, human-like voices", 0.97, ">=", mean_of(human, "choice"), "%")
        add("nearest to its own voice, trained on", 0.95, ">=", mean_of([row for row in clones if row["heard"]], "own"), "%")
        add("nearest to its own voice, never heard", 0.75, ">=", mean_of([row for row in clones if not row["heard"]], "own"), "%")
        add("DNSMOS, human-like voices", 2.5, ">=", mean_of(human, "dnsmos"))
    single: Callable[[str], Row] = lambda name: next((row for row in sections.get(name, []) if row.get("kind", "clone") == "clone"), {})  # noqa: E731
    if "digits" in sections:
        add("digits WER", 0.05, "<=", single("digits").get("digits_wer"), "%")
    if "endings" in sections:
        row = single("endings")
        for name, key in (
            ("texts run on", "run_on"), ("texts cut off", "cut_off"), ("length off by more than 25 %", "length_off"),
            ("the same without pauses", "spoken_off"),
        ):  # fmt: skip
            add(f"{name}, of {row.get('texts', 0)}", 0, "<=", row.get(key))
    if "joins" in sections:
        add(f"clicks at {single('joins').get('joins', 0)} joins", 0, "<=", single("joins").get("clicks"))
    if "copies" in sections:
        copied = next((row for row in sections["copies"] if row["what"] == "mel + vocoder"), {})
        add("buzz of the vocoder", 0.1, "<=", copied.get("buzz"))
    if "resources" in sections:
        row = single("resources")
        add("RTF of the first sentence", 1, "<=", row.get("first_rtf"))
        add("load", 3, "<=", row.get("load_s"), "s")
        add("peak memory", 1536, "<=", row.get("peak_mb"), "MB")
    return found


def mean_of(rows: Sequence[Row], key: str, weight: str = "sentences") -> float:
    """Mean of a column over rows, weighted; NaN without any."""
    known = [row for row in rows if key in row]
    total = sum(row[weight] for row in known)
    return sum(row[key] * row[weight] for row in known) / total if total else math.nan


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table with aligned columns."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[_HEADINGS.get(key, key.replace("_", " ")) for key in keys]]
    lines += [[_cell(key, row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(keys))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def _cell(key: str, value: Any) -> str:
    if isinstance(value, dict):  # a change, marked where it is clear
        return _cell(key, value["mean"]) + ("*" if value["clear"] else "")
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{100 * value:.1f}" if key in _PERCENT else f"{value:.2f}"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
