"""Counters of the speech service, in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Answers by path and status, durations of speech requests, seconds of sound sent; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, int]] = Counter()
        self._durations: Counter[float] = Counter()
        self._total_s = self._audio_s = 0.0
        self._count = 0

    def answered(self, path: str, status: int) -> None:
        """Count an answer. ``path`` is one of the service's own, never what a client typed."""
        with self._lock:
            self._answers[path, status] += 1

    def spoke(self, seconds: float, audio_s: float) -> None:
        """Count a speech request that ended well."""
        with self._lock:
            self._count += 1
            self._total_s += seconds
            self._audio_s += audio_s
            for bound in BUCKETS_S:
                self._durations[bound] += seconds <= bound

    def text(self, pool: Mapping[str, Any]) -> str:
        """Everything, with the pool's statistics."""
        lines: list[str] = []

        def add(name: str, kind: str, about: str, *values: tuple[str, float]) -> None:
            lines.append(f"# HELP indextts_{name} {about}")
            lines.append(f"# TYPE indextts_{name} {kind}")
            lines.extend(f"indextts_{name}{suffix} {value:g}" for suffix, value in values)

        with self._lock:
            answers = [(f'{{path="{path}",status="{status}"}}', float(count)) for (path, status), count in sorted(self._answers.items())]
            buckets = [(f'_bucket{{le="{bound:g}"}}', float(self._durations[bound])) for bound in BUCKETS_S]
            totals = [('_bucket{le="+Inf"}', float(self._count)), ("_sum", self._total_s), ("_count", float(self._count))]
            audio_s = self._audio_s
        add("http_answers_total", "counter", "Answers by path and status.", *answers)
        add("speech_seconds", "histogram", "Duration of speech requests that ended well.", *buckets, *totals)
        add("audio_seconds_total", "counter", "Seconds of sound sent.", ("", audio_s))
        add("queue", "gauge", "Requests that wait for a worker.", ("", pool["queued"]))
        add("running", "gauge", "Requests that workers work on.", ("", pool["running"]))
        add("rejected_total", "counter", "Requests refused because the queue was full.", ("", pool["rejected"]))
        add("workers_ready", "gauge", "Workers that are ready or at work.", ("", pool["ready"]))
        add("worker_restarts_total", "counter", "Workers that were replaced.", ("", pool["restarts"]))
        return "\n".join(lines) + "\n"
