"""Machine code of CUDA kernels on disk, so that only the first process on a machine compiles it.

A file's name is a digest of everything that the code depends on, and its content carries a digest of itself: whatever was written by
another version, or only half, is not used. ``INDEXTTS_KERNEL_CACHE`` names another folder than the user's cache; ``off`` keeps nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from indextts.utils.cache_folder import user_cache

logger = logging.getLogger(__name__)
VARIABLE = "INDEXTTS_KERNEL_CACHE"
_DIGEST_BYTES = 32


def folder() -> Path | None:
    """Where machine code is kept, or None if nowhere."""
    given = os.environ.get(VARIABLE, "")
    if given.lower() in ("off", "0", "no", "none"):
        return None
    return Path(given) if given else user_cache() / "kernels"


def remembered(parts: Sequence[str], make: Callable[[], bytes]) -> bytes:
    """What ``make`` returns, from disk if it was made of the same ``parts`` (source, options, versions) before.

    A folder that cannot be written costs the memory, not the call. Errors: those of ``make``.
    """
    where = folder()
    if where is None:
        return make()
    path = where / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.cubin"
    known = _read(path)
    if known is not None:
        return known
    code = make()
    try:
        _write(path, code)
    except OSError as error:
        logger.debug("compiled kernels are not kept: %s", error)
    return code


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, unfinished = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(unfinished).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(unfinished).unlink()
        raise
