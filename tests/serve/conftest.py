"""The service on a pool of fake workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from indextts.parallel import WorkerPool
from tests.parallel.fakes import VOICE, FakeWorker, pool_of

__all__ = ["pool_of"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two voices, and files that are none."""
    folder = tmp_path / "voices"
    folder.mkdir()
    soundfile.write(folder / "anna.wav", VOICE[1], VOICE[0])
    soundfile.write(folder / "bob.flac", VOICE[1], VOICE[0])
    (folder / "notes.txt").write_text("not a voice")
    (folder / ".hidden.wav").write_bytes(b"")
    soundfile.write(tmp_path / "secret.wav", VOICE[1], VOICE[0])
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    return folder


@pytest.fixture
def app_of(pool_of: Callable[..., WorkerPool], folder: Path) -> Callable[..., Any]:
    """Make the application on fake workers."""
    pytest.importorskip("starlette", reason="needs the extra cluster")

    def make(*workers: FakeWorker, pool_options: dict[str, Any] | None = None, **options: Any) -> Any:
        from indextts.serve import make_app
        from indextts.serve_voices import VoiceFolder

        return make_app(pool_of(*(workers or (FakeWorker(),)), **(pool_options or {})), VoiceFolder(folder), **options)

    return make
