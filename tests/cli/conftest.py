"""The command line in an empty folder of its own."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import soundfile

from indextts import IndexTTS2, cli
from indextts.bench import made_up_clip
from indextts.release import write_random_release

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--steps", "1", "--beams", "1", "--seed", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test in an empty folder, without the user's caches; random voices may run on."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path.parent / "no cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_random_release(tmp_path_factory.mktemp("original"), "small")
    (folder / "voices").mkdir()
    rate, samples = made_up_clip(1.0)
    soundfile.write(folder / "voices" / "anna.wav", samples, rate)
    return folder


@pytest.fixture
def release(original: Path, tmp_path: Path) -> Path:
    """A release of hard links outside the working directory: to change a file, replace it."""
    return Path(shutil.copytree(original, tmp_path / "release", copy_function=os.link))


@pytest.fixture
def voice(tmp_path: Path) -> str:
    rate, samples = made_up_clip(1.0)
    soundfile.write(tmp_path / "voice.wav", samples, rate)
    return str(tmp_path / "voice.wav")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how argparse ends
            code = int(stop.code or 0)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Run the command, which must fail with one line and leave the working directory as it was; the line."""

    def call(code: int, *arguments: object) -> str:
        before = contents()
        got, out, err = run(*arguments)
        assert (got, out) == (code, ""), err
        assert err.startswith("indextts: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        assert contents() == before
        return err

    return call


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads weights now fails the test."""

    def load(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("weights were loaded before the arguments were checked")

    monkeypatch.setattr(IndexTTS2, "__init__", load)
    monkeypatch.setattr(IndexTTS2, "from_random", load)


@pytest.fixture(scope="session")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture
def one_engine(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--random-weights`` takes an engine that is there already: quicker, and no other files are written."""
    load = IndexTTS2.from_random

    def from_random(size: str, *, device: str | None, precision: str, **others: Any) -> IndexTTS2:
        return engine if (size, device, precision) == ("small", "cpu", "auto") else load(size, device=device, precision=precision, **others)

    monkeypatch.setattr(IndexTTS2, "from_random", from_random)
    monkeypatch.setattr(IndexTTS2, "close", lambda self: None)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in Path.cwd().rglob("*")}
