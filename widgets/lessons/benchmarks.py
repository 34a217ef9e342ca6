"""Lesson 12: honest comparison of two ways to do the same, and how to fool oneself."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from indextts.bench import TEXT
from widgets.lessons.engine import quiet_limits, speak
from widgets.lessons.measure import Timing, interleaved

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2


def forced_call_s(tts: IndexTTS2, codes: int = 25) -> float:
    """Seconds of a call that makes exactly ``codes`` codes."""
    with quiet_limits(tts):
        tts.infer_forced(codes, spk_audio_prompt=tts.default_voice(), text=TEXT, seed=1, diffusion_steps=4)
    return tts.last_total_time


def first_calls(tts: IndexTTS2, count: int = 6) -> list[float]:
    """Seconds of the first calls of an engine, one after the other."""
    return [forced_call_s(tts) for _ in range(count)]


def same_thing_twice(tts: IndexTTS2, runs: int = 5) -> tuple[list[float], list[float]]:
    """The same call measured as if it were two configurations, one block after the other: what differs is noise."""
    return [forced_call_s(tts) for _ in range(runs)], [forced_call_s(tts) for _ in range(runs)]


def by_seed(tts: IndexTTS2, seeds: Sequence[int]) -> list[tuple[int, float]]:
    """Codes and seconds of calls with free length and different seeds."""
    found = []
    for seed in seeds:
        record = speak(tts, seed=seed)
        found.append((record.telemetry.tokens, record.total_s))
    return found


def ratio_interval(before: Timing, after: Timing, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Speed-up as a ratio of medians, with a 95 % interval by bootstrap: (low, middle, high)."""
    random = np.random.default_rng(seed)
    first, second = np.asarray(before.seconds), np.asarray(after.seconds)
    ratios = np.median(random.choice(first, (draws, len(first))), axis=1) / np.median(random.choice(second, (draws, len(second))), axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), statistics.median(before.seconds) / statistics.median(after.seconds), float(high)


def compare_paths(tts: IndexTTS2, runs: int = 5) -> dict[str, Timing]:
    """Plain and accelerated path in turns, with the same forced codes; the engine is left as it was."""
    before = tts.use_accel

    def with_path(accelerated: bool) -> None:
        tts.use_accel = accelerated
        forced_call_s(tts)

    try:
        return interleaved({"plain": lambda: with_path(False), "accelerated": lambda: with_path(True)}, runs)
    finally:
        tts.use_accel = before
