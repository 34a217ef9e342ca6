"""The parts of a long rendering on disk: each written whole or not at all, listed in a journal, and joined at the end.

A part is named by a hash of everything that decides its sound. A run that is repeated finds the parts that it would make and goes on
with the others; a part whose file does not hold what the journal says is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from indextts.audio import replace_file

JOURNAL = "journal.jsonl"
LOCK = "lock"
LARGEST_WAV = 2**32 - 4096  # bytes; sizes in a WAV file have 32 bits


@dataclass(frozen=True)
class Part:
    """A finished part: the key of its content, samples, and the SHA-256 of its file."""

    key: str
    samples: int
    digest: str


class PartStore:
    """A folder of parts: raw 16-bit little-endian samples, and a journal with one line a part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: BinaryIO | None = self._take_lock()
        self._parts = {part.key: part for part in self._read_journal()}
        self._checked: set[str] = set()

    def get(self, key: str) -> Part | None:
        """A finished part whose file is as it was written, or None."""
        part = self._parts.get(key)
        if part is None or key in self._checked:
            return part
        try:
            data = self.path(key).read_bytes()
        except OSError:
            return None
        if len(data) != 2 * part.samples or hashlib.sha256(data).hexdigest() != part.digest:
            return None
        self._checked.add(key)
        return part

    def put(self, key: str, samples: np.ndarray) -> Part:
        """Write a part, int16 (n,), then its line. Errors: ``OSError``, with no trace of the part."""
        data = np.ascontiguousarray(samples, dtype="<i2").tobytes()
        replace_file(self.path(key), data)
        part = Part(key, len(data) // 2, hashlib.sha256(data).hexdigest())
        line = json.dumps({"key": key, "samples": part.samples, "sha256": part.digest}) + "\n"
        with (self.folder / JOURNAL).open("ab") as file:  # after a torn line a new one begins
            file.write(b"\n" + line.encode() if self._torn(file) else line.encode())
        self._parts[key] = part
        self._checked.add(key)
        return part

    def read(self, part: Part) -> np.ndarray:
        """Its samples, int16 (n,)."""
        return np.frombuffer(self.path(part.key).read_bytes(), dtype="<i2")

    def path(self, key: str) -> Path:
        """Where the part ``key`` lies or would lie."""
        return self.folder / f"{key}.pcm"

    def close(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Delete the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> PartStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self) -> BinaryIO | None:
        try:
            import fcntl
        except ImportError:  # Windows: two runs at once do double work, but no harm, since parts are replaced whole
            return None
        file = (self.folder / LOCK).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise RuntimeError(f"another run is working on {self.folder}; wait for it, or name another output") from None
        return file

    def _read_journal(self) -> Iterator[Part]:
        try:
            lines = (self.folder / JOURNAL).read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that was cut short by a crash
                entry: dict[str, Any] = json.loads(line)
                key, digest = str(entry["key"]), str(entry["sha256"])
                if key.isalnum():
                    yield Part(key, int(entry["samples"]), digest)

    @staticmethod
    def _torn(file: BinaryIO) -> bool:
        if not file.tell():
            return False
        with Path(file.name).open("rb") as reader:
            reader.seek(-1, os.SEEK_END)
            return reader.read(1) != b"\n"


def join(store: PartStore, pieces: list[Part | int], path: Path, sample_rate: int) -> int:
    """Write parts, and silences of so many samples, one after the other into ``path`` (.wav or .flac); the number of samples.

    Memory holds one part at a time. The file appears when it is complete. Errors: ``OSError``; ``ValueError`` if a WAV file cannot be so
    long.
    """
    import soundfile

    total = sum(piece if isinstance(piece, int) else piece.samples for piece in pieces)
    kind = "FLAC" if path.suffix.lower() == ".flac" else "WAV"
    if kind == "WAV" and 2 * total > LARGEST_WAV:
        raise ValueError(
            f"{2 * total / 1e9:.1f} GB of sound do not fit into a WAV file; name a .flac file, the finished parts will be used"
        )
    path = Path(os.path.realpath(path.expanduser()))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with soundfile.SoundFile(unfinished, "w", sample_rate, 1, "PCM_16", format=kind) as file:
            for piece in pieces:
                for block in _blocks(store, piece):
                    file.write(block)
        if soundfile.info(unfinished).frames != total:
            raise OSError(f"{path} could not be written completely")  # libsndfile does not report a disk that is full
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return total


def _blocks(store: PartStore, piece: Part | int, block: int = 2**16) -> Iterator[np.ndarray]:
    if isinstance(piece, Part):
        yield store.read(piece)
        return
    for begin in range(0, piece, block):
        yield np.zeros(min(block, piece - begin), np.int16)
