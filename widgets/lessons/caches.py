"""Lesson 07: what is kept between calls, how much memory it takes, and what the next call will need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from indextts import infer_v2_modded as limits
from widgets.lessons.engine import SENTENCE, quiet_limits

if TYPE_CHECKING:
    from indextts.config import GPTConfig
    from indextts.pipeline import IndexTTS2

Clip = tuple[int, npt.NDArray[np.float32]]


def made_up_voices(count: int, seconds: float = 3.0, rate: int = 22050) -> list[Clip]:
    """Clips of different pitch, made by formula: as good as any for measuring a cache."""
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(t.size)
    clips = []
    for index in range(count):
        pitch = 90 + 25 * index
        tone = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in range(1, 12))
        clips.append((rate, (0.15 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)) + 0.003 * noise).astype(np.float32)))
    return clips


@contextlib.contextmanager
def cache_limits(most_mb: float, check_every: int = 1) -> Iterator[None]:
    """Other cache settings inside the block; the old ones come back after it."""
    before = limits.MAX_CACHE_SIZE_MB, limits.CACHE_CHECK_INTERVAL
    limits.MAX_CACHE_SIZE_MB, limits.CACHE_CHECK_INTERVAL = most_mb, check_every
    try:
        yield
    finally:
        limits.MAX_CACHE_SIZE_MB, limits.CACHE_CHECK_INTERVAL = before


def visit(tts: IndexTTS2, voices: list[Clip], order: list[int], codes: int = 10) -> list[dict[str, Any]]:
    """Speak with the voices in the given order: per call whether the voice was known, its seconds, the caches and evictions after it."""
    rows: list[dict[str, Any]] = []
    for index in order:
        with quiet_limits(tts):
            tts.infer_forced(codes, spk_audio_prompt=voices[index], text=SENTENCE, seed=1, diffusion_steps=2)
        record = tts.last_telemetry
        rows.append(
            {
                "call": len(rows) + 1,
                "voice": "ABCDEFGH"[index],
                "known": record.speaker_cache_hit,
                "reading the voice (s)": record.prompt_s,
                "whole call (s)": record.total_s,
                "cached voices (MB)": tts.reference_cache.memory_mb,
                "evicted so far": tts.reference_cache.evictions,
            }
        )
    return rows


def key_value_mb(config: GPTConfig, positions: int, sequences: int = 1, bytes_each: int = 2) -> float:
    """Megabytes of keys and values: 2 x layers x width x positions x sequences."""
    return 2 * config.layers * config.model_dim * positions * sequences * bytes_each / 2**20


def would_fit(peaks: list[dict[str, Any]], total_mb: float, used_mb: float, threshold_percent: float = 90) -> list[dict[str, Any]]:
    """The rule of ``predict_oom_risk`` for recorded peaks (``path``, ``precision``, ``peak_gb``) on a card of one's own."""
    rows = []
    for row in peaks:
        percent = 100 * (used_mb + 1e9 * row["peak_gb"] / 2**20) / total_mb
        rows.append({"path": row["path"], "precision": row["precision"], "peak (GB)": row["peak_gb"], "fills (%)": percent})
        rows[-1][f"below {threshold_percent:g} %"] = percent < threshold_percent
    return rows
