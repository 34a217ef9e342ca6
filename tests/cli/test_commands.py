"""If this fails, a command other than ``say`` misreports, or answers a mistake with a traceback or after minutes of work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from indextts import __version__, cli
from tests.cli.conftest import QUICK, Run, contents

COMMANDS = ("say", "info", "download", "bench")


class TestParser:
    @pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)])
    def test_help(self, run: Run, command: tuple[str, ...]) -> None:
        code, out, err = run(*command, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(" ".join(("usage: indextts", *command)))

    def test_help_names_every_command(self, run: Run) -> None:
        assert all(f"\n    {command} " in run("--help")[1] for command in COMMANDS)

    def test_version(self, run: Run) -> None:
        assert run("--version") == (0, f"indextts {__version__}\n", "")

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            ((), "COMMAND (see indextts --help)"),
            (("sing",), "download"),
            (("say",), "text (see indextts say --help)"),
            (("say", "Hi.", "--beams", "two"), "'two' (see indextts say --help)"),
            (("say", "Hi.", "--emotion", "1", "--emotion-text", "a"), "not allowed with"),
            (("say", "Hi.", "--nonsense\nof two lines"), "nonsense"),
            (("bench", "--beams", "1,x"), "list of int value: '1,x' (see indextts bench --help)"),
            (("bench", "--size", "huge"), "release"),
            (("info", "more"), "more"),
        ],
    )
    def test_bad_usage_is_one_line_with_a_hint(self, fails: Callable[..., str], arguments: tuple[str, ...], why: str) -> None:
        line = fails(2, *arguments)
        assert why in line
        assert "--help)" in line


class TestDownload:
    def test_offline(self, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        line = fails(1, "download", "--dir", "new")
        assert "HF_HUB_OFFLINE" in line
        assert "gpt.pth" in line

    def test_offline_with_everything_there(self, run: Run, release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert run("download", "--dir", release) == (0, f"complete: {release}\n", "")


@pytest.mark.usefixtures("one_engine")
class TestBench:
    SHORT = ("--random-weights", "--device", "cpu", "--codes", "6", "--steps", "1", "--runs", "2", "--warmup", "0")

    def test_table_and_json(self, run: Run) -> None:
        code, out, err = run("bench", *self.SHORT, "--beams", "1", "--precisions", "fp32,bf16", "--json", "new/b.json")
        assert (code, err) == (0, "")
        header, *rows = out.splitlines()
        assert header.split()[:2] == ["what", "precision"]
        assert [" ".join(row.split()[:4]) for row in rows] == ["plain fp32, 1 beam,", "accel fp32, 1 beam,", "accel bf16, 1 beam,"]
        report = json.loads(Path("new/b.json").read_text(encoding="utf-8"))
        assert {"gpu", "cpu", "torch", "torch_threads"} <= report["machine"].keys()
        assert report["command"].startswith("indextts bench --random-weights ")
        for result in report["rows"]:
            assert result["codes"] == 6
            assert len(result["total"]["values"]) == result["runs"] == 2
            assert result["rtf"] == pytest.approx(result["total_s"] / result["audio_s"])
            assert result["settings"]["diffusion_steps"] == 1
            assert set(result["stages_s"]) == {"gpt", "s2mel", "bigvgan", "other"}
        assert [path.name for path in Path("new").iterdir()] == ["b.json"]

    @pytest.mark.usefixtures("no_weights")
    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (("--json", "file/b.json"), "file is not a folder"),
            (("--json", "."), "is a folder"),
            (("--beams", "1,0"), "--beams must be between 1 and 64"),
            (("--beams", "1000000"), "--beams must be between 1 and 64"),
            (("--codes", "0"), "--codes must be at least 1"),
            (("--runs", "0"), "--runs must be at least 1"),
            (("--voice", "nowhere.wav"), "no such file"),
        ],
    )
    def test_refused_at_once(self, fails: Callable[..., str], options: tuple[str, ...], why: str) -> None:
        Path("file").write_bytes(b"")
        assert why in fails(2, "bench", "--random-weights", *options)

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (("--precisions", "fp32,fp9"), "choose 'auto' or one of"),
            (("--codes", "100000"), "codes must be between 1 and 1815"),
            (("--steps", "0"), "steps must be at least 1"),
        ],
    )
    def test_refused_before_work(
        self, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], why: str
    ) -> None:
        monkeypatch.setattr("indextts.pipeline.IndexTTS2._render", None)
        assert why in fails(2, "bench", *self.SHORT, "--json", "b.json", *options)


class TestAsAProcess:
    @staticmethod
    def start(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
        program = ["-c", code] if code else ["-m", "indextts.cli"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "ascii"}
        root = str(Path(cli.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        return subprocess.run(
            [sys.executable, *program, *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False
        )

    @pytest.mark.slow  # the CI runs the main job by itself
    def test_success(self) -> None:
        done = self.start("say", "Hello.", "--random-weights", *QUICK, "-o", "né.wav")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("n\\xe9.wav: "), "a console that lacks a character is no failure"
        assert "Traceback" not in done.stderr
        assert soundfile.info("né.wav").frames

    def test_bad_input(self) -> None:
        done = self.start("say", "Hello.", "--voice", "nowhere.wav")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("indextts: --voice 'nowhere.wav': no such file")
        assert done.stderr.count("\n") == 1
        assert not contents()

    def test_help_is_quick_because_nothing_heavy_is_imported(self) -> None:
        code = "import sys; from indextts.cli import _parser; _parser().format_help(); assert 'torch' not in sys.modules"
        assert self.start(code=code).returncode == 0
