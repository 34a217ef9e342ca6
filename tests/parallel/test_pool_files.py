"""If this fails, a pool writes files where nobody looks, leaves halves of them, or reads a voice again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from indextts.parallel import WorkerPool
from tests.parallel.fakes import VOICE, FakeWorker, request, text_of

Make = Callable[..., WorkerPool]


class TestFiles:
    def test_a_result_is_written_where_the_request_was_made(self, pool_of: Make, tmp_path: Path) -> None:
        path = tmp_path / "new" / "a.wav"
        assert pool_of(FakeWorker()).submit(request("hello", output_path=path)).result(10) == path
        assert soundfile.info(path).frames == 5

    def test_a_file_that_cannot_be_written_fails_its_request_alone(
        self, pool_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        pool = pool_of(FakeWorker())
        monkeypatch.setattr("indextts.audio.write_wav", full)
        with pytest.raises(OSError, match="No space left"):
            pool.submit(request("a", output_path=tmp_path / "a.wav")).result(10)
        assert text_of(pool.submit(request("b")).result(10)) == "b"
        assert list(tmp_path.iterdir()) == []

    def test_one_voice_is_read_once_and_again_when_it_changes(self, pool_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import indextts.audio

        reads = []
        load = indextts.audio.load_audio
        monkeypatch.setattr(indextts.audio, "load_audio", lambda *a, **k: reads.append(a) or load(*a, **k))
        voice = tmp_path / "voice.wav"
        soundfile.write(voice, VOICE[1], VOICE[0])
        pool = pool_of(FakeWorker())
        for _ in range(5):
            pool.submit({"spk_audio_prompt": voice, "text": "a"}).result(10)
        assert len(reads) == 1
        soundfile.write(voice, np.concatenate([VOICE[1], VOICE[1]]), VOICE[0])
        pool.submit({"spk_audio_prompt": voice, "text": "a"}).result(10)
        assert len(reads) == 2
