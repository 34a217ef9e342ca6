"""Timing a call properly: warm-up, repeats, the device's work included, and the spread beside the middle."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls, in the order in which they ran."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """The middle: half of the calls were faster."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The fastest call: the least disturbed one."""
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between these lies the middle half of the calls."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def ms(self) -> float:
        """The median in milliseconds."""
        return 1e3 * self.median


def timed(call: Callable[[], object], runs: int = 5, warmup: int = 1) -> Timing:
    """Time ``runs`` calls after ``warmup`` untimed ones. Work queued on a GPU is waited for, before and after each."""
    for _ in range(warmup):
        call()
    seconds = []
    with _no_collection():
        for _ in range(runs):
            synchronize()
            begin = time.perf_counter()
            call()
            synchronize()
            seconds.append(time.perf_counter() - begin)
    return Timing(seconds)


def interleaved(calls: dict[str, Callable[[], object]], runs: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Time several calls in turns, so that a machine that slows down in between slows all of them."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            seconds[name] += timed(call, 1, 0).seconds
    return {name: Timing(values) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait for the work queued on the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def this_machine() -> str:
    """What figures on this machine were measured on, in a few words."""
    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU ({platform.machine()}), {threads} thread{'s' if threads > 1 else ''}"


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed part."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
