"""Sound on the page: short clips as 16-bit FLAC inside the notebook, alone or as a pair at the same loudness."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soundfile

from widgets.lessons.pages import Shown, number

if TYPE_CHECKING:
    from indextts.runs import RunRecord

MOST_SECONDS = 4.0  # of a clip in a notebook that is kept under version control


def play(record: RunRecord, label: str | None = None) -> Shown:
    """A player for a run (its first four seconds), with its figures as caption."""
    name = label or record.label
    words = f"{name}: {number(record.audio_s)} s of sound in {number(record.total_s)} s, RTF {number(record.rtf)}"
    return Shown(f"<figure>{_tag(record.samples, record.sample_rate, name)}<figcaption>{html.escape(words)}</figcaption></figure>", words)


def listen(first: RunRecord, second: RunRecord, labels: tuple[str, str] | None = None) -> Shown:
    """Two runs one above the other, brought to the same loudness, so that the louder one does not win.

    For a blind comparison use :class:`widgets.ListeningPanel`.
    """
    names = labels or (first.label, second.label)
    pair = matched(first.samples, second.samples)
    rows = "".join(
        f"<tr><td>{letter}</td><td>{_tag(samples, record.sample_rate, name)}</td><td>{html.escape(name)}</td></tr>"
        for letter, samples, record, name in zip("AB", pair, (first, second), names, strict=True)
    )
    return Shown(f"<table>{rows}</table>", f"A: {names[0]}; B: {names[1]}")


def matched(first: npt.NDArray[np.int16], second: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Both clips at the loudness of the quieter one (mean power), which clips neither."""
    powers = [float(np.sqrt(np.mean(np.square(clip, dtype=np.float64)))) if len(clip) else 0.0 for clip in (first, second)]
    target = min(power for power in powers) if min(powers) > 0 else 0.0
    scaled = [
        np.round(clip * (target / power)).astype(np.int16) if target else clip for clip, power in zip((first, second), powers, strict=True)
    ]
    return scaled[0], scaled[1]


def _tag(samples: npt.NDArray[np.int16], rate: int, label: str) -> str:
    clip = samples[: int(MOST_SECONDS * rate)]
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, rate, format="FLAC", subtype="PCM_16")
    coded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<audio controls preload='metadata' aria-label='{html.escape(label, quote=True)}' src='data:audio/flac;base64,{coded}'></audio>"


def decoded(markup: str) -> list[tuple[npt.NDArray[np.int16], int]]:
    """The clips in a piece of HTML, as (samples, rate): what a test listens to."""
    clips: list[tuple[npt.NDArray[np.int16], int]] = []
    for part in markup.split("data:audio/flac;base64,")[1:]:
        found: Any = soundfile.read(io.BytesIO(base64.b64decode(part.split("'")[0])), dtype="int16")
        clips.append((found[0], found[1]))
    return clips
