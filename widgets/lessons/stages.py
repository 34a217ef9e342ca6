"""Lesson 08: where the time of a call went, and what a faster stage would bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indextts.engine.telemetry import Telemetry

STAGES = {"gpt": "GPT", "s2mel": "S2Mel", "bigvgan": "BigVGAN", "other": "other"}


def stage_seconds(record: Telemetry) -> dict[str, float]:
    """Seconds by stage; they add up to the total."""
    return {name: float(getattr(record, f"{key}_s")) for key, name in STAGES.items()}


def stage_shares(seconds: dict[str, float | None]) -> dict[str, float]:
    """Percent of the total by stage; a stage without a figure is left out of the list, not of the total."""
    total = sum(value for value in seconds.values() if value is not None)
    return {name: 100 * value / total for name, value in seconds.items() if value is not None}


def recorded_shares(row: dict[str, Any]) -> dict[str, float]:
    """Percent of the total by stage of a recorded row with ``gpt_s``, ``s2mel_s``, ``bigvgan_s`` (may be None) and ``total_s``."""
    known = {name: row[f"{key}_s"] for key, name in STAGES.items() if row.get(f"{key}_s") is not None}
    known["other"] = max(0.0, round(row["total_s"] - sum(known.values()), 6))  # the figures have few digits, so no more are meant
    return {name: 100 * value / row["total_s"] for name, value in known.items()}


def amdahl(share_percent: float, faster: float) -> float:
    """Speed-up of the whole when the part that takes ``share_percent`` of it becomes ``faster`` times as fast.

    Errors: ``ValueError`` for a share outside 0 to 100 or a factor that is not positive.
    """
    if not 0 <= share_percent <= 100 or faster <= 0:
        raise ValueError(f"a share is 0 to 100 percent and a factor above 0, got {share_percent} and {faster}")
    share = share_percent / 100
    return 1 / (1 - share + share / faster)
