"""If this fails, requests are lost, mixed up, answered twice or never, or a pool hangs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from indextts.parallel import PoolFullError, WorkerDiedError, WorkerPool
from indextts.parallel_jobs import Ticket
from tests.parallel.fakes import VOICE, FakeWorker, request, text_of, until

Make = Callable[..., WorkerPool]


def dies(*texts: str, times: int = 1) -> Callable[[FakeWorker, Sequence[Ticket]], None]:
    """Kills the worker when it gets one of ``texts``, so many times each."""
    left = dict.fromkeys(texts, times)

    def before(_: FakeWorker, batch: Sequence[Ticket]) -> None:
        for ticket in batch:
            text = ticket.arguments["text"]
            if left.get(text, 0) > 0:
                left[text] -= 1
                raise WorkerDiedError("killed")

    return before


class Gate:
    """Workers wait in it until it opens."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0

    def __call__(self, *_: Any) -> None:
        self.inside += 1
        assert self.open.wait(20)


class TestOrder:
    def test_map_gives_results_in_order_whoever_made_them(self, pool_of: Make) -> None:
        pool = pool_of(*(FakeWorker(size=2) for _ in range(3)))
        texts = [f"text {i}" for i in range(100)]
        assert [text_of(result) for result in pool.map(map(request, texts))] == texts
        assert pool.stats()["done"] == 100

    def test_a_hundred_threads_get_their_own_results(self, pool_of: Make) -> None:
        pool = pool_of(*(FakeWorker(size=4) for _ in range(4)), max_queue=2000)

        def client(number: int) -> list[str]:
            futures = [pool.submit(request(f"{number}/{i}"), wait_s=None) for i in range(10)]
            return [text_of(future.result(20)) for future in futures]

        with ThreadPoolExecutor(100) as clients:
            answers = list(clients.map(client, range(100)))
        assert answers == [[f"{number}/{i}" for i in range(10)] for number in range(100)]
        assert pool.stats()["done"] == 1000

    def test_work_is_shared_not_hoarded(self, pool_of: Make) -> None:
        gates = [Gate(), Gate()]
        workers = [FakeWorker(gate, size=8) for gate in gates]
        pool = pool_of(*workers)
        futures = [pool.submit(request(str(i))) for i in range(2)]
        until(lambda: all(gate.inside for gate in gates))
        for gate in gates:
            gate.open.set()
        assert [text_of(future.result(10)) for future in futures] == ["0", "1"]

    def test_what_waits_goes_in_batches(self, pool_of: Make) -> None:
        gate = Gate()
        worker = FakeWorker(gate, size=4)
        pool = pool_of(worker)
        futures = [pool.submit(request("first"))]
        until(lambda: gate.inside == 1)
        futures += [pool.submit(request(str(i))) for i in range(6)]
        gate.open.set()
        for future in futures:
            future.result(10)
        assert worker.batches == [["first"], ["0", "1", "2", "3"], ["4", "5"]]

    def test_map_takes_no_more_than_it_can_hold(self, pool_of: Make) -> None:
        taken = []

        def endless() -> Any:
            for i in range(10_000):
                taken.append(i)
                yield request(str(i))

        pool = pool_of(FakeWorker())
        results = pool.map(endless(), ahead=5)
        assert text_of(next(results)) == "0"
        assert len(taken) <= 6
        results.close()


