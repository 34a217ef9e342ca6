"""If this fails, a wrong argument costs minutes of work, a file, or an afternoon spent on a traceback that names something else."""

from __future__ import annotations

import errno
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import soundfile
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip

STAGES = (
    "speaker_prompt", "emotion_prompt", "both_prompts", "merge_emotion", "mix_emotion",
    "text_to_codes", "codes_to_latents", "codes_to_mel", "mel_to_wave",
)  # fmt: skip
RATE, CLIP = made_up_clip(1.0)
CALL: dict[str, Any] = {"spk_audio_prompt": (RATE, CLIP), "text": "Hi there.", "max_mel_tokens": 12, "diffusion_steps": 1, "seed": 1}
EMOTIONS = "happy, angry, sad, afraid, disgusted, melancholic, surprised, calm"


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


@pytest.fixture
def refuse(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Call ``infer`` with one thing wrong: it must raise exactly this error before any model work; its message, one readable line."""
    work = []
    for name in STAGES:
        monkeypatch.setattr(engine._stages, name, lambda *_, name=name, **__: work.append(name))

    def call(error: type[Exception], **changes: Any) -> str:
        with pytest.raises(error) as caught:
            engine.infer(**{**CALL, **changes})
        assert work == [], "model work before the arguments were checked"
        assert caught.type is error or issubclass(error, FileNotFoundError)
        message = str(caught.value)
        assert message
        assert message == message.strip()
        return message

    return call


class TestPrompts:
    @pytest.mark.parametrize("role", ["spk_audio_prompt", "emo_audio_prompt"])
    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "is empty"),
            (b"some text, no audio " * 50, "cannot be decoded"),
            (b"RIFF\x24\x00\x00\x00WAVE", "cannot be decoded"),
            (np.zeros(0), "holds no samples"),
            (CLIP[: int(0.29 * RATE)], r"too short: 0\.290 s; it must last 0\.3 s"),
            (np.zeros(RATE), "is silent"),
            (np.where(np.arange(RATE) == 9, np.nan, CLIP), "NaN or infinite"),
            (np.where(np.arange(RATE) == 9, np.inf, CLIP), "NaN or infinite"),
        ],
        ids=["empty", "text", "header", "no samples", "short", "silent", "nan", "inf"],
    )
    def test_file(self, refuse: Callable[..., str], tmp_path: Path, role: str, content: Any, why: str) -> None:
        path = tmp_path / "clip.wav"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, content, RATE, subtype="FLOAT")
        for form in (path, str(path)):
            message = refuse(ValueError, **{role: form})
            assert message.startswith(f"{role} {str(path)!r} ")
            assert re.search(why, message)

    @pytest.mark.parametrize("role", ["spk_audio_prompt", "emo_audio_prompt"])
    def test_missing(self, refuse: Callable[..., str], tmp_path: Path, role: str) -> None:
        assert refuse(FileNotFoundError, **{role: tmp_path / "a.wav"}) == f"{role} '{tmp_path / 'a.wav'}': no such file"
        assert "looked in" in refuse(FileNotFoundError, **{role: "a.wav"})
        assert "is a folder" in refuse(ValueError, **{role: tmp_path})
        assert "no file name" in refuse(ValueError, **{role: ""})

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            (None, "got NoneType"),
            (7, "got int"),
            (CLIP, "does not state its sample rate"),
            ((RATE, CLIP[:100]), "too short"),
            ((RATE, CLIP * np.nan), "NaN"),
            ((RATE, CLIP[:0]), "no samples"),
            ((0, CLIP), "makes no sense"),
            (("22050", CLIP), "whole number of Hz"),
            ((RATE, CLIP.reshape(1, 1, -1)), "one or two dimensions"),
            ((RATE, [0.1, 0.2]), "too short"),
            ((RATE, torch.full((RATE,), math.inf)), "NaN or infinite"),
        ],
    )
    def test_array(self, refuse: Callable[..., str], source: Any, why: str) -> None:
        message = refuse(ValueError, spk_audio_prompt=source)
        assert message.startswith("spk_audio_prompt (array)")
        assert why in message

    @pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
    @pytest.mark.parametrize("form", ["float", "int16", "stereo", "tensor", "file"])
    def test_every_documented_form_is_heard(self, engine: IndexTTS2, tmp_path: Path, rate: int, form: str) -> None:
        clip = made_up_clip(0.4, rate)[1]
        source: Any = {
            "float": (rate, clip),
            "int16": (rate, (32767 * clip).astype(np.int16)),
            "stereo": (rate, np.stack([clip, clip])),
            "tensor": torch.from_numpy(clip)[None],
            "file": tmp_path / "clip.flac",
        }[form]
        soundfile.write(tmp_path / "clip.flac", clip, rate)
        assert engine.infer(**{**CALL, "spk_audio_prompt": source, "sample_rate": rate})[1].size

    def test_only_the_first_15_seconds_of_a_long_clip_count(self, engine: IndexTTS2) -> None:
        rate, clip = made_up_clip(18.0)
        first = engine.infer(**{**CALL, "spk_audio_prompt": (rate, clip)})[1]
        assert engine.cache_mel is not None
        assert engine.cache_mel.shape[-1] == 15 * 22050 // 256
        longer = np.concatenate([clip, np.full(9 * rate, 0.5, np.float32)])
        assert np.array_equal(first, engine.infer(**{**CALL, "spk_audio_prompt": (rate, longer)})[1])


class TestText:
    @pytest.mark.parametrize(
        ("text", "error", "why"),
        [
            ("", ValueError, "text is empty"),
            (" \t\n\u3000", ValueError, "text is empty"),
            ("...", ValueError, "nothing in this text can be pronounced: '...'"),
            ("?!，。——", ValueError, "nothing in this text can be pronounced"),
            ("😀 😀", ValueError, "nothing in this text can be pronounced"),
            ("\ud800\x00", ValueError, "nothing in this text can be pronounced"),
            (None, TypeError, "text must be str, got NoneType"),
            (b"Hi.", TypeError, "text must be str, got bytes"),
            (["Hi."], TypeError, "text must be str, got list"),
        ],
    )
    def test_nothing_to_say(self, refuse: Callable[..., str], text: Any, error: type[Exception], why: str) -> None:
        assert why in refuse(error, text=text)

    def test_tokens_that_the_vocabulary_lacks_are_reported_once(self, engine: IndexTTS2) -> None:
        with pytest.warns(UserWarning, match="not in the vocabulary.*'☃'") as caught:
            engine.infer(**{**CALL, "text": "Hello ☃ there ☃."})
        assert len([warning for warning in caught if "vocabulary" in str(warning.message)]) == 1


class TestEmotion:
    @pytest.mark.parametrize(
        "vector",
        [
            *([], [0.1] * 7, [0.1] * 9, [-0.1, *[0] * 7], [math.nan] * 8, [math.inf] * 8, [None] * 8, ["0.1"] * 8, [1j] * 8),
            *("01234567", 5, {}, np.ones((8, 8))),
        ],
        ids=str,
    )
    def test_vector(self, refuse: Callable[..., str], vector: Any) -> None:
        assert f"8 finite numbers >= 0 in the order {EMOTIONS}" in refuse(ValueError, emo_vector=vector)

    @pytest.mark.parametrize("vector", [[1e30] * 8, [10**400] * 8])
    def test_vector_that_would_overflow(self, refuse: Callable[..., str], vector: Any) -> None:
        assert "between 0 and 100" in refuse(ValueError, emo_vector=vector)

    @pytest.mark.parametrize("alpha", [None, "much", math.nan, math.inf, 1e30, 10**400, [1]])
    def test_alpha(self, refuse: Callable[..., str], alpha: Any) -> None:
        assert refuse(ValueError, emo_alpha=alpha).startswith("emo_alpha must be ")
        assert refuse(ValueError, emo_alpha=alpha, emo_vector=[0] * 8).startswith("emo_alpha must be ")

    def test_text_without_its_classifier(self, refuse: Callable[..., str]) -> None:
        assert "indextts download --emotion-text" in refuse(RuntimeError, use_emo_text=True)

    @pytest.mark.parametrize("text", ["", "  ", 5])
    def test_text_that_is_none(self, refuse: Callable[..., str], text: Any) -> None:
        assert refuse(ValueError, use_emo_text=True, emo_text=text).startswith("emo_text must be text")


class TestNumbers:
    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            *(("top_p", value, ValueError) for value in (-0.1, 1.1, math.nan)),
            *(("top_k", value, ValueError) for value in (-1,)),
            *(("temperature", value, ValueError) for value in (0, -1, math.inf, 1e300, 1e-300, 10**400)),
            *(("repetition_penalty", value, ValueError) for value in (0, -1, 1e300)),
            *(("length_penalty", value, ValueError) for value in (math.nan, 1e30, -1e30)),
            *(("num_beams", value, ValueError) for value in (0, -1, 10**6)),
            *(("max_mel_tokens", value, ValueError) for value in (0, -1, 1816)),
            *(("typical_mass", value, ValueError) for value in (0, 1, -1)),
            *((name, "a", TypeError) for name in ("top_p", "top_k", "temperature", "repetition_penalty", "length_penalty", "num_beams")),
            *((name, 1.5, TypeError) for name in ("top_k", "num_beams", "max_mel_tokens")),
            *((name, "no", TypeError) for name in ("do_sample", "typical_sampling")),
            *(("seed", value, ValueError) for value in (-1, 1.5, "a", 2**63, True)),
            *(("interval_silence", value, ValueError) for value in ("a", None, math.nan, 1e9, 10**400)),
            *(("max_text_tokens_per_segment", value, ValueError) for value in (0, -1, 601, 1.5, None)),
            *(("quick_streaming_tokens", value, ValueError) for value in (-1, 1.5, None)),
            *(("duration_factor", value, ValueError) for value in (0, 0.2, 4.1, -1, "a", None, math.nan, 10**400)),
            *(("diffusion_steps", value, ValueError) for value in (0, -1, 1001, 1.5, "a")),
            *(("inference_cfg_rate", value, ValueError) for value in (-1, 21, "a", math.nan)),
            *(("progress", value, ValueError) for value in ("a", 5)),
        ],
    )
    def test_out_of_range(self, refuse: Callable[..., str], name: str, value: Any, error: type[Exception]) -> None:
        message = refuse(error, **{name: value})
        assert name in message or value == 10**400

    def test_the_guides_older_spelling_is_checked_too(self, refuse: Callable[..., str]) -> None:
        assert "max_text_tokens_per_segment must be between 1 and 600" in refuse(ValueError, max_text_tokens_per_sentence=0)

    def test_unknown_keyword_lists_the_valid_ones(self, refuse: Callable[..., str]) -> None:
        message = refuse(TypeError, temprature=0.5)
        assert "'temprature'" in message
        valid = "do_sample top_p top_k temperature length_penalty num_beams repetition_penalty max_mel_tokens typical_sampling typical_mass"
        assert all(name in message for name in valid.split())

    def test_a_configuration_with_a_bad_default_is_caught_like_an_argument(self, engine: IndexTTS2, refuse: Callable[..., str]) -> None:
        whole = engine.cfg
        engine.cfg = _with_inference(whole, diffusion_steps=0)
        try:
            assert "diffusion_steps must be between 1 and 1000" in refuse(ValueError, diffusion_steps=None)
        finally:
            engine.cfg = whole


def _with_inference(config: Any, **changes: Any) -> Any:
    from dataclasses import replace as changed

    return changed(config, inference=changed(config.inference, **changes))


class TestOutput:
    @pytest.mark.parametrize("path", ["", 5, b"a.wav", "a\0b.wav"])
    def test_no_file_name(self, refuse: Callable[..., str], path: Any) -> None:
        assert "output_path must be a file name" in refuse(ValueError, output_path=path)

    def test_places_where_no_file_can_be(self, refuse: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"old")
        assert "is a folder" in refuse(ValueError, output_path=tmp_path)
        assert f"{tmp_path / 'file'} is not a folder" in refuse(ValueError, output_path=tmp_path / "file" / "new" / "a.wav")
        assert "is not a folder" in refuse(ValueError, output_path=tmp_path / "new" / ".." / "file" / "a.wav")
        assert "not a file" in refuse(ValueError, output_path=os.devnull)
        assert "cannot be written" in refuse(ValueError, output_path=tmp_path / ("a" * 300 + ".wav"))
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_folder_without_permission(self, refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(**_: Any) -> NoReturn:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", denied)
        assert "a.wav cannot be written: Permission denied" in refuse(ValueError, output_path=tmp_path / "a.wav")

    @pytest.mark.parametrize("stream", [False, True])
    def test_full_disk_keeps_the_old_file(self, engine: IndexTTS2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
        (tmp_path / "a.wav").write_bytes(b"old")

        def write_bytes(path: Path, content: bytes) -> NoReturn:
            with path.open("wb") as file:
                file.write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(OSError, match=r"cannot write audio: No space left on device: '.*a\.wav'"):
            list(engine.infer(**CALL, output_path=tmp_path / "a.wav", stream_return=stream))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.wav": b"old"}

    def test_a_stream_that_is_given_up_writes_no_file(self, engine: IndexTTS2, tmp_path: Path) -> None:
        call = {**CALL, "text": "One. Two. Three.", "max_text_tokens_per_segment": 5, "output_path": tmp_path / "a.wav"}
        stream = engine.infer(**call, stream_return=True)
        next(stream)
        stream.close()
        assert not list(tmp_path.iterdir())


class TestCalls:
    def test_a_stream_refuses_when_it_is_made(self, refuse: Callable[..., str]) -> None:
        assert "empty" in refuse(ValueError, text="", stream_return=True)

    @pytest.mark.parametrize(
        ("bad", "error", "why"),
        [
            ({"text": ""}, ValueError, "text is empty"),
            ({"spk_audio_prompt": "nowhere.wav"}, FileNotFoundError, "no such file"),
            ({"nonsense": 1}, TypeError, "unknown generation argument"),
            ({"use_emo_text": True}, RuntimeError, "emotion model"),
            ({"stream_return": True}, ValueError, "stream_return"),
        ],
    )
    def test_a_batch_names_the_request_and_renders_nothing(
        self, engine: IndexTTS2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: dict[str, Any], error: type[Exception], why: str
    ) -> None:
        monkeypatch.setattr(engine, "_render", None)
        good = {**CALL, "output_path": tmp_path / "a.wav"}
        with pytest.raises(error, match=f"^request 2: .*{why}"):
            engine.infer_batch([good, good, {**CALL, **bad}, good])
        assert not list(tmp_path.iterdir())

    def test_a_batch_of_something_else(self, engine: IndexTTS2) -> None:
        assert engine.infer_batch([]) == []
        with pytest.raises(TypeError, match="list of dicts"):
            engine.infer_batch(CALL)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="request 0: a request is a dict"):
            engine.infer_batch(["Hi."])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="request 0: missing a required argument: 'text'"):
            engine.infer_batch([{"spk_audio_prompt": "a.wav"}])

    def test_a_closed_engine_says_so(self) -> None:
        tts = IndexTTS2.from_random("small", device="cpu")
        tts.close()
        tts.close()
        uses: list[Callable[[], Any]] = [
            lambda: tts.infer(**CALL),
            lambda: list(tts.infer(**CALL, stream_return=True)),
            lambda: tts.infer_batch([CALL]),
            lambda: tts.set_precision("bf16"),
            lambda: tts.set_attention("math"),
            tts.clear_caches,
        ]
        for use in uses:
            with pytest.raises(RuntimeError, match="this engine is closed; make a new IndexTTS2"):
                use()


class TestConstruction:
    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"device": "cuda:77"}, "there is no device 'cuda:77'; this machine has: .*cpu"),
            ({"device": "gpu"}, "there is no device 'gpu'; this machine has: .*cpu"),
            ({"device": "meta"}, "this machine has: .*cpu"),
            ({"precision": "fp9"}, "choose 'auto' or one of fp32, tf32, bf16, fp16"),
            ({"precision": "fp16", "device": "cpu"}, "use 'bf16' or 'fp32'"),
            ({"precision": "tf32", "device": "cpu"}, "use 'fp32'"),
            ({"attention": "fast"}, "choose one of auto, cudnn, flash, efficient, math"),
            ({"attention": "flash", "device": "cpu"}, "use 'auto'"),
            ({"size": "huge"}, "use 'release', 'small'"),
        ],
    )
    def test_settings(self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], why: str) -> None:
        monkeypatch.setattr(IndexTTS2, "_assemble", None)
        with pytest.raises(ValueError, match=why):
            IndexTTS2.from_random(**{"size": "small", **options})

    def test_settings_switched_live(self, engine: IndexTTS2) -> None:
        with pytest.raises(ValueError, match="choose 'auto' or one of"):
            engine.set_precision("fp9")
        with pytest.raises(ValueError, match="choose one of"):
            engine.set_attention("fast")
        assert (engine.precision, engine.attention) == ("fp32", "auto")
