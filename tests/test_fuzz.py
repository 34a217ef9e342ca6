"""If this fails, some input that nobody thought of ends in an undocumented exception or a half-written file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indextts import IndexTTS2
from indextts.audio import load_audio
from indextts.bench import made_up_clip
from indextts.config import ConfigError, load_config
from indextts.release import CheckpointError, MissingFilesError, find_release, load_models, write_random_release
from tests.release.damage import replace

RATE, CLIP = made_up_clip(0.5)
QUICK = {"max_mel_tokens": 8, "diffusion_steps": 1, "num_beams": 1, "seed": 1}
CALL: dict[str, Any] = {"spk_audio_prompt": (RATE, CLIP), "text": "Hi.", **QUICK}
BAD_INPUT = (ValueError, TypeError, FileNotFoundError)


def examples(count: int) -> settings:
    """The same ones every time, and no files of hypothesis's own."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_release(tmp_path_factory.mktemp("original"), "small")


@pytest.fixture(autouse=True)
def _expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        warnings.filterwarnings("ignore", ".* not in the vocabulary", UserWarning)
        yield


def attempt(call: Callable[[], Any], *documented: type[Exception]) -> tuple[Any, Exception | None]:
    """The result, or the exception if it is one of those documented."""
    try:
        return call(), None
    except documented as caught:
        error = caught
    assert str(error), f"{type(error).__name__} without a message"
    return None, error


def speaks_or_refuses(tts: IndexTTS2, **changes: Any) -> bool:
    """Call ``infer``: a whole file, or a documented exception and the old file. True for the former."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "speech.wav"
        path.write_bytes(b"old")
        _, error = attempt(lambda: tts.infer(**{**CALL, **changes}, output_path=path), *BAD_INPUT, RuntimeError)
        assert [entry.name for entry in path.parent.iterdir()] == ["speech.wav"]
        if error is not None:
            assert isinstance(error, BAD_INPUT) or "the model ended every segment at once" in str(error)
            assert path.read_bytes() == b"old"
            return False
        assert soundfile.info(path).frames > 0
        return True


# ---------------------------------------------------------------------------------------------------------------- audio


def sound_file(kind: str, channels: int = 1) -> bytes:
    file = BytesIO()
    soundfile.write(file, np.stack([CLIP] * channels, axis=1), RATE, format=kind)
    return file.getvalue()


FORMATS = (("WAV", 1), ("FLAC", 1), ("OGG", 1), ("MP3", 1), ("AIFF", 2))
FILES = {kind.lower(): sound_file(kind, channels) for kind, channels in FORMATS}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A sound file with some bytes changed, most of them in its header, and cut short."""
    kind = draw(st.sampled_from(sorted(FILES)))
    data = bytearray(FILES[kind])
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 120) | st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=8)):
        data[place] = byte
    return kind, bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@examples(150)
@given(st.tuples(st.sampled_from([*FILES, "raw", "txt", ""]), st.binary(max_size=300)) | damaged())
def test_any_bytes_as_a_reference_clip(tmp_path: Path, file: tuple[str, bytes]) -> None:
    kind, data = file
    path = tmp_path / f"clip.{kind}"
    path.write_bytes(data)
    loaded, error = attempt(lambda: load_audio(path), ValueError)
    if error is not None:
        assert str(path) in str(error)
    else:
        mono, rate = loaded
        assert mono.ndim == 1
        assert np.isfinite(mono).all()
        assert mono.size >= 0.3 * rate


@examples(12)
@given(damaged())
def test_a_clip_that_is_accepted_can_be_spoken_with(engine: IndexTTS2, tmp_path: Path, file: tuple[str, bytes]) -> None:
    path = tmp_path / f"clip.{file[0]}"
    path.write_bytes(file[1])
    speaks_or_refuses(engine, spk_audio_prompt=path)


# -------------------------------------------------------------------------------------------------- texts and arguments

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)
PARTS = ("Hello", "你好", "7:45", "$3.50", "1e9", ".", ",", "'", "-", "…", "<s>", "▁", "🙂", "é", "pin1yin1", "AB-12", "www.a.b\n")
WORDS = st.lists(st.sampled_from(PARTS), max_size=12).map(" ".join)


