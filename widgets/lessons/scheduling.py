"""Lesson 10: requests on several workers, as arithmetic: who gets which request, and how long callers wait."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


def sentence_seconds(count: int, seed: int = 0) -> list[float]:
    """Lengths of made-up requests in seconds of work: mostly short ones and a few long ones, as texts are."""
    draws = np.random.default_rng(seed).lognormal(mean=0.0, sigma=0.8, size=count)
    return [float(value) for value in draws]


def makespan(work: Sequence[float], workers: int, policy: str = "least loaded") -> float:
    """Seconds until all of ``work`` is done. ``policy``: ``round robin`` deals the requests out in turn; ``least loaded`` gives each to
    the worker that is free first.

    Errors: ``ValueError`` for fewer than one worker or another policy.
    """  # fmt: skip
    if workers < 1:
        raise ValueError(f"there must be at least one worker, got {workers}")
    if policy == "round robin":
        return max(sum(work[start::workers]) for start in range(workers))
    if policy != "least loaded":
        raise ValueError(f"policy is {policy!r}; it is 'round robin' or 'least loaded'")
    free = [0.0] * workers
    for seconds in work:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def waits(arrivals_per_s: float, workers: int, count: int = 2000, seed: int = 0) -> list[float]:
    """Seconds that each of ``count`` callers waits before its request starts, when they arrive at random and are served in order."""
    draws = np.random.default_rng(seed)
    arrival = np.cumsum(draws.exponential(1 / arrivals_per_s, count))
    free = [0.0] * workers
    waited = []
    for moment, seconds in zip(arrival, sentence_seconds(count, seed + 1), strict=True):
        start = max(free[0], float(moment))
        heapq.heapreplace(free, start + seconds)
        waited.append(start - float(moment))
    return waited


def waiting_curve(workers: int, loads: Sequence[float], count: int = 2000) -> list[float]:
    """The 95th percentile of waiting, in seconds, at each load (the share of the workers' time that requests ask for)."""
    mean = float(np.mean(sentence_seconds(count, 1)))
    return [float(np.percentile(waits(load * workers / mean, workers, count), 95)) for load in loads]
