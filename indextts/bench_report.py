"""What a benchmark found, as plain data: rows, reports, and the table on the screen."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STAGES = ("gpt", "s2mel", "bigvgan", "other")
TIMES = ("total s", "+-", "RTF", "GPT s", "S2Mel s", "BigVGAN s", "other s")
AWAY = ("mel diff", "wave diff")
COLUMNS = (
    "what",
    "precision",
    "beams",
    "batch",
    "codes",
    *TIMES,
    "codes/s",
    "GB/s",
    "floor",
    "peak MB",
    "start s",
    "mel diff",
    "wave diff",
)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, and the measurements themselves, in the order in which they were made."""

    median: float
    low: float
    high: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; the quartiles of a single one are itself."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], list(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, list(values))

    @property
    def iqr(self) -> float:
        """Distance between the quartiles."""
        return self.high - self.low


@dataclass(frozen=True)
class BenchRow:
    """One state of an engine, measured: seconds unless named otherwise, and everything needed to repeat it.

    ``stages``: ``gpt``, ``s2mel``, ``bigvgan``, ``other``. ``tokens_per_s``: codes over the GPT stage. ``decode_gb_per_s``: bandwidth at
    which the GPT stage read weights and cache. ``floors_s``, ``floor_fraction``: what the stages cannot beat here, and how near they are
    (1 is the floor). ``distance``: to the plain float32 path, see :mod:`indextts.bench_distance`; None if not compared.
    """

    label: str
    switches: dict[str, Any]
    codes: int
    runs: int
    warmup: int
    audio_s: float
    total: Spread
    rtf: float
    stages: dict[str, Spread]
    tokens_per_s: float
    decode_gb_per_s: float
    rates: dict[str, float]
    floors_s: dict[str, float]
    floor_fraction: dict[str, float]
    peak_vram_mb: float
    start_up_s: float | None
    distance: dict[str, float] | None
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def total_s(self) -> float:
        """Median seconds of a call."""
        return self.total.median

    @property
    def stages_s(self) -> dict[str, float]:
        """Median seconds of each stage."""
        return {name: spread.median for name, spread in self.stages.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, the medians beside the spreads."""
        return {**asdict(self), "total_s": self.total_s, "stages_s": self.stages_s}


@dataclass(frozen=True)
class BenchReport:
    """Rows measured on one machine by one command."""

    machine: dict[str, Any]
    command: str
    rows: list[BenchRow]

    def to_dict(self) -> dict[str, Any]:
        """``{"machine", "command", "rows"}``, JSON-safe."""
        return {"machine": self.machine, "command": self.command, "rows": [row.to_dict() for row in self.rows]}

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON, replacing the file in one go."""
        from indextts.audio import replace_file

        replace_file(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def __str__(self) -> str:
        return table(self.rows)


def machine(device: Any = None) -> dict[str, Any]:
    """What figures are measured on: ``device`` (a ``torch.device``; the first GPU or the CPU unless given), and versions."""
    import torch

    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cpu": _cpu_name(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "triton": _triton_version(),
    }


def table(rows: Sequence[BenchRow]) -> str:
    """The rows as a text table; times in seconds, +- is the distance between the quartiles, floor the fraction of the possible."""
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in cells)
    return "\n".join("  ".join([first.strip().ljust(widths[0]), *others]).rstrip() for first, *others in lines)


def _cells(row: BenchRow) -> tuple[str, ...]:
    times = (row.stages[name].median for name in STAGES)
    away = row.distance or {}
    return (
        row.label,
        str(row.switches["precision"]),
        str(row.switches["beams"]),
        str(row.switches["batch"]),
        str(row.codes),
        f"{row.total.median:.3f}",
        f"{row.total.iqr:.3f}",
        f"{row.rtf:.4f}",
        *(f"{seconds:.3f}" for seconds in times),
        f"{row.tokens_per_s:.1f}",
        f"{row.decode_gb_per_s:.1f}",
        f"{row.floor_fraction.get('gpt', 0):.2f}",
        f"{row.peak_vram_mb:.0f}",
        "-" if row.start_up_s is None else f"{row.start_up_s:.2f}",
        *(f"{away[name]:.1e}" if name in away else "-" for name in ("mel", "wave")),
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _triton_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None