@examples(100)
@given(ANY_TEXT | WORDS, st.integers(1, 30), st.integers(0, 30))
def test_any_text_is_split_or_refused(engine: IndexTTS2, text: str, most: int, quick: int) -> None:
    segments, error = attempt(lambda: engine.frontend.segments(text, most, quick, on_unknown="ignore"), ValueError)
    if error is not None:
        assert "empty" in str(error) or "pronounced" in str(error)
    else:
        vocabulary = len(engine.tokenizer)
        assert segments
        assert all(0 < len(segment) <= most + 1 and max(segment.ids) < vocabulary for segment in segments)


@examples(15)
@given(ANY_TEXT | WORDS)
def test_any_text_is_spoken_or_refused(engine: IndexTTS2, text: str) -> None:
    speaks_or_refuses(engine, text=text)


ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400) | st.lists(st.floats(), max_size=3)


@examples(25)
@given(st.lists(st.floats(0, 2), min_size=8, max_size=8) | st.lists(ODD, max_size=10) | ODD, st.floats() | st.floats(-1, 2), st.booleans())
def test_any_emotion_is_spoken_or_refused(engine: IndexTTS2, vector: Any, alpha: float, use_random: bool) -> None:
    spoken = speaks_or_refuses(engine, emo_vector=vector, emo_alpha=alpha, use_random=use_random)
    if spoken and vector is not None:
        assert len(vector) == 8
        assert math.isfinite(alpha)


NAMES = (
    "top_p", "top_k", "temperature", "num_beams", "repetition_penalty", "length_penalty", "max_mel_tokens", "typical_mass", "do_sample",
    "typical_sampling", "early_stopping", "seed", "interval_silence", "max_text_tokens_per_segment", "quick_streaming_tokens",
    "duration_factor", "diffusion_steps", "inference_cfg_rate", "emo_alpha", "spk_audio_prompt", "emo_audio_prompt", "text", "sample_rate",
    "output_path", "progress", "emo_text", "use_emo_text", "other",
)  # fmt: skip


@examples(250)
@given(st.dictionaries(st.sampled_from(NAMES), ODD, min_size=1, max_size=3))
def test_any_arguments_are_accepted_or_refused_as_documented(engine: IndexTTS2, changes: dict[str, Any]) -> None:
    _, error = attempt(lambda: engine._bound_request({**CALL, **changes}), *BAD_INPUT, RuntimeError)
    assert error is None or isinstance(error, BAD_INPUT) or "emotion model" in str(error)


# -------------------------------------------------------------------------------------------------------- configurations


def places(section: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


# Not beyond: a network of a million layers is built, if slowly.
NUMBERS = (-1, 0, 1, 2, 3, 64, 65, 300, 0.5, math.nan, math.inf)
VALUES = st.sampled_from((None, True, "", "x", "2.0", "../x", *NUMBERS, [], [1], [-1, "a"], {}, {"a": 1}))


@examples(30)
@given(st.data())
def test_any_change_of_a_configuration_loads_or_is_refused(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    copy = Path(shutil.copytree(folder, Path(tempfile.mkdtemp(dir=tmp_path)) / "voice", copy_function=os.link))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    *sections, name = data.draw(st.sampled_from(sorted(places(config))))
    section = config
    for key in sections:
        section = section[key]
    section[name] = data.draw(VALUES)
    replace(copy / "config.yaml", yaml.safe_dump(config).encode())
    _, error = attempt(lambda: load_models(find_release(copy)), ConfigError, MissingFilesError, CheckpointError)
    assert error is None or str(copy) in str(error)


MARKS = st.sampled_from([b"[", b"{", b"&a ", b"*a ", b"\n", b"!!x ", b"- ", b": "])


@examples(100)
@given(st.data())
def test_any_bytes_in_a_configuration_are_read_or_refused(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((folder / "config.yaml").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | MARKS)
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    _, error = attempt(lambda: load_config(path), ConfigError)
    assert error is None or str(path) in str(error)