class TestFaults:
    def test_a_killed_worker_is_replaced_and_its_requests_run_again(self, pool_of: Make) -> None:
        before = dies("3", "7")
        pool = pool_of(FakeWorker(before), FakeWorker(before))
        texts = [str(i) for i in range(20)]
        assert [text_of(result) for result in pool.map(map(request, texts))] == texts
        until(lambda: pool.stats()["restarts"] == 2)
        assert pool.stats()["failed"] == 0

    def test_one_retry_then_a_clear_failure_and_nobody_else_suffers(self, pool_of: Make) -> None:
        pool = pool_of(FakeWorker(dies("bad", times=99), size=4))
        gate = [pool.submit(request(text)) for text in ("a", "bad", "b", "c")]
        assert [text_of(gate[i].result(10)) for i in (0, 2, 3)] == ["a", "b", "c"]
        with pytest.raises(WorkerDiedError, match="two workers died on this request"):
            gate[1].result(10)
        stats = pool.stats()
        assert (stats["restarts"], stats["failed"]) == (2, 1)

    def test_an_idle_worker_that_died_is_replaced_before_it_is_needed(self, pool_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("indextts.parallel_lanes.IDLE_CHECK_S", 0.02)
        worker = FakeWorker()
        pool = pool_of(worker)
        worker.broken.set()
        until(lambda: worker.starts == 2)
        assert text_of(pool.submit(request("x")).result(10)) == "x"

    def test_a_worker_that_dies_while_it_starts_is_tried_three_times(self, pool_of: Make) -> None:
        def never(_: FakeWorker) -> None:
            raise WorkerDiedError("killed while loading")

        worker = FakeWorker(on_start=never)
        with pytest.raises(WorkerDiedError, match="no worker is left; the last error was: killed while loading"):
            pool_of(worker)
        assert worker.starts == 3

    def test_a_wrong_setting_is_reported_at_once_as_it_is(self, pool_of: Make) -> None:
        def missing(_: FakeWorker) -> None:
            raise FileNotFoundError("no weights here")

        worker = FakeWorker(on_start=missing)
        with pytest.raises(FileNotFoundError, match="no weights here"):
            pool_of(worker)
        assert worker.starts == 1

    def test_what_waits_fails_when_no_worker_is_left(self, pool_of: Make) -> None:
        def only_once(worker: FakeWorker) -> None:
            if worker.starts > 1:
                raise WorkerDiedError("out of luck")

        gate = Gate()

        def die(*_: Any) -> None:
            gate()
            raise WorkerDiedError("killed")

        pool = pool_of(FakeWorker(die, only_once))
        futures = [pool.submit(request(str(i))) for i in range(3)]
        until(lambda: gate.inside == 1)
        gate.open.set()
        for future in futures:
            assert isinstance(future.exception(10), WorkerDiedError)
        with pytest.raises(WorkerDiedError):
            pool.submit(request("late"))

    def test_one_bad_request_of_a_map(self, pool_of: Make) -> None:
        requests = [request("a"), request(""), {"text": "no voice"}, request("b")]
        first, second, third, fourth = pool_of(FakeWorker()).map(requests, on_error="return")
        assert (text_of(first), text_of(fourth)) == ("a", "b")
        assert "text is empty" in str(second)
        assert "needs spk_audio_prompt" in str(third)

    def test_an_error_of_a_map_cancels_the_rest(self, pool_of: Make) -> None:
        gate = Gate()
        pool = pool_of(FakeWorker(gate))
        results = pool.map([request(""), *(request(str(i)) for i in range(5))])
        with pytest.raises(ValueError, match="empty"):
            next(results)
        gate.open.set()
        until(lambda: pool.stats()["running"] == pool.stats()["queued"] == 0)
        assert pool.stats()["done"] <= 1


class TestLimits:
    def test_a_full_queue_refuses_clearly_and_counts(self, pool_of: Make) -> None:
        gate = Gate()
        pool = pool_of(FakeWorker(gate), max_queue=2)
        futures = [pool.submit(request("at work"))]
        until(lambda: gate.inside == 1)
        futures += [pool.submit(request(str(i))) for i in range(2)]
        with pytest.raises(PoolFullError, match=r"2 requests wait already .*use map"):
            pool.submit(request("too many"))
        assert (pool.stats()["queued"], pool.stats()["rejected"]) == (2, 1)
        gate.open.set()
        assert [text_of(future.result(10)) for future in futures] == ["at work", "0", "1"]

    def test_a_batch_that_takes_too_long_is_stopped(self, pool_of: Make) -> None:
        def slow(_: FakeWorker, batch: Sequence[Ticket]) -> None:
            if batch[0].arguments["text"] == "slow":
                threading.Event().wait(0.05)

        pool = pool_of(FakeWorker(slow), timeout_s=0.02)
        with pytest.raises(TimeoutError, match=r"longer than 0\.02 s"):
            pool.submit(request("slow")).result(10)
        assert text_of(pool.submit(request("quick")).result(10)) == "quick"

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"max_queue": 0}, "max_queue must be a whole number >= 1, got 0"),
            ({"batch_size": True}, "batch_size must be"),
            ({"timeout_s": 0}, "timeout_s must be above 0"),
            ({"threads": 2}, "give num_workers as well"),
        ],
    )
    def test_a_wrong_option(self, options: dict[str, Any], why: str) -> None:
        with pytest.raises(ValueError, match=why):
            WorkerPool(engine=lambda: None, **options)

    @pytest.mark.parametrize(
        ("changes", "kind", "why"),
        [
            ({"text": 3}, TypeError, "text must be str"),
            ({"text": " "}, ValueError, "text is empty"),
            ({"spk_audio_prompt": "nowhere.wav"}, FileNotFoundError, "spk_audio_prompt 'nowhere.wav': no such file"),
            ({"output_path": "/dev/null"}, ValueError, "names a device"),
            ({"progress": 3}, ValueError, "progress must be callable"),
            ({"stream_return": True}, ValueError, "stream"),
        ],
    )
    def test_bad_input_is_refused_where_the_request_is_made(self, pool_of: Make, changes: dict[str, Any], kind: Any, why: str) -> None:
        worker = FakeWorker()
        with pytest.raises(kind, match=why):
            pool_of(worker).submit(request("x", **changes) if "text" not in changes else {"spk_audio_prompt": VOICE, **changes})
        assert worker.batches == []


