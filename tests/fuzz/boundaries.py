"""The boundaries: what comes in, and what must hold whatever it is. A check returns ``accepted`` or ``refused``."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from indextts.audio import load_audio
from indextts.config import ConfigError, load_config
from indextts.longform_parts import PartStore
from indextts.longform_text import read_script
from indextts.release import CheckpointError, MissingFilesError, find_release, load_models
from tests.fuzz.values import ANY_TEXT, JSON, ODD, sound
from tests.fuzz.world import BAD_INPUT, CALL, World, attempt, speaks_or_refuses
from tests.release.damage import replace


@dataclass(frozen=True)
class Boundary:
    """``part`` of all generated inputs go here; ``few`` of them in the short run of the tests."""

    name: str
    part: float
    few: int
    strategy: st.SearchStrategy[Any]
    check: Callable[[World, Any], str]
    needs: str | None = None  # a package without which it cannot be tried


def said(error: Exception | None) -> str:
    return "accepted" if error is None else "refused"


# ------------------------------------------------------------------------------------------------------------- sound


def clip(world: World, file: tuple[str, bytes]) -> str:
    """Any bytes as a reference clip."""
    kind, data = file
    path = world.folder / f"clip.{kind}"
    path.write_bytes(data)
    loaded, error = attempt(lambda: load_audio(path), ValueError)
    if error is not None:
        assert str(path) in str(error)
        return "refused"
    mono, rate = loaded
    assert mono.ndim == 1
    assert np.isfinite(mono).all()
    assert 0.3 * rate <= mono.size <= 18 * rate
    return "accepted"


def clip_spoken(world: World, file: tuple[str, bytes]) -> str:
    """A clip that is accepted can be spoken with."""
    path = world.folder / f"spoken.{file[0]}"
    path.write_bytes(file[1])
    return speaks_or_refuses(world, spk_audio_prompt=path)


def upload(world: World, file: tuple[str, bytes]) -> str:
    """Any bytes, under any name, through the panels' upload: nothing is kept outside its folder, and nothing of a bad file."""
    from widgets.clips import clip_folder, store_clip

    stem, (kind, data) = file
    before = sorted(clip_folder().rglob("*"))
    stored, error = attempt(lambda: store_clip(f"{stem}.{kind}", data), ValueError)
    after = sorted(clip_folder().rglob("*"))
    if error is not None:
        assert before == after
        return "refused"
    path = stored[0].resolve()
    assert clip_folder().resolve() in path.parents
    load_audio(path)
    return "accepted"


NAMES = st.text(max_size=12) | st.sampled_from(["../../x", "/etc/x", "..", "a/b", "con", "~", "a\0b", "x" * 300, ".", ""])

# --------------------------------------------------------------------------------------------------- text and arguments


def text(world: World, given: tuple[str, int, int]) -> str:
    """Any text is split, or refused for having nothing to say."""
    what, most, quick = given
    segments, error = attempt(lambda: world.engine.frontend.segments(what, most, quick, on_unknown="ignore"), ValueError)
    if error is not None:
        assert "empty" in str(error) or "pronounced" in str(error)
        return "refused"
    vocabulary = len(world.engine.tokenizer)
    assert segments
    assert all(0 < len(segment) <= most + 1 and max(segment.ids) < vocabulary for segment in segments)
    return "accepted"


def text_spoken(world: World, what: str) -> str:
    """Any text is spoken or refused."""
    return speaks_or_refuses(world, text=what)


def script(world: World, given: tuple[str, list[str]]) -> str:
    """Any text as a book or a script: nothing that can be seen is lost."""
    what, speakers = given
    sentences, error = attempt(lambda: read_script(what, speakers), ValueError)
    if error is None:
        assert all(sentence.pause_ms >= 0 and sentence.line >= 1 for sentence in sentences)
        assert [sentence.line for sentence in sentences] == sorted(sentence.line for sentence in sentences)
        if not speakers and "[" not in what:
            kept = "".join("".join(sentence.text.split()) for sentence in sentences)
            assert kept == "".join(what.replace("\ufeff", "").split())
    return said(error)


def emotion(world: World, given: tuple[Any, float, bool]) -> str:
    """Any emotion is spoken or refused."""
    vector, alpha, use_random = given
    outcome = speaks_or_refuses(world, emo_vector=vector, emo_alpha=alpha, use_random=use_random)
    if outcome == "accepted" and vector is not None:
        assert len(vector) == 8
        assert math.isfinite(alpha)
    return outcome


