"""If this fails, calls from several threads get lost, hang, or touch the device at the same time."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from indextts.engine.worker import Cancelled, EngineWorker, Job


class Owner:
    """Stands for an engine."""


@pytest.fixture
def worker():
    owner = Owner()
    made = EngineWorker(owner)
    yield made
    made.close()


def test_results_come_back(worker: EngineWorker) -> None:
    assert worker.call(lambda job: 6 * 7) == 42


def test_errors_come_back_as_they_were_raised(worker: EngineWorker) -> None:
    def fail(job: Job) -> None:
        raise KeyError("the reason")

    with pytest.raises(KeyError, match="the reason"):
        worker.call(fail)
    assert worker.call(lambda job: "still alive") == "still alive"


def test_one_thread_does_all_the_work(worker: EngineWorker) -> None:
    names = {worker.call(lambda job: threading.current_thread().name) for _ in range(3)}
    assert len(names) == 1
    assert threading.current_thread().name not in names


def test_calls_from_many_threads_do_not_overlap_and_none_is_lost(worker: EngineWorker) -> None:
    running, overlaps, results = [], [], []

    def work(job: Job, number: int) -> int:
        overlaps.extend(running)
        running.append(number)
        time.sleep(0.001)
        running.remove(number)
        return number

    threads = [threading.Thread(target=lambda n=n: results.append(worker.call(lambda job: work(job, n)))) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(40))
    assert overlaps == []


def test_progress_runs_in_the_calling_thread(worker: EngineWorker) -> None:
    seen = []

    def work(job: Job) -> None:
        job.progress(0.5, "half")

    worker.call(work, lambda fraction, message: seen.append((fraction, message, threading.current_thread())))
    assert seen == [(0.5, "half", threading.current_thread())]


def test_an_exception_in_the_progress_callback_cancels_the_work(worker: EngineWorker) -> None:
    outcome = []

    def work(job: Job) -> None:
        try:
            for step in range(10_000):
                job.progress(step / 10_000, "working")
                time.sleep(0.001)
        except Cancelled:
            outcome.append("cancelled")
            raise

    def stop(fraction: float, message: str) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        worker.call(work, stop)
    worker.call(lambda job: None)  # queued behind the cancelled job, so it has ended by now
    assert outcome == ["cancelled"]


def test_items_stream_while_the_work_goes_on(worker: EngineWorker) -> None:
    first_taken = threading.Event()

    def work(job: Job) -> None:
        job.put("first")
        assert first_taken.wait(5), "the first item did not arrive before the second was made"
        job.put("second")

    stream = worker.stream(work)
    assert next(stream) == "first"
    first_taken.set()
    assert list(stream) == ["second"]


def test_closing_a_stream_early_stops_the_work(worker: EngineWorker) -> None:
    made = []

    def work(job: Job) -> None:
        for number in range(10_000):
            made.append(number)
            job.put(number)
            time.sleep(0.001)

    stream = worker.stream(work)
    next(stream)
    stream.close()
    worker.call(lambda job: None)
    assert len(made) < 10_000


def test_a_call_from_within_a_job_does_not_deadlock(worker: EngineWorker) -> None:
    assert worker.call(lambda job: worker.call(lambda inner: "inner")) == "inner"


def test_a_closed_engine_says_so(worker: EngineWorker) -> None:
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        worker.call(lambda job: None)


def test_the_thread_ends_with_its_owner() -> None:
    owner = Owner()
    worker = EngineWorker(owner, name="to-be-collected")
    thread = worker._thread
    del owner
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
