"""What needs no judge: where speech begins and ends, clicks where segments meet, and a vocoder's buzz.

Arrays are mono, float in [-1, 1] or int16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_FRAME_S = 0.01
_SPEECH_DB = -35.0  # below the loudest frames
_PAUSE_S = 0.15  # longer than the closure of a consonant
_CLICK_WINDOW_S = 0.02
_BUZZ_HZ = (2000.0, 5000.0)  # above most harmonics that agree with a frame's length by chance
_BUZZ_PERIOD_S = 256 / 22050  # a mel frame
_BUZZ_WINDOW_S = 0.09
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


def spoken_s(samples: npt.NDArray[Any], rate: int) -> float:
    """Seconds of that in which somebody speaks: pauses of 0.15 s and more left out."""
    begin, end = (round(seconds / _FRAME_S) for seconds in speech_span(samples, rate))
    if begin == end:
        return 0.0
    levels = frame_db(samples, rate)
    quiet = levels[begin:end] <= np.percentile(levels, 98) + _SPEECH_DB
    turns = np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)  # where each quiet stretch begins and ends
    stretches = turns[:, 1] - turns[:, 0]
    return float((end - begin - stretches[stretches >= round(_PAUSE_S / _FRAME_S)].sum()) * _FRAME_S)


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


def buzz(samples: npt.NDArray[Any], rate: int) -> float:
    """How much of the sound from 2 to 5 kHz repeats with every mel frame: 0 for speech, 1 for a tone and its harmonics at 86 Hz.

    It is the mean correlation of windows with themselves one frame later, of those within 40 dB of the loudest. A vocoder that has learnt
    spectra but not what lies between two frames makes the same wave in each. NaN for less than two windows or silence.
    """
    sound, shift, width = floats(samples), round(rate * _BUZZ_PERIOD_S), round(rate * _BUZZ_WINDOW_S)
    starts = range(0, sound.size - width - shift, width // 2)
    if len(starts) < 2:
        return float("nan")
    hertz = np.fft.rfftfreq(sound.size, 1 / rate)
    band = np.fft.irfft(np.fft.rfft(sound) * ((hertz > _BUZZ_HZ[0]) & (hertz < _BUZZ_HZ[1])), sound.size)
    pairs = [(band[at : at + width], band[at + shift : at + shift + width]) for at in starts]
    powers = [float(np.linalg.norm(one) * np.linalg.norm(other)) for one, other in pairs]
    if max(powers) <= 1e-9:
        return float("nan")
    return float(np.mean([(one @ other) / power for (one, other), power in zip(pairs, powers, strict=True) if power > 1e-4 * max(powers)]))
