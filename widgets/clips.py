"""Reference clips that come from the reader: checked, kept as files for as long as the kernel lives, and named in presets and code."""

from __future__ import annotations

import atexit
import base64
import binascii
import hashlib
import io
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from indextts.audio import PROMPT_SECONDS, load_audio, pcm16

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MOST_MB = 20.0
BEST_SECONDS = 3.0


@dataclass(frozen=True)
class Voice:
    """A reference clip: what ``infer`` takes, its name for people, the Python expression for it, and what a preset stores of it."""

    source: Any
    label: str
    code: str
    preset: dict[str, Any]

    @classmethod
    def bundled(cls, path: Path) -> Voice:
        """A clip that comes with the weights."""
        return cls(str(path), path.stem, repr(str(path)), {"kind": "bundled", "name": path.name})

    @classmethod
    def made_up(cls, tts: Any) -> Voice:
        """The tone that engines with random weights bring along."""
        return cls(tts.default_voice(), "made-up tone", "tts.default_voice()", {"kind": "default"})

    @classmethod
    def file(cls, path: Path | str) -> Voice:
        """A file on the kernel's machine. Errors: those of ``load_audio``."""
        path = Path(path).expanduser()
        load_audio(path)
        return cls(str(path), path.name, repr(str(path)), {"kind": "file", "path": str(path)})

    @classmethod
    def stored(cls, path: Path) -> Voice:
        """A clip of :func:`store_clip`; a preset holds its sound, because the file ends with the kernel."""
        return cls(str(path), path.name, repr(str(path)), {"kind": "sound", "name": path.name, "flac": _flac(path)})


@lru_cache(maxsize=1)
def clip_folder() -> Path:
    """Where clips from the reader lie until the kernel ends."""
    folder = Path(tempfile.mkdtemp(prefix="indextts-clips-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def store_clip(name: str, data: bytes) -> tuple[Path, str]:
    """Keep an uploaded or recorded clip; returns its path and a sentence about it.

    Errors: ``ValueError`` that names the clip if it is no audio, too short, silent, too large or of another type; nothing is kept then.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{name} is not one of {', '.join(SUFFIXES)}")
    if not data:
        raise ValueError(f"{name} is empty (0 bytes)")
    if len(data) > MOST_MB * 1e6:
        raise ValueError(f"{name} has {len(data) / 1e6:.1f} MB; at most {MOST_MB:g} MB are taken")
    stem = re.sub(r"[^\w.-]+", "_", Path(name).stem).strip("._")[:60] or "clip"
    folder = clip_folder() / hashlib.blake2b(data, digest_size=4).hexdigest()
    path = folder / f"{stem}{suffix}"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            load_audio(path)
        except (ValueError, OSError) as error:
            shutil.rmtree(folder)
            raise ValueError(str(error).replace(repr(str(path)), name)) from None
    return path, describe(path, name)


def describe(path: Path, name: str) -> str:
    """How long a clip is, and whether that is a good length."""
    info = soundfile.info(path)
    seconds = info.frames / info.samplerate
    text = f"{name}: {seconds:.1f} s, {info.samplerate} Hz."
    if round(seconds) < BEST_SECONDS:
        return f"{text} Short; 3 to 15 s sound better."
    return f"{text} The first {PROMPT_SECONDS} s are used." if seconds > PROMPT_SECONDS else text


def voice_of_preset(tts: Any, stored: Any) -> Voice:
    """The clip that a preset names. Errors: ``ValueError`` or ``FileNotFoundError`` that says what is missing."""
    if not isinstance(stored, dict):
        raise ValueError("the preset's voice must be a mapping with a kind")
    kind = stored.get("kind")
    if kind == "default":
        return Voice.made_up(tts)
    if kind == "bundled":
        clips = {path.name: path for path in bundled_clips(tts)}
        if stored.get("name") not in clips:
            raise ValueError(f"these weights have no clip {stored.get('name')!r}; they have: {', '.join(clips) or 'none'}")
        return Voice.bundled(clips[stored["name"]])
    if kind == "file":
        return Voice.file(str(stored.get("path", "")))
    if kind == "sound":
        try:
            data = base64.b64decode(stored["flac"], validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise ValueError("the preset's voice holds no sound that can be read") from None
        return Voice.stored(store_clip(f"{Path(str(stored.get('name', 'clip'))).stem}.flac", data)[0])
    raise ValueError(f"the preset's voice has the unknown kind {kind!r}")


def bundled_clips(tts: Any) -> list[Path]:
    """Clips that come with the weights, the default first."""
    release = getattr(tts, "release", None)
    return list(release.voices) if release is not None else []


def _flac(path: Path) -> str:
    """The first 15 s of a clip, mono 16-bit FLAC at its own rate, as base64."""
    mono, rate = load_audio(path)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm16(np.float32(32767) * mono[: PROMPT_SECONDS * rate]), rate, format="FLAC", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
