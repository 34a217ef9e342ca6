"""Reference voices by name: the sound files of one folder, and nothing outside it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
LARGEST_FILE = 64 * 2**20  # bytes; only 18 s are read, but a file may lie about its length
MOST_VOICES = 10_000


class VoiceFolder:
    """Names are the file names without suffix. They are looked up in a list, never joined to a path, so no name leads elsewhere."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no folder of voices {str(folder)!r}; put reference clips of 3 to 15 seconds into one")
        self._lock = threading.Lock()
        self._stamp = -1
        self._voices: dict[str, Path] = {}
        if not self.names():
            raise ValueError(f"the folder of voices {self.folder} holds no {', '.join(SUFFIXES)} file")

    def names(self) -> list[str]:
        """All names, sorted; files that were added or removed meanwhile are noticed."""
        with self._lock:
            stamp = self.folder.stat().st_mtime_ns
            if stamp != self._stamp:
                self._voices, self._stamp = self._scan(), stamp
            return sorted(self._voices)

    def get(self, name: str) -> Path | None:
        """The clip of a voice, or None."""
        self.names()
        path = self._voices.get(name)
        return path if path is not None and _usable(path, self.folder) else None

    def _scan(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir())[:MOST_VOICES]:
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and _usable(path, self.folder):
                found.setdefault(path.stem, path)
        return found


def _usable(path: Path, folder: Path) -> bool:
    """A file of sensible size that lies in the folder itself: links to other places are not followed."""
    try:
        return path.is_file() and path.resolve().parent == folder and path.stat().st_size <= LARGEST_FILE
    except OSError:
        return False
