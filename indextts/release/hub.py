"""The few calls to the Hugging Face hub that a download needs: list a repository with checksums, fetch a file from an offset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 8 * 2**20


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository, at one commit. ``digest``: SHA-256 of large files, else the git blob's SHA-1."""

    repo_id: str
    commit: str
    name: str
    size: int
    digest: str

    @property
    def is_large(self) -> bool:
        """Stored outside git (LFS or Xet), with a SHA-256."""
        return len(self.digest) == 64


class Hub:
    """A hub at ``endpoint`` (default ``HF_ENDPOINT``, else huggingface.co), asked with the user's own token if there is one."""

    def __init__(self, endpoint: str | None = None) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi(endpoint=endpoint)
        self.endpoint: str = self._api.endpoint

    def files(self, repo_id: str) -> dict[str, RemoteFile]:
        """Files of the main branch by name, pinned to its present commit."""
        info = self._api.model_info(repo_id, files_metadata=True)
        found = {}
        for entry in info.siblings or []:
            large = entry.lfs
            digest = large.sha256 if large is not None else entry.blob_id
            size = large.size if large is not None else entry.size
            if digest is not None and size is not None:
                found[entry.rfilename] = RemoteFile(repo_id, info.sha or "main", entry.rfilename, size, digest)
        return found

    def fetch(self, remote: RemoteFile, path: Path, report: Callable[[int], Any]) -> None:
        """Append to ``path`` what it lacks of ``remote``; ``report`` gets the number of bytes that it holds.

        The client's own ``hf_hub_download`` starts again after an interruption in its recent versions, hence the part file here.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(remote.repo_id, remote.name, revision=remote.commit, endpoint=self.endpoint)
        path.touch()
        with path.open("r+b") as file, _quiet_bars():
            start = file.seek(0, os.SEEK_END)
            report(start)
            if start == remote.size:
                return
            counted = _Counted(file, report)
            http_get(url, counted, resume_size=start, headers=build_hf_headers(), expected_size=remote.size)  # type: ignore[arg-type]


class _Counted:
    """A file that reports its length as it grows."""

    def __init__(self, file: BinaryIO, report: Callable[[int], Any]) -> None:
        self._file = file
        self._report = report

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._report(self._file.tell())
        return written

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Without the client's own progress bars: whoever asks for a download shows one."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def is_offline() -> bool:
    """Whether the user asked for no network (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    from huggingface_hub import constants

    set_now = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
    return bool(constants.HF_HUB_OFFLINE) or set_now


def file_hash(path: Path, remote: RemoteFile) -> str:
    """Checksum of a local file, of the kind that ``remote`` has."""
    digest = hashlib.sha256() if remote.is_large else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
