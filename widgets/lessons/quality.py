"""Lesson 13: what fewer steps, fewer beams and no guidance change, by a measure, and what they save."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from widgets.lessons.engine import quiet_limits
from widgets.lessons.measure import synchronize
from widgets.lessons.walk import Walk, log_mel_distance_db

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2


@dataclass
class StepLadder:
    """The same codes and the same noise, solved with different numbers of Euler steps.

    ``distance_db``: log-mel distance to the finest solution; ``seconds``: of the solve; ``mels``: by steps.
    """

    steps: list[int]
    reference_steps: int
    distance_db: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    mels: dict[int, Tensor] = field(default_factory=dict)


def climb(walk: Walk, codes: Tensor, latents: Tensor, steps: list[int], reference_steps: int = 64) -> StepLadder:
    """Solve with each number of steps and compare with ``reference_steps``."""
    ladder = StepLadder(steps, reference_steps)
    finest = walk.mel(codes, latents, steps=reference_steps)
    for count in steps:
        synchronize()
        begin = time.perf_counter()
        mel = walk.mel(codes, latents, steps=count)
        synchronize()
        ladder.seconds.append(time.perf_counter() - begin)
        ladder.distance_db.append(log_mel_distance_db(mel, finest))
        ladder.mels[count] = mel
    return ladder


def guidance_costs(walk: Walk, codes: Tensor, latents: Tensor, rates: list[float], steps: int = 8) -> list[dict[str, Any]]:
    """Seconds of a solve and distance to the unguided mel for each rate of guidance."""
    plain = walk.mel(codes, latents, steps=steps, guidance=0.0)
    rows = []
    for rate in rates:
        synchronize()
        begin = time.perf_counter()
        mel = walk.mel(codes, latents, steps=steps, guidance=rate)
        synchronize()
        rows.append(
            {"guidance": rate, "solve (ms)": 1e3 * (time.perf_counter() - begin), "distance to none (dB)": log_mel_distance_db(mel, plain)}
        )
    return rows


def beam_costs(tts: IndexTTS2, beams: list[int], codes: int = 30) -> dict[int, float]:
    """GPT milliseconds a code for each number of beams, forced codes, warm."""
    found = {}
    with quiet_limits(tts):
        for count in beams:
            times = []
            for _ in range(2):
                tts.infer_forced(
                    codes, spk_audio_prompt=tts.default_voice(), text="The harbour was quiet.", seed=1, num_beams=count, diffusion_steps=1
                )
                times.append(tts.last_gpt_time)
            found[count] = 1e3 * times[-1] / codes
    return found
