"""Audio in and out: reading prompts, the two resampled signals that the models hear, writing WAV files.

Only the first 15 seconds of a prompt are used, as in the release. The speaker prompt reaches 16 kHz through 22 050 Hz and a second
resampler, the emotion prompt directly; the models were trained on exactly these signals, so both routes are kept.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import shlex
import stat
import uuid
import wave as wave_format
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from torch import Tensor

AudioSource: TypeAlias = "str | os.PathLike[str] | tuple[int, Any] | npt.NDArray[Any] | Tensor"
Samples: TypeAlias = npt.NDArray[np.float32]

SAMPLE_RATE = 22050
SEMANTIC_RATE = 16000
PROMPT_SECONDS = 15
READ_SECONDS = 18  # the resampler needs samples beyond the cut; with these the first 15 s are the same as from the whole file
SHORTEST_SECONDS = 0.3
SILENCE_DBFS = -80.0
LOWEST_RATE, HIGHEST_RATE = 4000, 768_000
MOST_CHANNELS = 64
LARGEST_PEAK = 32.0  # 30 dB over full scale: float audio beyond this holds integers that nobody scaled


# ------------------------------------------------------------------------------------------------------------- reading


def load_audio(source: AudioSource, *, sample_rate: int | None = None, role: str = "reference voice") -> tuple[Samples, int]:
    """Read a prompt: mono float32 samples (n,), as far as they are needed (18 s), and their rate in Hz.

    ``source`` is a path, ``(sample_rate, array)``, or an array or tensor together with ``sample_rate``. Arrays hold float32
    in [-1, 1] or integers (int16, int32, uint8); in two dimensions the smaller one is the channels, which are averaged. ``role``
    says in messages what the audio was meant for. Errors: ``FileNotFoundError``; ``ValueError`` if the audio cannot be decoded, is
    empty, shorter than 0.3 s, silent or not finite, or if its rate, type or shape makes no sense.
    """
    if isinstance(source, (str, os.PathLike)):
        name = f"{role} {os.fspath(source)!r}"
        if not os.fspath(source):
            raise ValueError(f"{name} is no file name")
        samples, rate = _read_file(Path(source), name)
        if sample_rate is not None and sample_rate != rate:
            raise ValueError(f"{name} has a sample rate of {rate} Hz, not the {sample_rate} Hz given; leave sample_rate out for files")
    else:
        name = f"{role} (array)"
        array, given_rate = _split_array(source, sample_rate, name)
        rate = _checked_rate(given_rate, name)
        samples = _channels_last(array, name)[: READ_SECONDS * rate]
        samples = _to_float(samples, name)
    if samples.size == 0:
        raise ValueError(f"{name} is empty: it holds no samples")
    with np.errstate(over="ignore", invalid="ignore"):  # whatever is not finite is reported below
        mono: Samples = samples.mean(axis=1)
    _check_content(mono, rate, name)
    return mono, rate


def _read_file(path: Path, name: str) -> tuple[Samples, int]:
    try:
        path = path.expanduser()
        status = path.stat()
    except PermissionError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RuntimeError) as error:  # also names that no file can have, such as the text to speak in the wrong place
        raise FileNotFoundError(f"{name}: no such file" + ("" if path.is_absolute() else f" (looked in {Path.cwd()})")) from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{name} is a folder; give the path of an audio file")
    if status.st_size == 0:
        raise ValueError(f"{name} is empty (0 bytes)")
    try:
        path.open("rb").close()  # libsndfile would only say "System error"
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    try:
        with soundfile.SoundFile(path) as file:
            rate = _checked_rate(file.samplerate, name)
            _check_channels(file.channels, name)
            return file.read(READ_SECONDS * rate, dtype="float32", always_2d=True), rate
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless formats, which do not state their rate
        raise ValueError(
            f"{name} cannot be decoded ({error}). WAV, FLAC, OGG and MP3 files work; convert others first, "
            f"for example: ffmpeg -i {shlex.quote(path.name)} {shlex.quote(path.stem + '_converted.wav')}"
        ) from error


def _split_array(source: Any, sample_rate: int | None, name: str) -> tuple[npt.NDArray[Any], Any]:
    if isinstance(source, tuple):
        if len(source) != 2 or np.ndim(source[0]) != 0:
            raise ValueError(f"{name}: a tuple must be (sample_rate, array)")
        if sample_rate not in (None, source[0]):
            raise ValueError(f"{name}: the tuple says {source[0]} Hz and sample_rate says {sample_rate} Hz")
        sample_rate, source = source
    elif not isinstance(source, (np.ndarray, Tensor)):
        raise ValueError(f"{name}: expected a path, (sample_rate, array), or an array with sample_rate; got {type(source).__name__}")
    if sample_rate is None:
        raise ValueError(f"{name}: an array does not state its sample rate; pass (sample_rate, array) or sample_rate=...")
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    return np.asarray(source), sample_rate


def _checked_rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not float(rate).is_integer():
        raise ValueError(f"{name}: the sample rate must be a whole number of Hz; got {rate!r}")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"{name}: a sample rate of {int(rate)} Hz makes no sense; it must lie between {LOWEST_RATE} and {HIGHEST_RATE}")
    return int(rate)


def _check_channels(channels: int, name: str) -> None:
    if channels > MOST_CHANNELS:
        raise ValueError(f"{name} has {channels} channels; at most {MOST_CHANNELS} are accepted")


def _channels_last(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise ValueError(f"{name}: audio has one or two dimensions; got shape {array.shape}")
    if array.shape[0] < array.shape[1]:
        array = array.T
    _check_channels(array.shape[1], name)
    return array


def _to_float(array: npt.NDArray[Any], name: str) -> Samples:
    """Samples in [-1, 1] as float32, integers divided by their full scale."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(array, dtype=np.float32)
    if (kind, size) == ("u", 1):
        return np.asarray((array - np.float32(128)) / 128, dtype=np.float32)
    if kind == "i" and size in (2, 4):
        return np.asarray(array / 2.0 ** (8 * size - 1), dtype=np.float32)
    raise ValueError(f"{name}: samples of type {array.dtype} have no known full scale; use float32 in [-1, 1], int16, int32 or uint8")


