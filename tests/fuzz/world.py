"""What the boundaries are tried on: a small engine, a release in a folder, a service on workers without engines."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import soundfile

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.release import write_random_release

RATE, CLIP = made_up_clip(0.5)
QUICK: dict[str, Any] = {"max_mel_tokens": 8, "diffusion_steps": 1, "num_beams": 1, "seed": 1}
CALL: dict[str, Any] = {"spk_audio_prompt": (RATE, CLIP), "text": "Hi.", **QUICK}
BAD_INPUT = (ValueError, TypeError, FileNotFoundError)


class World:
    """Everything, made when it is first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()

    def close(self) -> None:
        """End what was started."""
        self._stack.close()

    @cached_property
    def engine(self) -> IndexTTS2:
        """A small engine with random weights."""
        return self._stack.enter_context(IndexTTS2.from_random("small", device="cpu"))

    @cached_property
    def release(self) -> Path:
        """A small release on disk."""
        return write_random_release(self.folder / "original", "small")

    @cached_property
    def app(self) -> Any:
        """The service, on fake workers."""
        from indextts.parallel import WorkerPool
        from indextts.serve import make_app
        from indextts.serve_voices import VoiceFolder
        from tests.parallel.fakes import FakeWorker

        voices = self.folder / "voices"
        voices.mkdir()
        soundfile.write(voices / "anna.wav", CLIP, RATE)
        with mock.patch.object(WorkerPool, "_make_workers", staticmethod(lambda *_: ([FakeWorker()], lambda: None))):
            pool = self._stack.enter_context(WorkerPool())
        return make_app(pool, VoiceFolder(voices))

    @contextmanager
    def copy(self) -> Iterator[Path]:
        """A release of hard links: to change a file, replace it."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            yield Path(shutil.copytree(self.release, Path(place) / "voice", copy_function=os.link))


def attempt(call: Callable[[], Any], *documented: type[Exception]) -> tuple[Any, Exception | None]:
    """The result, or the exception if it is one of those documented."""
    try:
        return call(), None
    except documented as caught:
        error = caught
    assert str(error), f"{type(error).__name__} without a message"
    return None, error


def speaks_or_refuses(world: World, **changes: Any) -> str:
    """Call ``infer``: a whole file, or a documented exception and the old file."""
    with tempfile.TemporaryDirectory(dir=world.folder) as place:
        path = Path(place) / "speech.wav"
        path.write_bytes(b"old")
        _, error = attempt(lambda: world.engine.infer(**{**CALL, **changes}, output_path=path), *BAD_INPUT, RuntimeError)
        assert [entry.name for entry in path.parent.iterdir()] == ["speech.wav"]
        if error is not None:
            assert isinstance(error, BAD_INPUT) or "the model ended every segment at once" in str(error)
            assert path.read_bytes() == b"old"
            return "refused"
        assert soundfile.info(path).frames > 0
        return "accepted"


@contextmanager
def expected_warnings() -> Iterator[None]:
    """Random voices may run on, and any text may hold what the vocabulary lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        warnings.filterwarnings("ignore", ".* not in the vocabulary", UserWarning)
        warnings.filterwarnings("ignore", "no sound for segment", UserWarning)
        yield
