"""What needs no judge: where speech begins and ends, and clicks where segments meet. Arrays are mono, float in [-1, 1] or int16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_FRAME_S = 0.01
_SPEECH_DB = -35.0  # below the loudest frames
_CLICK_WINDOW_S = 0.02
_CLICK_RATIO, _CLICK_STEP = 3.0, 0.01  # times the steepest ordinary slope nearby; least step (-40 dB of full scale)


def floats(samples: npt.NDArray[Any]) -> Floats:
    """Float32 (n,) in [-1, 1] of (n,) or (n, 1)."""
    array = np.asarray(samples).reshape(-1)
    return np.asarray(array.astype(np.float32) / (32768 if np.issubdtype(array.dtype, np.integer) else 1), np.float32)


def frame_db(samples: npt.NDArray[Any], rate: int) -> Floats:
    """Level in dB of full scale of frames of 10 ms."""
    sound = floats(samples)
    step = max(1, round(rate * _FRAME_S))
    frames = sound[: sound.size // step * step].reshape(-1, step)
    return np.asarray(10 * np.log10(np.square(frames).mean(axis=1) + 1e-10) if frames.size else [], np.float32)


def speech_span(samples: npt.NDArray[Any], rate: int) -> tuple[float, float]:
    """Seconds where speech begins and ends: frames within 35 dB of the loudest; (0, 0) for silence."""
    levels = frame_db(samples, rate)
    if not levels.size or levels.max() < -60:
        return 0.0, 0.0
    loud = np.flatnonzero(levels > np.percentile(levels, 98) + _SPEECH_DB)
    return float(loud[0] * _FRAME_S), float((loud[-1] + 1) * _FRAME_S)


def speech_s(samples: npt.NDArray[Any], rate: int) -> float:
    """Seconds from the beginning of speech to its end."""
    begin, end = speech_span(samples, rate)
    return end - begin


def clicks(samples: npt.NDArray[Any], rate: int, joins: Sequence[int]) -> int:
    """How many of ``joins`` (index of the first sample after each) can be heard as a click.

    A click is a step of at least 1 % of full scale that is three times steeper than all ordinary steps within 20 ms.
    """
    sound = floats(samples)
    steps = np.abs(np.diff(sound))
    width = round(_CLICK_WINDOW_S * rate)
    count = 0
    for join in joins:
        if not 0 < join < sound.size:
            continue
        step = float(steps[join - 1])
        around = np.concatenate([steps[max(0, join - 1 - width) : join - 1], steps[join : join + width]])
        count += step > max(_CLICK_STEP, _CLICK_RATIO * float(around.max(initial=0.0)))
    return count
