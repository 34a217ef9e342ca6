"""If this fails, worker processes lose requests, give other sound than this process, or plans do not fit the GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from indextts.parallel import WorkerPool
from indextts.parallel_ray import Share, plan_shares


class TestPlan:
    def test_one_worker_a_gpu(self) -> None:
        assert plan_shares("auto", gpus=2, cpus=32) == [Share(1, 1.0, None)] * 2

    def test_several_workers_share_a_gpu_if_memory_allows(self) -> None:
        shares = plan_shares(4, gpus=2, cpus=32, free_mb=[20000, 30000], need_mb=9000)
        assert shares == [Share(1, 0.5, None)] * 4
        with pytest.raises(ValueError, match=r"3 engines on one GPU need 27000 MB, but 20000 MB are free; 2 fit"):
            plan_shares(6, gpus=2, cpus=32, free_mb=[20000, 30000], need_mb=9000)

    @pytest.mark.parametrize("per_gpu", [3, 6, 7])
    def test_shares_of_a_gpu_never_exceed_it(self, per_gpu: int) -> None:
        shares = plan_shares("auto", gpus=1, cpus=8, workers_per_gpu=per_gpu)
        assert len(shares) == per_gpu
        assert sum(share.num_gpus for share in shares) <= 1

    def test_cpu_workers_divide_the_cpus(self) -> None:
        assert plan_shares(2, gpus=0, cpus=8) == [Share(4, 0, 4)] * 2
        assert plan_shares(2, gpus=0, cpus=8, threads=1) == [Share(1, 0, 1)] * 2
        assert plan_shares(None, gpus=0, cpus=2) == [Share(2, 0, 2)]

    @pytest.mark.parametrize("count", [0, -1, True, "two", 1.5])
    def test_impossible_numbers(self, count: Any) -> None:
        with pytest.raises(ValueError, match="num_workers must be"):
            plan_shares(count, gpus=0, cpus=2)

    def test_more_workers_than_a_given_number_a_gpu(self) -> None:
        with pytest.raises(ValueError, match="5 workers do not fit on 2 GPUs with 2 on each"):
            plan_shares(5, gpus=2, cpus=8, workers_per_gpu=2)
        with pytest.raises(ValueError, match="there is no GPU"):
            plan_shares(1, gpus=0, cpus=8, workers_per_gpu=2)


def test_without_ray_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'indextts2-lab\[cluster\]'"):
        WorkerPool(2, engine=lambda: None)  # type: ignore[arg-type, return-value]


def test_an_engine_cannot_travel() -> None:
    with pytest.raises(TypeError, match="give a function that makes one"):
        WorkerPool(2, engine=object())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return child()


def child(*options: str) -> dict[str, Any]:
    """What ``ray_child`` found out. In a process of its own: Ray leaves sockets, files and processes for the interpreter to tidy."""
    pytest.importorskip("ray", reason="needs the extra cluster")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.parallel.ray_child", *options],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.slow
def test_processes_of_their_own_with_the_threads_asked_for(facts: dict[str, Any]) -> None:
    assert facts["processes"] == 2
    assert facts["threads"] == [1, 1]


@pytest.mark.slow
def test_the_same_bits_in_order_although_a_worker_is_killed(facts: dict[str, Any]) -> None:
    assert facts["same"] == [True] * 10
    assert facts["failed"] == 0
    assert facts["restarts"] == 1
    assert facts["same_afterwards"] == [True] * 4


@pytest.mark.slow
def test_streams_are_the_same_too(facts: dict[str, Any]) -> None:
    assert facts["stream_same"]


@pytest.mark.slow
def test_errors_warnings_progress_and_cancelling_cross_the_border(facts: dict[str, Any]) -> None:
    assert facts["error"].startswith("ValueError: request 0: num_beams")
    assert facts["reports"] >= 2
    assert facts["cancelled_within_s"] < 30
    assert any("generation was stopped" in line for line in facts["logged"])


@pytest.mark.slow
def test_workers_killed_in_the_stages_of_a_request() -> None:
    assert child("--stages") == {stage: {"killed": 1, "same": True} for stage in ("codes", "mel")}
