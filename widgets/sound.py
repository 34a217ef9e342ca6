"""Sound on its way to the browser and back: 16-bit WAV bytes, levels untouched."""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING, Any

import numpy as np

from indextts.audio import pcm16

if TYPE_CHECKING:
    import numpy.typing as npt


def wav_bytes(samples: Any, sample_rate: int) -> bytes:
    """Mono samples as a 16-bit PCM WAV: int16 as they are, floats in [-1, 1] scaled by 32767 and limited to that range.

    Errors: ``ValueError`` for more than one channel.
    """
    array = np.asarray(samples)
    if array.size != max(array.shape, default=0):
        raise ValueError(f"expected mono samples, got shape {array.shape}")
    pcm = pcm16(array if array.dtype == np.int16 else np.asarray(array, np.float32) * np.float32(32767)).reshape(-1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, sample_rate, pcm.size, "NONE", ""))
        file.writeframes(pcm.astype("<i2").tobytes())
    return buffer.getvalue()


def wav_samples(data: bytes) -> tuple[int, npt.NDArray[np.int16]]:
    """The inverse of :func:`wav_bytes`: (sample rate in Hz, int16 (n,)). Errors: ``ValueError`` for anything but a 16-bit mono WAV."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise ValueError(f"expected 16-bit mono, got {file.getnchannels()} channels of {8 * file.getsampwidth()} bits")
            return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError) as error:
        raise ValueError(f"not a WAV file: {error}") from None