class TestCancelling:
    def test_what_waits_and_what_runs(self, pool_of: Make) -> None:
        gate = Gate()
        worker = FakeWorker(gate)
        pool = pool_of(worker)
        running, waiting, other = (pool.submit(request(text)) for text in ("running", "waiting", "other"))
        until(lambda: gate.inside == 1)
        assert waiting.cancel()
        assert running.cancel()
        gate.open.set()
        assert text_of(other.result(10)) == "other"
        for future in (running, waiting):
            with pytest.raises(CancelledError):
                future.result(10)
            assert future.cancelled()
        assert not other.cancel()
        assert worker.batches == [["running"], ["other"]]

    def test_one_of_a_batch_leaves_the_others(self, pool_of: Make) -> None:
        gate = Gate()
        pool = pool_of(FakeWorker(gate, size=3))
        first = pool.submit(request("first"))
        until(lambda: gate.inside == 1)
        futures = [pool.submit(request(text)) for text in "abc"]
        gate.open.set()
        gate.open.clear()
        until(lambda: gate.inside == 2)
        futures[1].cancel()
        gate.open.set()
        assert [text_of(future.result(10)) for future in (first, futures[0], futures[2])] == ["first", "a", "c"]
        with pytest.raises(CancelledError):
            futures[1].result(10)

    def test_a_cancelled_request_of_a_dead_worker_is_not_run_again(self, pool_of: Make) -> None:
        gate = Gate()

        def die(worker: FakeWorker, batch: Sequence[Ticket]) -> None:
            gate()
            raise WorkerDiedError("killed")

        worker = FakeWorker(die)
        future = pool_of(worker).submit(request("x"))
        until(lambda: gate.inside == 1)
        future.cancel()
        gate.open.set()
        with pytest.raises(CancelledError):
            future.result(10)
        assert len(worker.batches) == 1

    def test_progress_reaches_its_request_and_an_exception_in_it_cancels(self, pool_of: Make) -> None:
        seen: list[tuple[float, str]] = []
        pool = pool_of(FakeWorker())
        pool.submit(request("a", progress=lambda *report: seen.append(report))).result(10)
        assert seen == [(0.5, "half")]

        def stop(*_: Any) -> None:
            raise KeyError("enough")

        with pytest.raises(CancelledError):
            pool.submit(request("b", progress=stop)).result(10)


class TestStreams:
    def test_pieces_come_one_by_one(self, pool_of: Make) -> None:
        assert [chr(piece[0]) for piece in pool_of(FakeWorker()).stream(request("abc"))] == ["a", "b", "c"]

    def test_a_worker_that_dies_in_the_middle_loses_and_repeats_nothing(self, pool_of: Make) -> None:
        calls = []

        def die_third(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise WorkerDiedError("killed")

        worker = FakeWorker(die_third)
        assert [chr(piece[0]) for piece in pool_of(worker).stream(request("abcd"))] == ["a", "b", "c", "d"]
        assert worker.starts == 2

    def test_closing_cancels(self, pool_of: Make) -> None:
        gate = Gate()
        pool = pool_of(FakeWorker(gate))
        stream = pool.stream(request("abc"))
        until(lambda: gate.inside == 1)
        waiting = pool.stream(request("xyz"))
        waiting.close()
        gate.open.set()
        assert len(list(stream)) == 3
        with pytest.raises(CancelledError):
            list(waiting)


class TestClosing:
    def test_what_was_taken_is_finished(self, pool_of: Make) -> None:
        worker = FakeWorker()
        pool = pool_of(worker)
        with pool:
            futures = [pool.submit(request(str(i))) for i in range(20)]
        assert [text_of(future.result(0)) for future in futures] == [str(i) for i in range(20)]
        assert worker.stops >= 1
        with pytest.raises(RuntimeError, match="this pool is closed"):
            pool.submit(request("late"))

    def test_an_error_in_the_block_cancels(self, pool_of: Make) -> None:
        gate = Gate()
        pool = pool_of(FakeWorker(gate))
        futures = []

        def use() -> None:
            with pool:
                futures.extend(pool.submit(request(str(i))) for i in range(5))
                until(lambda: gate.inside == 1)
                threading.Timer(0.05, gate.open.set).start()
                raise KeyError

        with pytest.raises(KeyError):
            use()
        assert all(future.cancelled() for future in futures)

    def test_statistics_are_plain(self, pool_of: Make) -> None:
        pool = pool_of(FakeWorker(), FakeWorker())
        pool.submit(request("abc")).result(10)
        stats = json.loads(json.dumps(pool.stats()))
        assert stats["ready"] == len(stats["workers"]) == 2
        assert {row["state"] for row in stats["workers"]} <= {"ready", "busy"}
        assert stats["done"] == 1
        assert stats["audio_s"] == pytest.approx(3 / 22050)
