"""Damage that the header of a model file shows: truncation, another kind of file, entries in the wrong place."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

_LFS_POINTER = b"version https://git-lfs"
_LEGACY_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of torch files from before the zip format
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def check_checkpoint(path: Path, deep: bool = False) -> str | None:
    """What is wrong with a ``.safetensors`` or torch file, or None."""
    try:
        size = path.stat().st_size
        if size == 0:
            return "the file is empty"
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"
    if start.startswith(_LFS_POINTER):
        return "this is a Git LFS pointer, not the file it stands for"
    if start.lstrip()[:1] == b"<":
        return "this is a web page, not a model"
    if path.suffix == ".safetensors":
        return _check_safetensors(path, size)
    if start.startswith(b"PK"):
        return _check_zip(path, size, deep)
    if start.startswith(_LEGACY_PICKLE):
        return None
    return "this is neither a torch file nor a safetensors file"


def _check_safetensors(path: Path, size: int) -> str | None:
    """The header names the place of each tensor; the last one must end where the file ends."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_SAFETENSORS_HEADER + 1
        if length > _MAX_SAFETENSORS_HEADER:
            return "this is not a safetensors file"
        if 8 + length > size:
            return f"truncated: its header alone needs {8 + length} bytes, the file has {size}"
        try:
            header = json.loads(file.read(length))
            end = max((int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "its safetensors header is damaged"
    needed = 8 + length + end
    if size < needed:
        return f"truncated: it has {size} of {needed} bytes"
    return None if size == needed else f"it has {size - needed} bytes too many"


def _check_zip(path: Path, size: int, deep: bool) -> str | None:
    """A torch file is a zip archive: its directory is at the end, and every entry starts with a signature."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = archive.infolist()
            if not any(entry.filename.endswith("/data.pkl") for entry in entries):
                return "this is a zip archive, but not one that torch wrote"
            for entry in entries:
                file.seek(entry.header_offset)
                if entry.header_offset + entry.compress_size > size or file.read(4) != b"PK\x03\x04":
                    return f"damaged: its entry {entry.filename} is not where the archive's directory says"
            broken = archive.testzip() if deep else None
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        return f"truncated or damaged ({error})"
    return f"damaged: the checksum of its entry {broken} is wrong" if broken else None
