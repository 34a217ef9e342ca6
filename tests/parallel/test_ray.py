"""If this fails, worker processes lose requests, give other sound than this process, or plans do not fit the GPUs."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.parallel import WorkerPool
from indextts.parallel_ray import Share, plan_shares

MAKE = functools.partial(IndexTTS2.from_random, "small", device="cpu")
QUICK: dict[str, Any] = {"max_mel_tokens": 20, "diffusion_steps": 2}
VOICE = made_up_clip(1.0)
REQUESTS = [{"spk_audio_prompt": VOICE, "text": f"Hello there, number {i}.", "seed": i, **QUICK} for i in range(10)]


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
        WorkerPool(2, engine=MAKE)


def test_an_engine_cannot_travel() -> None:
    with pytest.raises(TypeError, match="give a function that makes one"):
        WorkerPool(2, engine=object())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """What this process makes of the requests, with as many threads as the workers have."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), MAKE() as tts:
            warnings.filterwarnings("ignore", "generation was stopped", RuntimeWarning)
            return [tts.infer(**given)[1] for given in REQUESTS]
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pytest.importorskip("ray", reason="needs the extra cluster")
    with warnings.catch_warnings():  # Ray about itself: sockets and files that it closes late, settings of its next version
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        made = WorkerPool(2, engine=MAKE, threads=1, ray_options={"object_store_memory": 100 * 2**20})
        try:
            yield made
        finally:
            made.close(cancel=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestProcesses:
    def test_the_same_bits_in_order_although_a_worker_is_killed(self, pool: WorkerPool, expected: list[np.ndarray]) -> None:
        rows = pool.stats()["workers"]
        assert len({row["pid"] for row in rows} - {os.getpid(), None}) == 2
        results = []
        for result in pool.map(REQUESTS):
            results.append(result[1])
            if len(results) == 3:
                os.kill(rows[0]["pid"], signal.SIGKILL)
        assert len(results) == len(expected)
        assert all(map(np.array_equal, results, expected))
        assert pool.stats()["failed"] == 0

    def test_streams_and_errors_and_cancelling(self, pool: WorkerPool, expected: list[np.ndarray]) -> None:
        assert np.array_equal(np.concatenate(list(pool.stream(REQUESTS[0]))), expected[0].reshape(-1))
        with pytest.raises(ValueError, match="num_beams"):
            pool.submit({**REQUESTS[0], "num_beams": 0}).result()
        reports: list[tuple[float, str]] = []
        long = pool.submit({**REQUESTS[0], "text": "One. " * 300, "progress": lambda *report: reports.append(report)})
        while len(reports) < 2:
            time.sleep(0.05)
        assert long.cancel()
        with pytest.raises(CancelledError):
            long.result(30)

    def test_the_killed_worker_is_back(self, pool: WorkerPool, expected: list[np.ndarray]) -> None:
        end = time.monotonic() + 120
        while pool.stats()["ready"] < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        stats = pool.stats()
        assert stats["restarts"] == 1
        assert all(map(np.array_equal, (result[1] for result in pool.map(REQUESTS[:2])), expected))
