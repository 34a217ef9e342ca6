"""Gauges of an engine over time: device and process memory, caches by kind, temperature, load. Plain data, for panels and scripts.

>>> log = MemoryLog(tts)              # doctest: +SKIP
>>> log.sample()                      # doctest: +SKIP
>>> log.to_csv("memory.csv")          # doctest: +SKIP
"""

from __future__ import annotations

import csv
import io
import os
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts.audio import replace_file
from indextts.utils import resource_monitor
from indextts.utils.resource_monitor import ResourceMonitor, get_process_memory_mb

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

MB = 1024 * 1024
MOST_POINTS = 600
CACHE_KINDS = ("voices", "KV buffers", "graph pools", "solver tables")
_CACHES = [f"cache_{kind.replace(' ', '_')}_mb" for kind in CACHE_KINDS]


@dataclass(frozen=True)
class MemoryReading:
    """One reading; MiB unless named otherwise, None where the machine does not tell. Without a GPU the device's figures are None.

    ``device_used_mb`` counts all processes, ``allocated_mb`` and ``reserved_mb`` are torch's in this one. ``caches_mb``: by
    :data:`CACHE_KINDS`. ``at_risk``: whether the next run may not fit.
    """

    time_s: float
    process_mb: float
    caches_mb: dict[str, float] = field(default_factory=dict)
    limit_mb: float = 0.0
    device_used_mb: float | None = None
    device_total_mb: float | None = None
    allocated_mb: float | None = None
    reserved_mb: float | None = None
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    at_risk: bool = False

    @property
    def cached_mb(self) -> float:
        """All caches together."""
        return sum(self.caches_mb.values())


def cache_sizes_mb(tts: IndexTTS2) -> dict[str, float]:
    """The engine's caches by :data:`CACHE_KINDS`, in MiB; they add up to ``tts.cache_memory_mb``."""
    stages = tts._stages
    decoder, solver, vocoder = stages.decoder, stages.solver, stages.graphs
    recorded = (decoder._graphs, decoder._passes) if decoder is not None else ()
    decode_graphs = sum(graphs.memory_mb for graphs in recorded if graphs is not None)
    buffers = decoder.memory_mb - decode_graphs if decoder is not None else 0.0
    tables = solver.step.times.memory_bytes / MB if solver is not None else 0.0
    voices, everything = tts.reference_cache.memory_mb, tts.cache_memory_mb
    pools = decode_graphs + sum(g.memory_mb for g in (vocoder, solver.graphs if solver is not None else None) if g is not None)
    known = voices + buffers + tables + pools
    return dict(zip(CACHE_KINDS, (voices, buffers, pools + max(0.0, everything - known), tables), strict=True))


def read_memory(tts: IndexTTS2, monitor: ResourceMonitor | None = None) -> MemoryReading:
    """Read all gauges; cheap enough for twice a second, from any thread, also while the engine works."""
    from indextts import infer_v2_modded as limits

    now, process, caches = time.time(), get_process_memory_mb(), cache_sizes_mb(tts)
    if tts.device.type != "cuda":
        return MemoryReading(now, process, caches, float(limits.MAX_CACHE_SIZE_MB))
    import torch

    index = tts.device.index or 0
    stats = (monitor or ResourceMonitor()).get_gpu_stats(index)
    return MemoryReading(
        now,
        process,
        caches,
        float(limits.MAX_CACHE_SIZE_MB),
        device_used_mb=stats.used_memory_mb if stats else None,
        device_total_mb=stats.total_memory_mb if stats else None,
        allocated_mb=torch.cuda.memory_allocated(index) / MB,
        reserved_mb=torch.cuda.memory_reserved(index) / MB,
        utilization_percent=stats.utilization_percent if stats else None,
        temperature_c=stats.temperature_c if stats else None,
        power_w=stats.power_w if stats else None,
        at_risk=resource_monitor.predict_oom_risk(index),
    )


@dataclass(frozen=True)
class Mark:
    """Something that happened: ``kind`` is ``run``, ``eviction`` or ``cleared``."""

    time_s: float
    kind: str
    text: str


class MemoryLog:
    """The last readings of one engine (at most ``most``) and what happened meanwhile; safe to use from several threads."""

    def __init__(self, tts: IndexTTS2, most: int = MOST_POINTS) -> None:
        if not 1 <= most <= MOST_POINTS:
            raise ValueError(f"a log holds 1 to {MOST_POINTS} readings, got most={most}")
        self.tts = tts
        self._readings: deque[MemoryReading] = deque(maxlen=most)
        self._marks: deque[Mark] = deque(maxlen=most)
        self._monitor = ResourceMonitor()
        self._evictions = tts.reference_cache.evictions
        self._lock = threading.Lock()

    @property
    def readings(self) -> list[MemoryReading]:
        """Oldest first."""
        with self._lock:
            return list(self._readings)

    @property
    def marks(self) -> list[Mark]:
        """Marks not older than the oldest reading, oldest first."""
        with self._lock:
            since = self._readings[0].time_s if self._readings else 0.0
            return [mark for mark in self._marks if mark.time_s >= since]

    def sample(self) -> MemoryReading:
        """Take a reading, and mark evictions since the last one."""
        reading = read_memory(self.tts, self._monitor)
        evictions = self.tts.reference_cache.evictions
        with self._lock:
            self._readings.append(reading)
            gone, self._evictions = evictions - self._evictions, evictions
        if gone > 0:
            self.mark("eviction", f"{gone} cached prompt{'s' * (gone != 1)} evicted", reading.time_s)
        return reading

    def mark(self, kind: str, text: str, time_s: float | None = None) -> None:
        """Note that something happened."""
        with self._lock:
            self._marks.append(Mark(time.time() if time_s is None else time_s, kind, text))

    def clear(self) -> None:
        """Forget readings and marks."""
        with self._lock:
            self._readings.clear()
            self._marks.clear()

    def to_csv_text(self) -> str:
        """One row a reading, times as Unix seconds, with the marks since the reading before it."""
        names = [name for name in MemoryReading.__dataclass_fields__ if name != "caches_mb"]
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow([*names, *_CACHES, "events"])
        readings, marks, before = self.readings, self.marks, 0.0
        for reading in readings:
            facts = asdict(reading)
            events = "; ".join(mark.text for mark in marks if before < mark.time_s <= reading.time_s)
            caches = [reading.caches_mb.get(kind, 0.0) for kind in CACHE_KINDS]
            writer.writerow([*("" if facts[name] is None else facts[name] for name in names), *caches, events])
            before = reading.time_s
        return buffer.getvalue()

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_csv_text`; returns the path. Errors: ``OSError``."""
        replace_file(Path(path), self.to_csv_text().encode("utf-8"))
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"readings": [asdict(r) for r in self.readings], "marks": [asdict(m) for m in self.marks]}