ARGUMENTS = (
    "top_p", "top_k", "temperature", "num_beams", "repetition_penalty", "length_penalty", "max_mel_tokens", "typical_mass", "do_sample",
    "typical_sampling", "early_stopping", "seed", "interval_silence", "max_text_tokens_per_segment", "quick_streaming_tokens",
    "duration_factor", "diffusion_steps", "inference_cfg_rate", "emo_alpha", "spk_audio_prompt", "emo_audio_prompt", "text", "sample_rate",
    "output_path", "progress", "emo_text", "use_emo_text", "other",
)  # fmt: skip


def arguments(world: World, changes: dict[str, Any]) -> str:
    """Any arguments are accepted or refused as documented."""
    _, error = attempt(lambda: world.engine._bound_request({**CALL, **changes}), *BAD_INPUT, RuntimeError)
    assert error is None or isinstance(error, BAD_INPUT) or "emotion model" in str(error)
    return said(error)


# -------------------------------------------------------------------------------------------------------------- files


def places(section: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a configuration."""
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


# Not beyond: a network of a million layers is built, if slowly.
NUMBERS = (-1, 0, 1, 2, 3, 64, 65, 300, 0.5, math.nan, math.inf)
CONFIG_VALUES = st.sampled_from((None, True, "", "x", "2.0", "../x", *NUMBERS, [], [1], [-1, "a"], {}, {"a": 1}))
LOADING = (ConfigError, MissingFilesError, CheckpointError)


def config_field(world: World, given: tuple[float, Any]) -> str:
    """Any change of one field of a configuration."""
    config = yaml.safe_load((world.release / "config.yaml").read_text(encoding="utf-8"))
    fields = sorted(places(config))
    *sections, name = fields[int(given[0] * (len(fields) - 1))]
    section = config
    for key in sections:
        section = section[key]
    section[name] = given[1]
    with world.copy() as copy:
        replace(copy / "config.yaml", yaml.safe_dump(config).encode())
        _, error = attempt(lambda: load_models(find_release(copy)), *LOADING)
        assert error is None or str(copy) in str(error)
    return said(error)


MARKS = st.sampled_from([b"[", b"{", b"&a ", b"*a ", b"\n", b"!!x ", b"- ", b": ", b"!!python/object/apply:os.system ['true']"])


def config_bytes(world: World, changes: list[tuple[float, int, bytes]]) -> str:
    """Any bytes in a configuration."""
    content = bytearray((world.release / "config.yaml").read_bytes())
    for position, length, new in changes:
        place = int(position * (len(content) - 1))
        content[place : place + length] = new
    path = world.folder / "config.yaml"
    path.write_bytes(content)
    _, error = attempt(lambda: load_config(path), ConfigError)
    assert error is None or str(path) in str(error)
    return said(error)


CHECKPOINTS = (
    "gpt.pth", "s2mel.pth", "wav2vec2bert_stats.pt", "feat1.pt", "feat2.pt", "bpe.model", "hf_cache/semantic_codec_model.safetensors",
    "hf_cache/campplus_cn_common.bin", "hf_cache/w2v-bert-2.0/model.safetensors", "hf_cache/w2v-bert-2.0/config.json",
    "hf_cache/bigvgan/config.json", "hf_cache/bigvgan/bigvgan_generator.pt",
)  # fmt: skip


def checkpoint(world: World, given: tuple[str, list[tuple[float, bytes]], float | None]) -> str:
    """Any damage of one file of weights: refused naming the file, or loaded (a changed weight is still a weight)."""
    from indextts import IndexTTS2

    name, changes, length = given
    with world.copy() as copy:
        path = copy / name
        data = bytearray(path.read_bytes())
        for position, new in changes:
            place = int(position**3 * (len(data) - 1))  # most of them near the beginning, where the structure is
            data[place : place + len(new)] = new
        replace(path, bytes(data if length is None else data[: int(length * len(data))]))
        errors = (*LOADING, ValueError, RuntimeError)
        tts, error = attempt(lambda: IndexTTS2(model_dir=copy, device="cpu"), *errors)
        if error is not None:
            assert str(copy) in str(error), error
            assert "\n" not in str(error)
        else:
            tts.close()
    return said(error)


def journal(world: World, data: bytes) -> str:
    """Any bytes as the journal of a long rendering: no part is taken for another, none outside the folder is read."""
    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        (Path(folder) / "journal.jsonl").write_bytes(data)
        with PartStore(Path(folder)) as store:
            for key in ("a", "../x", "b"):
                assert store.get(key) is None
            store.put("a", np.arange(3, dtype=np.int16))
        with PartStore(Path(folder)) as store:
            part = store.get("a")
            assert part is not None
            assert len(store.read(part)) == 3
    return "accepted"


JOURNAL = st.binary(max_size=200) | st.lists(
    st.fixed_dictionaries({"key": st.sampled_from(["a", "../x", "b"]) | JSON, "samples": JSON, "sha256": JSON}).map(json.dumps)
).map(lambda lines: "\n".join(lines).encode())

# ------------------------------------------------------------------------------------------------------------ service

FIELDS = ("model", "input", "voice", "response_format", "speed", "instructions", "stream_format", "seed", "emotion", "emotion_strength")
GOOD = {"input": "hello", "voice": "anna", "response_format": "wav"}
VALUES = JSON | ANY_TEXT | st.sampled_from(["wav", "pcm", "sse", "audio", "anna"])
SPEECH = st.dictionaries(st.sampled_from([*FIELDS, "x"]), VALUES, max_size=4).map(lambda fields: {**GOOD, **fields})
BODIES = st.binary(max_size=200) | (SPEECH | JSON).map(lambda value: json.dumps(value).encode())
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "host", "authorization", "accept", "x"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30) | st.sampled_from(["application/json", "127.0.0.1:8000"]),
    max_size=2,
)
PATHS = st.sampled_from(["/v1/audio/speech"] * 6 + ["/v1/voices", "/health", "/metrics", "/v1/models", "/", "/v1/voices/../x"])
STATUSES = {200, 400, 401, 403, 404, 405, 413, 415, 422, 503}


def service(world: World, given: tuple[str, str, bytes, dict[str, str]]) -> str:
    """Any request to the service: an answer of the right form, never a traceback."""
    from tests.serve.asgi import call

    method, path, body, headers = given
    answer = call(world.app, method, path, body=body, headers=headers)
    assert answer.status in STATUSES, (answer.status, answer.body[:200])
    if answer.status >= 400 and method != "HEAD":
        error = answer.json()["error"]
        assert isinstance(error["message"], str)
        assert error["message"]
        assert "Traceback" not in error["message"]
        assert str(world.folder) not in error["message"]
    elif path == "/v1/audio/speech" and answer.status == 200:
        assert answer.body
    return "accepted" if answer.status == 200 else "refused"


TEXTS = st.tuples(ANY_TEXT, st.integers(1, 30), st.integers(0, 30))
SCRIPTS = st.tuples(ANY_TEXT | st.lists(ANY_TEXT).map("\n".join), st.lists(st.sampled_from(["Anna", "é"]), max_size=2))
VECTORS = st.lists(st.floats(0, 2), min_size=8, max_size=8) | st.lists(ODD, max_size=10) | ODD
EMOTIONS = st.tuples(VECTORS, st.floats() | st.floats(-1, 2), st.booleans())
ASKED = st.dictionaries(st.sampled_from(ARGUMENTS), ODD, min_size=1, max_size=3)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3) | MARKS), min_size=1, max_size=4)
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4)
WEIGHTS = st.tuples(st.sampled_from(CHECKPOINTS), DAMAGE, st.none() | st.floats(0, 1))
REQUESTS = st.tuples(st.sampled_from(["POST"] * 5 + ["GET", "PUT", "DELETE", "HEAD"]), PATHS, BODIES, HEADERS)

BOUNDARIES = (
    Boundary("clip", 0.20, 40, sound(), clip),
    Boundary("clip, spoken", 0.015, 2, sound(), clip_spoken),
    Boundary("upload", 0.08, 30, st.tuples(NAMES, sound()), upload, "ipywidgets"),
    Boundary("text", 0.17, 60, TEXTS, text),
    Boundary("text, spoken", 0.015, 2, ANY_TEXT, text_spoken),
    Boundary("script", 0.06, 60, SCRIPTS, script),
    Boundary("emotion, spoken", 0.01, 3, EMOTIONS, emotion),
    Boundary("arguments", 0.08, 60, ASKED, arguments),
    Boundary("configuration, values", 0.02, 3, st.tuples(st.floats(0, 1), CONFIG_VALUES), config_field),
    Boundary("configuration, bytes", 0.06, 30, EDITS, config_bytes),
    Boundary("weights", 0.02, 3, WEIGHTS, checkpoint),
    Boundary("journal", 0.03, 15, JOURNAL, journal),
    Boundary("service", 0.24, 80, REQUESTS, service, "starlette"),
)
