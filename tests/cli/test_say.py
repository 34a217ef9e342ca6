"""If this fails, ``indextts say`` lies about success, answers a mistake with a traceback, or damages a file."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import soundfile

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from tests.cli.conftest import QUICK, Run, contents


def said(run: Run, *arguments: object) -> tuple[bytes, str]:
    """What ``say`` writes and prints."""
    code, out, err = run("say", *arguments, *QUICK)
    assert (code, err) == (0, "")
    assert list(contents()) == [str(Path("speech.wav").absolute())]
    return Path("speech.wav").read_bytes(), out


@pytest.mark.usefixtures("one_engine")
class TestSay:
    def test_random_weights_make_a_file_and_one_line(self, run: Run) -> None:
        _, out = said(run, "Hello there.", "--random-weights")
        info = soundfile.info("speech.wav")
        assert (info.samplerate, info.channels, info.subtype) == (22050, 1, "PCM_16")
        assert out.startswith(f"speech.wav: {info.duration:.2f} s of speech in ")
        assert out.endswith("seed 3\n")
        assert "RTF" in out

    def test_a_release_speaks_in_its_own_voice_or_in_one_given(self, run: Run, release: Path, voice: str) -> None:
        own = said(run, "Hello there.", "--model-dir", release)[0]
        assert own == said(run, "Hello there.", "--model-dir", release, "--voice", release / "voices" / "anna.wav")[0]
        rate, samples = made_up_clip(1.0)
        soundfile.write(voice, samples[::-1], rate)
        assert own != said(run, "Hello there.", "--model-dir", release, "--voice", voice)[0]

    def test_a_release_in_checkpoints_is_found(self, run: Run, release: Path) -> None:
        release.rename("checkpoints")
        assert run("say", "Hello.", *QUICK)[0] == 0
        assert soundfile.info("speech.wav").frames

    def test_text_from_standard_input(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello there.\n"))
        piped = said(run, "-", "--random-weights")[0]
        assert piped == said(run, "Hello there.", "--random-weights")[0]

    @pytest.mark.parametrize(
        "options",
        [
            ("--emotion", "0,0, 0.8,0,0,0,0,0"),
            ("--emotion", "0,0,1,0,0,0,0,0", "--emotion-strength", "0.5"),
            ("--emotion-audio", "VOICE"),
            ("--emotion-audio", "VOICE", "--emotion-strength", "0.3"),
        ],
    )
    def test_emotion_options_change_the_sound(self, run: Run, voice: str, options: tuple[str, ...]) -> None:
        plain = said(run, "Hello there.", "--random-weights")[0]
        rate, samples = made_up_clip(1.0)
        soundfile.write(voice, samples[::-1], rate)
        changed = said(run, "Hello there.", "--random-weights", *(voice if option == "VOICE" else option for option in options))[0]
        assert changed != plain

    def test_speed_shortens_the_speech(self, run: Run) -> None:
        said(run, "Hello there.", "--random-weights")
        frames = soundfile.info("speech.wav").frames
        said(run, "Hello there.", "--random-weights", "--speed", 2)
        assert soundfile.info("speech.wav").frames == pytest.approx(frames / 2, abs=512)

    def test_missing_folders_are_made_and_an_old_file_is_replaced(self, run: Run) -> None:
        path = Path("new", "folder", "a.wav")
        for seed in (1, 2):
            assert run("say", "Hello.", "--random-weights", "-o", path, *QUICK, "--seed", seed)[0] == 0
        assert [entry.name for entry in path.parent.iterdir()] == ["a.wav"]

    def test_a_voice_that_runs_on_is_warned_of_in_one_line(self, run: Run) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always", RuntimeWarning)
            code, _, err = run("say", "Hello.", "--random-weights", *QUICK)
        assert code == 0
        assert err.startswith("indextts: warning: generation was stopped at max_mel_tokens=60")
        assert err.count("\n") == 1


def _write(content: bytes | np.ndarray, rate: int = 22050) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, content, rate, subtype="FLOAT")

    return write


@pytest.mark.usefixtures("no_weights")
class TestSayRefusesAtOnce:
    @pytest.mark.parametrize("option", ["--voice", "--emotion-audio"])
    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda path: None, "no such file"),
            (Path.mkdir, "is a folder"),
            (_write(b""), "is empty"),
            (_write(b"no audio, only text " * 50), "cannot be decoded"),
            (_write(made_up_clip(0.2)[1]), "too short"),
            (_write(np.zeros(22050)), "silent"),
            (_write(np.full(22050, np.nan)), "NaN"),
        ],
        ids=["missing", "folder", "empty", "text", "short", "silent", "nan"],
    )
    def test_clip(self, fails: Callable[..., str], tmp_path: Path, option: str, make: Any, why: str) -> None:
        make(tmp_path / "clip.wav")
        line = fails(2, "say", "Hi.", "--random-weights", option, tmp_path / "clip.wav")
        assert f"{option} '{tmp_path / 'clip.wav'}'" in line
        assert why in line

    def test_clip_without_permission(self, fails: Callable[..., str], voice: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, *_: Any, **__: Any) -> NoReturn:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", refuse)
        assert "voice.wav' cannot be read: Permission denied" in fails(2, "say", "Hi.", "--voice", voice)

    @pytest.mark.parametrize("text", ["", " \n "])
    def test_empty_text(self, fails: Callable[..., str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "text is empty" in fails(2, "say", text, "--random-weights")
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert "text is empty" in fails(2, "say", "-", "--random-weights")

    def test_standard_input_that_is_no_text(self, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), encoding="utf-8"))
        assert "standard input is not utf-8 text" in fails(2, "say", "-", "--random-weights")

    @pytest.mark.parametrize("emotion", ["", "sad", "1,,2", "1;2"])
    def test_emotion_that_is_no_list_of_numbers(self, fails: Callable[..., str], emotion: str) -> None:
        assert "not a comma-separated list" in fails(2, "say", "Hi.", "--random-weights", "--emotion", emotion)

    def test_output(self, fails: Callable[..., str]) -> None:
        Path("folder").mkdir()
        Path("file").write_bytes(b"old")
        assert "is a folder" in fails(2, "say", "Hi.", "--random-weights", "-o", "folder")
        assert "file is not a folder" in fails(2, "say", "Hi.", "--random-weights", "-o", "file/speech.wav")
        assert "not a file" in fails(2, "say", "Hi.", "--random-weights", "-o", os.devnull)
        assert "must be a file name" in fails(2, "say", "Hi.", "--random-weights", "-o", "")

    def test_output_without_permission(self, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(**_: Any) -> NoReturn:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        assert "speech.wav cannot be written: Permission denied" in fails(2, "say", "Hi.", "--random-weights")

    @pytest.mark.parametrize("speed", ["0", "9", "nan", "-1"])
    def test_speed(self, fails: Callable[..., str], speed: str) -> None:
        assert "--speed must be between 0.25 and 4" in fails(2, "say", "Hi.", "--random-weights", f"--speed={speed}")

    def test_weights_without_a_voice(self, fails: Callable[..., str], release: Path) -> None:
        shutil.rmtree(release / "voices")
        assert "with --voice" in fails(2, "say", "Hi.", "--model-dir", release)

    def test_folder_without_weights(self, fails: Callable[..., str]) -> None:
        line = fails(2, "say", "Hi.", "--model-dir", "nowhere")
        assert all(name in line for name in ("config.yaml", "gpt.pth", "bigvgan_generator.pt"))
        assert "indextts download --dir nowhere" in line


@pytest.mark.usefixtures("one_engine")
class TestSayFails:
    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (("--emotion", "1,2"), "happy, angry, sad"),
            (("--emotion=-1,0,0,0,0,0,0,0",), "happy, angry, sad"),
            (("--emotion", "nan,0,0,0,0,0,0,0"), "happy, angry, sad"),
            (("--emotion-strength", "nan"), "emo_alpha must be"),
            (("--emotion-text", ""), "emo_text must be"),
            (("--steps", "0"), "diffusion_steps must be between"),
            (("--beams", "0"), "num_beams must be"),
            (("--beams", "1000"), "num_beams must be"),
            (("--seed", "-1"), "seed must be"),
            (("--device", "cuda:77"), "this machine has: "),
            (("--precision", "fp9"), "choose 'auto' or one of"),
            (("--model-dir", "x"), "exclude each other"),
        ],
    )
    def test_bad_value(self, fails: Callable[..., str], voice: str, options: tuple[str, ...], why: str) -> None:
        Path("speech.wav").write_bytes(b"old")
        assert why in fails(2, "say", "Hi.", "--random-weights", "--voice", voice, "--device", "cpu", *options)

    def test_nothing_to_pronounce(self, fails: Callable[..., str]) -> None:
        assert "nothing in this text can be pronounced" in fails(2, "say", "?! ...", "--random-weights", "--device", "cpu")

    def test_emotion_text_without_its_model(self, fails: Callable[..., str]) -> None:
        assert "indextts download --emotion-text" in fails(1, "say", "Hi.", "--random-weights", "--emotion-text", "sad", "--device", "cpu")

    def test_damaged_weights(self, fails: Callable[..., str], release: Path) -> None:
        data = (release / "gpt.pth").read_bytes()
        (release / "gpt.pth").unlink()
        (release / "gpt.pth").write_bytes(data[: len(data) // 2])
        assert f"{release / 'gpt.pth'}: truncated" in fails(1, "say", "Hi.", "--model-dir", release)

    def test_weights_of_another_release(self, fails: Callable[..., str], release: Path) -> None:
        config = (release / "config.yaml").read_text(encoding="utf-8").replace("version: '2.0'", "version: 2.5")
        (release / "config.yaml").unlink()
        (release / "config.yaml").write_text(config, encoding="utf-8")
        assert "release 2.5; only release 2.0 is supported" in fails(2, "say", "Hi.", "--model-dir", release)

    def test_full_disk_keeps_the_old_file(self, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        Path("speech.wav").write_bytes(b"old")

        def write_bytes(path: Path, content: bytes) -> NoReturn:
            with path.open("wb") as file:
                file.write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        line = fails(1, "say", "Hi.", "--random-weights", *QUICK)
        assert "No space left on device: 'speech.wav'" in line

    def test_interruption(self, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: Any, **__: Any) -> NoReturn:
            raise KeyboardInterrupt

        monkeypatch.setattr(IndexTTS2, "infer", interrupt)
        assert fails(130, "say", "Hi.", "--random-weights", "--device", "cpu") == "indextts: interrupted\n"

    def test_verbose_logs_the_traceback(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            code, _, _ = run("say", "Hi.", "-v", "--voice", "nowhere.wav")
        assert code == 2
        assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [FileNotFoundError]
