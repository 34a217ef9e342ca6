"""Sound for HTTP: int16 samples to WAV, FLAC, MP3 or raw PCM, whole or piece by piece."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

PCM_RATE = 24000  # of the speech API's raw format, which states no rate: clients assume this one
MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "pcm": "audio/pcm"}
_OPEN_LENGTH = 0xFFFFFFFF


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """What this machine can encode; MP3 needs libsndfile 1.1 or newer."""
    import soundfile

    known = soundfile.available_formats()
    return tuple(name for name in MEDIA_TYPES if name in ("wav", "pcm") or name.upper() in known)


def encode(samples: np.ndarray, rate: int, kind: str) -> bytes:
    """A complete file of int16 samples (n,)."""
    if kind == "pcm":
        return b"".join(_raw_pcm([samples], rate))
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind.upper(), **({} if kind == "mp3" else {"subtype": "PCM_16"}))
    return buffer.getvalue()


def encode_pieces(pieces: Iterable[np.ndarray], rate: int, kind: str) -> Iterator[bytes]:
    """The same while the sound is being made. Lengths in headers are left open, since nobody knows them yet."""
    if kind == "pcm":
        yield from _raw_pcm(pieces, rate)
    elif kind == "wav":
        data, byte_rate = _OPEN_LENGTH, 2 * rate
        yield struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", data, b"WAVE", b"fmt ", 16, 1, 1, rate, byte_rate, 2, 16, b"data", data)
        for piece in pieces:
            yield np.ascontiguousarray(piece, dtype="<i2").tobytes()
    else:
        yield from _through_libsndfile(pieces, rate, kind)


def _raw_pcm(pieces: Iterable[np.ndarray], rate: int) -> Iterator[bytes]:
    import soxr

    resampler = soxr.ResampleStream(rate, PCM_RATE, 1, dtype="float32", quality="HQ")

    def to_bytes(piece: np.ndarray, last: bool) -> bytes:
        wave = resampler.resample_chunk(piece.astype(np.float32), last=last)
        return np.clip(np.rint(wave), -32768, 32767).astype("<i2").tobytes()

    for piece in pieces:
        chunk = to_bytes(piece, False)
        if chunk:
            yield chunk
    yield to_bytes(np.zeros(0, np.int16), True)


def _through_libsndfile(pieces: Iterable[np.ndarray], rate: int, kind: str) -> Iterator[bytes]:
    """What the encoder appends; what it would correct in its header at the end has been sent by then."""
    import soundfile

    buffer = io.BytesIO()
    sent = 0
    # A constant bit rate: players tell the length of an MP3 without a final header by its rate (soundfile 0.13 and newer).
    options: dict[str, Any] = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if kind == "mp3" else {"subtype": "PCM_16"}
    try:
        opened = soundfile.SoundFile(buffer, "w", rate, 1, format=kind.upper(), **options)
    except TypeError:
        opened = soundfile.SoundFile(buffer, "w", rate, 1, format=kind.upper())
    with opened as file:
        for piece in pieces:
            file.write(piece)
            file.flush()
            size = buffer.getbuffer().nbytes
            if size > sent:
                yield buffer.getvalue()[sent:]
                sent = size
    yield buffer.getvalue()[sent:]
