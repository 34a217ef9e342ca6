"""Lesson 09: what padding does to a solver, and what rendering together brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from indextts.infer_v2_modded import group_sentences_by_length
from widgets.lessons.engine import length_limit, quiet_limits
from widgets.lessons.measure import Timing, interleaved
from widgets.lessons.precision import relative_error

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

TEXTS = ("The tide turns.", "Rain all day.", "He read the letter twice.")


def solver_errors(tts: IndexTTS2, frames: Sequence[int] = (60, 100), steps: int = 4) -> dict[str, float]:
    """Relative error of the shorter of two samples solved in one batch, against the same sample alone.

    ``zeros, no lengths``: padded with zeros and treated as if the padding were sound. ``zeros, with lengths``: the solver is told where
    each sample ends.
    """
    stages, (short, long) = tts._stages, sorted(frames)
    cfm, device = stages.s2mel.cfm, tts.device
    content = stages.config.s2mel.length_regulator.channels
    style_width = stages.config.s2mel.style_encoder.dim
    draws = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=draws)

    mu, noise, style, prompt = draw(2, long, content), draw(2, 80, long), draw(2, style_width), draw(2, 80, 20)
    mu[0, short:] = 0

    def work(_: object) -> dict[str, float]:
        with stages.float32_originals(), stages.running():
            alone = cfm.solve(mu[:1, :short], prompt[:1], style[:1], steps=steps, noise=noise[:1, :, :short])
            padded = cfm.solve(mu, prompt, style, steps=steps, noise=noise)
            told = cfm.solve(mu, prompt, style, steps=steps, noise=noise, lengths=torch.tensor([short, long], device=device))
        return {
            "zeros, no lengths": relative_error(padded[:1, :, :short], alone),
            "zeros, with lengths": relative_error(told[:1, :, :short], alone),
        }

    found: dict[str, float] = tts._worker.call(work)
    return found


def requests(tts: IndexTTS2, texts: Sequence[str] = TEXTS) -> list[dict[str, Any]]:
    """One request a text, each with a seed of its own."""
    voice = tts.default_voice()
    return [{"spk_audio_prompt": voice, "text": text, "seed": index, **length_limit(tts, text)} for index, text in enumerate(texts)]


def together_and_alone(tts: IndexTTS2, texts: Sequence[str] = TEXTS, runs: int = 2) -> tuple[dict[str, Timing], float, list[int]]:
    """Times of rendering ``texts`` one by one and together, the seconds of sound, and each text's largest difference in 16-bit steps."""
    asked = requests(tts, texts)
    results: dict[str, list[Any]] = {}

    def alone() -> None:
        results["alone"] = [tts.infer(**request) for request in asked]

    def together() -> None:
        results["together"] = tts.infer_batch(asked)

    with quiet_limits(tts):
        tts.infer(**asked[0])  # warm enough: a whole round of each would take as long as the measurement
        times = interleaved({"one by one": alone, "together": together}, runs, warmup=0)
    pairs = list(zip(results["alone"], results["together"], strict=True))
    seconds = sum(len(samples) / rate for (rate, samples), _ in pairs)
    return times, seconds, [_difference(one[1], other[1]) for one, other in pairs]


def _difference(first: Any, second: Any) -> int:
    """Largest difference of two int16 waves; of waves of unequal length the full range."""
    if first.shape != second.shape:
        return 65535
    return int(np.abs(first.astype(np.int32) - second.astype(np.int32)).max())


def padding_percent(lengths: Sequence[int], tolerance: float, most: int = 4) -> tuple[float, int]:
    """Percent of the work in batches of these lengths that goes to padding, and the number of batches."""
    groups = group_sentences_by_length([range(length) for length in lengths], tolerance, most)
    paid = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    return 100 * (1 - sum(lengths) / paid), len(groups)
