"""A small release on disk, and a private copy of it for every test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from indextts.release import find as finding
from indextts.release import (
    write_random_release,
)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_release(tmp_path_factory.mktemp("original"), "small")


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of hard links: to damage a file, replace it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no cache"))
    finding._say_bundled.cache_clear()
    return Path(shutil.copytree(original, tmp_path / "voice", copy_function=os.link))
