"""``indextts lab`` and ``indextts app`` before any server starts: what is missing, what cannot be, what is asked for."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from indextts import cli_lab
from indextts.cli import main
from widgets.app import FILES, NOTEBOOK, open_app_engine


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("command", "module"), [("app", "voila"), ("lab", "jupyterlab")])
def test_without_the_extra_it_says_what_to_install(
    command: str, module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else real(name, *more))
    assert run(capsys, command) == (
        1,
        f"indextts: indextts {command} needs {module}, which is not installed: pip install 'indextts2-lab[lab]'\n",
    )


def test_bad_options_are_refused_before_a_server_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("voila", reason="the lab extra is not installed")
    assert run(capsys, "app", "--port", "70000") == (2, "indextts: --port must be from 1 to 65535, got 70000\n")
    code, error = run(capsys, "app", "--model-dir", str(tmp_path / "none"))
    assert (code, "is no folder" in error) == (2, True)
    code, error = run(capsys, "app", "--model-dir", str(tmp_path), "--random-weights")
    assert (code, "exclude each other" in error) == (2, True)


def test_notebooks_are_found_by_the_beginning_of_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("00_quick_start", "03_precision"):
        (folder / f"{name}.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert cli_lab.find_notebook("03") == folder / "03_precision.ipynb"
    assert cli_lab.find_notebook("", str(folder)) == folder / "00_quick_start.ipynb"
    with pytest.raises(FileNotFoundError, match="no notebook begins with '42'; there are 00_quick_start, 03_precision"):
        cli_lab.find_notebook("42", str(folder))
    with pytest.raises(FileNotFoundError, match="name their folder with --notebooks"):
        cli_lab.find_notebook("00", str(tmp_path / "nowhere"))


def test_a_port_in_use_is_stepped_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli_lab._free_port("127.0.0.1", port) != port
    with pytest.raises(OSError, match=r"cannot listen on 203\.0\.113\.7"):
        cli_lab._free_port("203.0.113.7", 8866)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the app's server would be started with."""
    voila = pytest.importorskip("voila.app", reason="the lab extra is not installed")
    seen: dict[str, Any] = {}
    monkeypatch.setattr(voila.Voila, "launch_instance", lambda argv, config: seen.update(argv=argv, config=config))
    monkeypatch.setenv("JUPYTER_PATH", "")
    monkeypatch.setenv("INDEXTTS_APP_OPTIONS", "")
    return seen


def test_the_app_listens_on_loopback_and_asks_for_a_token(started: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--no-browser", "--random-weights", "--dark"]) == 0
    config, said = started["config"], capsys.readouterr()
    assert started["argv"] == [str(NOTEBOOK)]
    assert config.Voila.ip == "127.0.0.1"
    assert len(config.Voila.token) >= 32
    assert f"?token={config.Voila.token}" in said.out
    assert (config.VoilaConfiguration.theme, config.VoilaConfiguration.show_tracebacks, said.err) == ("dark", False, "")
    first = config.Voila.token
    assert main(["app", "--no-browser", "--random-weights", "--host", "0.0.0.0"]) == 0
    assert started["config"].Voila.token != first
    assert "without encryption" in capsys.readouterr().err


def test_the_apps_page_fetches_nothing_from_elsewhere() -> None:
    files = [path for path in FILES.rglob("*") if path.is_file()]
    assert NOTEBOOK in files
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "http://" not in text, path
        assert "https://" not in text, path
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"][0]["outputs"] == []


@pytest.mark.slow  # the browser drives the app where there is one
def test_the_app_runs_on_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tts, sentence = open_app_engine({"random": "small", "device": "cpu", "precision": "bf16"})
    assert (tts.precision, "as asked for" in sentence) == ("bf16", True)
    tts.close()
    with pytest.raises(FileNotFoundError):
        open_app_engine({"model_dir": str(tmp_path)})

    import indextts.pipeline as pipeline

    def missing(self: Any, **_: Any) -> None:
        raise FileNotFoundError("no weights")

    monkeypatch.setattr(pipeline.IndexTTS2, "__init__", missing)
    tts, sentence = open_app_engine({"device": "cpu"})
    assert "these are random" in sentence
    tts.close()


def test_an_engine_that_cannot_be_loaded_is_words_on_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ipywidgets", reason="the lab extra is not installed")
    from widgets.app import OPTIONS_VARIABLE, open_lab

    monkeypatch.setenv(OPTIONS_VARIABLE, json.dumps({"model_dir": str(tmp_path / "<none>")}))
    shown = open_lab()
    assert "The engine could not be loaded." in shown.value
    assert "<none>" not in shown.value


def test_help_does_not_load_the_servers() -> None:
    import subprocess

    code = "import sys; from indextts.cli import main\ntry: main(['app', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'voila', 'jupyterlab') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("[]")
