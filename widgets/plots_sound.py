"""Charts of sound: mel spectrograms and their difference, as Plotly figures from plain arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from widgets.plots import Figure, axis, figure, rounded

__all__ = ["difference_image", "mel_image", "wave_lines"]

Mel = npt.NDArray[np.float32]
HOP = 256
MOST_COLUMNS = 360
RANGE_DB = 80.0
SHOWN_HZ = (250, 500, 1000, 2000, 4000, 8000)


def mel_image(mel_db: Mel, sample_rate: int, title: str = "", *, duration_s: float | None = None, height: int = 220) -> Figure:
    """A mel spectrogram (bands, frames) in dB: time in s, frequency in kHz. ``duration_s``: right end, for charts side by side."""
    top = float(mel_db.max()) if mel_db.size else 0.0
    image, step_s = _columns(np.clip(mel_db, top - RANGE_DB, top), sample_rate)
    seconds = mel_db.shape[1] * HOP / sample_rate
    words = f"Mel spectrogram{f' of {title}' if title else ''}: {seconds:.2f} s, {mel_db.shape[0]} bands up to {sample_rate / 2000:.1f} kHz"
    return _image(image, step_s, mel_db.shape[0], sample_rate, words, title, duration_s or seconds, height, "Viridis", None)


def difference_image(first_db: Mel, second_db: Mel, sample_rate: int, title: str = "difference", *, height: int = 220) -> Figure:
    """First minus second, frame by frame over their common length, in dB: red where the first is louder, blue where the second is."""
    n = min(first_db.shape[1], second_db.shape[1])
    rest = np.clip(first_db[:, :n] - second_db[:, :n], -30, 30)
    image, step_s = _columns(rest, sample_rate)
    seconds = n * HOP / sample_rate
    words = f"Difference of two mel spectrograms over {seconds:.2f} s: {float(np.abs(rest).mean()) if n else 0.0:.2f} dB on average"
    return _image(image, step_s, first_db.shape[0], sample_rate, words, title, seconds, height, "RdBu", 30.0)


def wave_lines(samples: Any, sample_rate: int, title: str = "", *, height: int = 120) -> Figure:
    """The outline of a sound, float (n,) in [-1, 1]: lowest and highest sample of each of at most 720 slices."""
    sound = np.asarray(samples, dtype=np.float32).reshape(-1)
    slices = np.array_split(sound, max(1, min(2 * MOST_COLUMNS, sound.size)))
    x = np.arange(len(slices)) * (sound.size / sample_rate / len(slices))
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": rounded(np.repeat(x, 2)),
            "y": rounded(value for part in slices for value in ((part.min(), part.max()) if part.size else (0.0, 0.0))),
            "line": {"width": 1, "color": "#3b7dd8"},
            "hoverinfo": "skip",
        }
    ]
    peak = float(np.abs(sound).max()) if sound.size else 0.0
    level = f"{20 * math.log10(peak):.1f} dB" if peak else "silence"
    words = f"Waveform{f' of {title}' if title else ''}: {sound.size / sample_rate:.2f} s, peak {level}"
    largest = max(peak * 1.05, 1e-4)
    return figure(
        data,
        words,
        height=height,
        showlegend=False,
        xaxis=axis("time (s)"),
        yaxis=axis("amplitude", range=[-largest, largest], nticks=3),
        margin={"l": 56, "r": 20, "t": 8, "b": 36},
    )


def _columns(image: Mel, sample_rate: int) -> tuple[Mel, float]:
    """At most so many columns, each the mean of the frames it stands for, and the seconds of one."""
    frames = image.shape[1]
    every = max(1, math.ceil(frames / MOST_COLUMNS))
    if every > 1:
        padded = np.pad(image, ((0, 0), (0, -frames % every)), mode="edge")
        image = padded.reshape(image.shape[0], -1, every).mean(axis=2)
    return image, every * HOP / sample_rate


def _image(
    image: Mel, step_s: float, bands: int, rate: int, words: str, title: str, seconds: float, height: int, colours: str, limit: float | None
) -> Figure:
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": np.rint(image).astype(int).tolist() if limit is None else np.round(image, 1).tolist(),
        "x0": step_s / 2,
        "dx": step_s,
        "colorscale": colours,
        "colorbar": {"thickness": 8, "title": {"text": "dB", "side": "right"}, "outlinewidth": 0, "nticks": 5},
        "hovertemplate": "%{x:.2f} s, band %{y}: %{z:.1f} dB<extra></extra>",
    }
    if limit is not None:
        trace |= {"zmin": -limit, "zmax": limit, "zmid": 0}
    shown = [hertz for hertz in SHOWN_HZ if hertz < rate / 2]
    return figure(
        [trace],
        words,
        height=height,
        showlegend=False,
        title={"text": title, "font": {"size": 12}, "x": 0, "xanchor": "left", "y": 0.98, "yanchor": "top", "pad": {"l": 4}},
        xaxis=axis("time (s)", range=[0, max(seconds, step_s)]),
        yaxis=axis(
            "frequency (kHz)", tickvals=[band_of(hertz, bands, rate) for hertz in shown], ticktext=[f"{hertz / 1000:g}" for hertz in shown]
        ),
        margin={"l": 52, "r": 10, "t": 26, "b": 40},
    )


def band_of(hertz: float, bands: int, sample_rate: int) -> float:
    """The place of a frequency among ``bands`` mel bands from 0 to Nyquist, on Slaney's scale; band 0 is the lowest."""
    return (bands + 1) * _mel(hertz) / _mel(sample_rate / 2) - 1


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)
