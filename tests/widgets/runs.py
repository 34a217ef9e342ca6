"""Run records made by hand, for panels that show them."""

from __future__ import annotations

from typing import Any

import numpy as np

from indextts.engine.telemetry import SegmentRecord, StageTime, Telemetry
from indextts.runs import RunRecord

RATE = 22050


def record(number: int, rtf: float = 0.5, label: str | None = None, text: str = "Hello there.", **settings: Any) -> RunRecord:
    """A second of noise that took ``rtf`` seconds: half in the GPT, a quarter in S2Mel, a fifth in the vocoder."""
    parts = {"gpt": 0.5 * rtf, "s2mel": 0.25 * rtf, "bigvgan": 0.2 * rtf}
    times, at = [StageTime("prompt", 0, 0.0, 0.01)], 0.01
    for stage, seconds in parts.items():
        times.append(StageTime(stage, 0, at, seconds))
        at += seconds
    telemetry = Telemetry(
        total_s=rtf, gpt_s=parts["gpt"], s2mel_s=parts["s2mel"], bigvgan_s=parts["bigvgan"], other_s=0.05 * rtf, audio_s=1.0, rtf=rtf,
        tokens=50, tokens_per_s=50 / parts["gpt"], mel_frames=86, text=text, seed=1, first_audio_s=0.9 * rtf,
        settings={"device": "cpu", "precision": "fp32", "use_accel": True, "num_beams": 3, "diffusion_steps": 25, **settings},
        segments=[SegmentRecord(0, 5, 50, 86, RATE, False)], stages=times,
    )  # fmt: skip
    samples = (np.random.default_rng(number).standard_normal(RATE) * 2000).astype(np.int16)
    return RunRecord(number, label or f"run {number}", 1.7e9 + number, {"text": text}, telemetry, RATE, samples)
