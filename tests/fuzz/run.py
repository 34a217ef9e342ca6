"""Try a boundary with so many inputs."""

from __future__ import annotations

import importlib.util
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.boundaries import Boundary
from tests.fuzz.world import World, expected_warnings

LONGEST_S = 300  # for one input; it would take longer only if it hung


@dataclass
class Tally:
    """What became of the inputs of one boundary."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    total_s: float = 0.0


def available(boundary: Boundary) -> bool:
    """Whether the package that it needs is installed."""
    return boundary.needs is None or importlib.util.find_spec(boundary.needs) is not None


def try_boundary(world: World, boundary: Boundary, count: int, start: int | None = None) -> Tally:
    """Generate ``count`` inputs (the same every time for the same ``start``); the first failure is raised, made small."""
    tally = Tally(boundary.name)
    checks = list(HealthCheck)

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=start is None,
        suppress_health_check=checks,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
    @given(boundary.strategy)
    def every(value: object) -> None:
        begin = time.perf_counter()
        with no_hang():
            tally.outcomes[boundary.check(world, value)] += 1
        seconds = time.perf_counter() - begin
        tally.total_s += seconds
        tally.slowest_s = max(tally.slowest_s, seconds)

    with expected_warnings():
        (every if start is None else seed(start)(every))()
    return tally


@contextmanager
def no_hang() -> Iterator[None]:
    """Fail after five minutes (where there are alarms)."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: object) -> None:
        raise AssertionError(f"one input took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