def _check_content(mono: Samples, rate: int, name: str) -> None:
    if mono.size < SHORTEST_SECONDS * rate:
        raise ValueError(f"{name} is too short: {mono.size / rate:.3f} s; it must last {SHORTEST_SECONDS} s at least, better 3 to 15 s")
    if not np.isfinite(mono).all():
        raise ValueError(f"{name} holds NaN or infinite samples; export it again")
    peak = float(np.abs(mono[: PROMPT_SECONDS * rate]).max())
    if peak < 10 ** (SILENCE_DBFS / 20):
        level = f"its peak is {20 * math.log10(peak):.0f} dBFS" if peak else "all samples are zero"
        raise ValueError(f"{name} is silent: {level}, mixed to mono, in the first {PROMPT_SECONDS} s")
    if peak > LARGEST_PEAK:
        raise ValueError(f"{name}: float samples must lie in [-1, 1], but the peak is {peak:g}; divide 16-bit values by 32768")


# ---------------------------------------------------------------------------------------------------------- resampling


def speaker_waveforms(mono: Samples, rate: int) -> tuple[Tensor, Tensor]:
    """Speaker prompt, on the CPU: the first 15 s at 22 050 Hz (n,), and the same at 16 kHz (m,), made from the former."""
    wav22k = torch.tensor(_soxr(mono, rate, SAMPLE_RATE)[: PROMPT_SECONDS * SAMPLE_RATE])
    wav16k: Tensor = sinc_resampler()(wav22k)
    return wav22k, wav16k


def emotion_waveform(mono: Samples, rate: int) -> Tensor:
    """Emotion prompt, on the CPU: the first 15 s at 16 kHz (m,), resampled once."""
    return torch.tensor(_soxr(mono, rate, SEMANTIC_RATE)[: PROMPT_SECONDS * SEMANTIC_RATE])


@lru_cache(maxsize=1)
@torch.inference_mode(False)
def sinc_resampler() -> torch.nn.Module:
    """Torchaudio's default windowed-sinc filter (Hann, 6 zero crossings, roll-off 0.99) from 22 050 to 16 000 Hz, on the CPU."""
    from torchaudio.transforms import Resample

    with torch.device("cpu"):
        resampler: torch.nn.Module = Resample(SAMPLE_RATE, SEMANTIC_RATE)
    return resampler


def _soxr(mono: Samples, rate: int, target: int) -> Samples:
    """SoX resampler, quality "HQ"; the length is rounded up with zeros, as librosa does."""
    if rate == target:
        return mono
    length = math.ceil(mono.size * (target / rate))
    resampled = soxr.resample(mono, rate, target, quality="HQ")[:length]
    return np.pad(resampled, (0, length - resampled.size))


def content_key(mono: Samples, rate: int) -> str:
    """Hexadecimal hash of the samples and their rate: equal for equal sound, whatever the file is called."""
    digest = hashlib.blake2b(np.ascontiguousarray(mono, dtype="<f4").tobytes(), digest_size=16)
    digest.update(f"|{rate}".encode())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------- writing


def pcm16(wave: Tensor | npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Samples in PCM scale (within +-32767) to int16 of the same shape, truncated toward zero; int16 passes unchanged."""
    wave = torch.as_tensor(wave).detach().cpu()
    if wave.dtype != torch.int16:
        wave = wave.clamp(-32767, 32767).to(torch.int16)
    samples: npt.NDArray[np.int16] = wave.numpy()
    return samples


def write_wav(path: str | os.PathLike[str], wave: Tensor | npt.NDArray[Any], sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono samples in PCM scale as a 16-bit WAV file, creating its folders.

    The file appears under its name only when complete: a failure leaves an old file as it was and nothing else behind. Errors:
    ``OSError`` (or the subclass that fits) naming the path and the cause, ``ValueError`` for no samples or several channels.
    """
    samples = pcm16(wave)
    if samples.size == 0 or samples.size != max(samples.shape, default=0):
        raise ValueError(f"cannot write {os.fspath(path)!r}: expected mono samples, got shape {samples.shape}")
    buffer = io.BytesIO()
    with wave_format.open(buffer, "wb") as file:
        file.setparams((1, 2, sample_rate, samples.size, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    try:
        replace_file(Path(path), buffer.getvalue())
    except OSError as error:
        raise OSError(error.errno, f"cannot write audio: {error.strerror or error}", os.fspath(path)) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, creating its folders; an old one stays until then. Errors: ``OSError``."""
    path = Path(os.path.realpath(path.expanduser()))  # a symbolic link stays one; the file it names is replaced
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "the path names a folder or a device, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
