"""Processes that share a GPU: the service is started, checked, named to the stages and ended; without it everything still runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from indextts.training import orchestrate, sharing
from indextts.training.sharing import GpuSharing
from tests.training.test_orchestrate import conductor

PROGRAM = """#!/bin/sh
if [ "$1" = -d ]; then echo started "$CUDA_MPS_PIPE_DIRECTORY" >> {log}; else cat >> {log}; fi
exit {status}
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, status: int = 0, check: str = "pass") -> Path:
    """A service's control program on the path; what it was told comes to the file that is returned."""
    log = folder / "told"
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(PROGRAM.format(log=log, status=status))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(sharing, "_CHECK", check)
    return log


def test_the_service_is_started_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch)
    service = GpuSharing(tmp_path)
    variables = service.start()
    assert log.read_text() == f"started {tmp_path / 'mps'}\n"
    assert variables["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps")
    assert (tmp_path / "mps").is_dir()
    service.stop()
    service.stop()
    assert log.read_text().splitlines()[1:] == ["quit"]


def test_what_a_killed_run_left_is_ended_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch)
    GpuSharing(tmp_path).start()  # and never stopped
    again = GpuSharing(tmp_path)
    assert again.start() != {}
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["started", "quit", "started"]
    again.stop()
    assert not (tmp_path / "mps").exists()
    log.unlink()
    GpuSharing(tmp_path).start()
    assert log.read_text().split()[0] == "started"  # nothing was left


def test_a_service_that_does_not_answer_is_ended_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch, check="raise SystemExit(1)")
    assert GpuSharing(tmp_path).start() == {}
    assert log.read_text().endswith("quit\n")


def test_without_the_program_or_with_ones_own_service_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch, status=1)
    assert GpuSharing(tmp_path).start() == {}  # it cannot be started
    log.unlink()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/elsewhere")
    assert GpuSharing(tmp_path).start() == {}
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert GpuSharing(tmp_path).start() == {}
    assert not log.exists()


@pytest.mark.parametrize(("arguments", "shared"), [((), True), (("--no-mps",), False), (("--device", "cpu"), False)])
def test_the_stages_of_a_run_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], shared: bool) -> None:
    log = install(tmp_path, monkeypatch)
    monkeypatch.setattr(orchestrate, "_gpus", lambda: 1)
    made = conductor(tmp_path, "--minutes", "0.1", *arguments)
    seen: list[str | None] = []

    class Process:
        pid = 0

        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env.get("CUDA_MPS_PIPE_DIRECTORY"))

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(orchestrate.subprocess, "Popen", Process)
    monkeypatch.setattr(made._sharing, "start", lambda: {"CUDA_MPS_PIPE_DIRECTORY": "here"})
    stopped: list[bool] = []
    monkeypatch.setattr(made._sharing, "stop", lambda: stopped.append(True))
    made.run()
    assert len(seen) == len(made.jobs)
    assert seen == [None] + ["here" if shared else None] * (len(seen) - 1)  # speech is made from the first second on
    assert stopped == [True]
    assert not log.exists()
