"""How something is said: pitch, melody, rate, loudness, brightness. For emotions, which change the manner and not the words."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts.evaluate.sound import floats, frame_db, speech_s
from indextts.evaluate.words import RATE, spoken_words

_LOW_HZ, _HIGH_HZ = 60.0, 420.0
_FRAME, _HOP = 640, 160  # 40 ms and 10 ms at 16 kHz
_VOICED = 0.5  # of the normalised autocorrelation
_FIRST_PEAK = 0.9  # of the highest: the shorter lag wins, or an octave is lost


@dataclass(frozen=True)
class Prosody:
    """Measures of one utterance; NaN where nothing is voiced."""

    pitch_hz: float  # geometric mean
    melody_semitones: float  # from the 10th to the 90th percentile
    words_per_s: float  # between the first and the last sound
    loudness_db: float  # of full scale, mean power of the frames with speech
    tilt_db_per_octave: float  # of the voiced spectrum, 200 Hz to 5 kHz: nearer to 0 is brighter
    voiced: float  # share of the speech frames

    def to_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return asdict(self)


def prosody(samples: npt.NDArray[Any], rate: int, text: str) -> Prosody:
    """Measure one utterance of ``text``."""
    import soxr

    sound = floats(samples)
    levels = frame_db(sound, rate)
    loud = levels[levels > np.percentile(levels, 98) - 35] if levels.size else levels
    loudness = float(10 * np.log10(np.mean(10 ** (loud / 10)))) if loud.size else float("nan")
    duration = speech_s(sound, rate)
    if rate != RATE and sound.size:
        sound = soxr.resample(sound, rate, RATE)
    pitch, spectrum = _pitch_and_spectrum(sound)
    voiced = pitch[pitch > 0]
    semitones = 12 * np.log2(voiced) if voiced.size else np.array([np.nan])
    return Prosody(
        pitch_hz=float(2 ** (semitones.mean() / 12)),
        melody_semitones=float(np.percentile(semitones, 90) - np.percentile(semitones, 10)),
        words_per_s=len(spoken_words(text)) / duration if duration > 0 else float("nan"),
        loudness_db=loudness,
        tilt_db_per_octave=_tilt(spectrum) if voiced.size else float("nan"),
        voiced=float(voiced.size / max(1, loud.size)),
    )


def pitch_track(samples: npt.NDArray[Any], rate: int) -> npt.NDArray[np.float64]:
    """Pitch in Hz every 10 ms, 0 where nothing is voiced, by normalised autocorrelation."""
    import soxr

    sound = floats(samples)
    return _pitch_and_spectrum(soxr.resample(sound, rate, RATE) if rate != RATE and sound.size else sound)[0]


def _pitch_and_spectrum(sound: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pitch of every frame, and the mean power spectrum of the voiced ones."""
    if sound.size < _FRAME:
        return np.zeros(0), np.zeros(_FRAME // 2 + 1)
    frames = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), _FRAME)[::_HOP]
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(_FRAME)
    power = np.square(np.abs(np.fft.rfft(frames, 2 * _FRAME)))
    window = np.fft.irfft(np.square(np.abs(np.fft.rfft(np.hanning(_FRAME), 2 * _FRAME))))[:_FRAME]
    correlation = np.fft.irfft(power)[:, :_FRAME]
    energy = correlation[:, :1]
    # The window's own autocorrelation is divided out (Boersma 1993), or long lags would look unvoiced.
    correlation = correlation / np.maximum(energy, 1e-9) / (window / window[0]).clip(min=1e-3)
    shortest, longest = int(RATE / _HIGH_HZ), int(RATE / _LOW_HZ)
    inside = correlation[:, shortest : longest + 1]
    best = inside.max(axis=1)
    left, right = correlation[:, shortest - 1 : longest], correlation[:, shortest + 1 : longest + 2]
    peaks = (inside >= left) & (inside >= right) & (inside >= _FIRST_PEAK * best[:, None])
    lag = shortest + peaks.argmax(axis=1)
    loud = energy[:, 0] > energy.max() * 10**-3.5
    voiced = (best > _VOICED) & peaks.any(axis=1) & loud
    spectrum = power[voiced].mean(axis=0)[::2] if voiced.any() else np.zeros(_FRAME + 1)
    return _smooth(np.where(voiced, RATE / (lag + _offset(correlation, lag)), 0.0)), spectrum


def _smooth(pitch: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Median of five frames, unvoiced ones left aside: single octave errors vanish."""
    padded = np.pad(np.where(pitch > 0, pitch, np.nan), 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 5)[pitch > 0]
    smooth = pitch.copy()
    if windows.size:
        smooth[pitch > 0] = np.nanmedian(windows, axis=1)
    return smooth


def _offset(correlation: npt.NDArray[np.float64], lag: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Where between the samples the peak lies, from a parabola through three of them."""
    rows = np.arange(len(lag))
    before, at, after = (correlation[rows, lag + shift] for shift in (-1, 0, 1))
    bend = before - 2 * at + after
    return np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, -1), 0.0)


def _tilt(spectrum: npt.NDArray[np.float64]) -> float:
    """Slope in dB per octave of the spectrum's level in third-octave bands."""
    hertz = np.linspace(0, RATE / 2, len(spectrum))
    edges = 200 * 2 ** (np.arange(0, 15) / 3)
    bands = [(np.sqrt(a * b), spectrum[(hertz >= a) & (hertz < b)]) for a, b in itertools.pairwise(edges)]
    octaves = np.array([np.log2(centre) for centre, values in bands if values.size])
    levels = np.array([10 * np.log10(values.mean() + 1e-12) for _, values in bands if values.size])
    return float(np.polyfit(octaves, levels, 1)[0])
