"""If this fails, a pool renders something else than ``infer`` does, or a faulty request or device takes others along."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.engine.worker import Cancelled
from indextts.parallel import WorkerDiedError, WorkerPool
from indextts.parallel_host import EngineHost
from indextts.parallel_jobs import describe_error, rebuild_error
from tests.parallel.fakes import request

SHORT: dict[str, Any] = {"max_mel_tokens": 10, "diffusion_steps": 1, "num_beams": 1}
REQUESTS = [{"spk_audio_prompt": made_up_clip(1.0), "text": f"Number {i}.", "seed": i, **SHORT} for i in range(3)]


@pytest.fixture(autouse=True)
def _cut_off() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


def same(a: Any, b: Any) -> bool:
    return a[0] == b[0] and np.array_equal(a[1], b[1])


def test_a_pool_gives_what_infer_gives(engine: IndexTTS2, tmp_path: Path) -> None:
    expected = [engine.infer(**given) for given in REQUESTS]
    with WorkerPool(engine=engine, warm_up=False) as pool:
        assert all(map(same, pool.map(REQUESTS), expected))
        streamed = np.concatenate(list(pool.stream(REQUESTS[0])))
        assert np.array_equal(streamed, expected[0][1].reshape(-1))
        pool.submit({**REQUESTS[1], "output_path": tmp_path / "a.wav"}).result()
        engine.infer(**REQUESTS[1], output_path=tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert same(engine.infer(**REQUESTS[0]), expected[0])  # a ready engine stays open


def test_a_made_engine_is_warm_before_use_and_closed_after(engine: IndexTTS2) -> None:
    calls = []

    class Engine:
        """Lends the module's engine out."""

        def __getattr__(self, name: str) -> Any:
            if name in ("infer", "infer_batch", "close"):
                calls.append(name)
                return (lambda: None) if name == "close" else getattr(engine, name)
            return getattr(engine, name)

    with WorkerPool(engine=Engine) as pool:
        assert calls == ["infer"]
        assert pool.sample_rate == 22050
        pool.submit(REQUESTS[0]).result()
    assert calls == ["infer", "infer_batch", "close"]


def test_engine_errors_arrive_as_themselves(engine: IndexTTS2) -> None:
    with WorkerPool(engine=engine, warm_up=False) as pool:
        with pytest.raises(TypeError, match="nonsense"):
            pool.submit({**REQUESTS[0], "nonsense": 1}).result()
        with pytest.raises(ValueError, match="num_beams"):
            pool.submit({**REQUESTS[0], "num_beams": 0}).result()
        assert pool.stats()["failed"] == 2


def test_weights_that_are_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        WorkerPool(model_dir="/nowhere")


def test_running_work_is_cancelled(engine: IndexTTS2) -> None:
    with WorkerPool(engine=engine, warm_up=False) as pool:
        future: Any = None

        def stop(fraction: float, _: str) -> None:
            if fraction > 0.1:
                future.cancel()

        gate = pool.submit({**REQUESTS[0], "text": "One two three four five."})
        future = pool.submit({**REQUESTS[0], "text": "One. " * 50, "max_mel_tokens": 60, "progress": stop})
        gate.result()
        with pytest.raises(CancelledError):
            future.result(60)


class FaultyEngine:
    """Fails with ``faults[text]``, and in a batch of several with ``together``."""

    device, precision, sample_rate = torch.device("cpu"), "fp32", 22050

    def __init__(self, faults: dict[str, BaseException], together: BaseException | None = None) -> None:
        self.faults, self.together, self.cleared, self.calls = faults, together, 0, 0

    def infer_batch(self, requests: list[dict[str, Any]], progress: Any) -> list[Any]:
        self.calls += 1
        if self.together is not None and len(requests) > 1:
            raise self.together
        for given in requests:
            if given["text"] in self.faults:
                raise self.faults[given["text"]]
        return [(22050, np.full((len(given["text"]), 1), 7, np.int16)) for given in requests]

    def infer(self, text: str, **_: Any) -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 5)
        if text in self.faults:
            raise self.faults[text]

    def clear_caches(self) -> None:
        self.cleared += 1

    def close(self) -> None:
        pass


def results(engine: FaultyEngine, *texts: str, **options: Any) -> tuple[list[Any], dict[str, Any]]:
    with WorkerPool(engine=lambda: engine, warm_up=False, **options) as pool:  # type: ignore[arg-type, return-value]
        return list(pool.map(map(request, texts), on_error="return")), pool.stats()


@pytest.mark.parametrize("size", [1, 4])
def test_one_faulty_request_of_a_batch_leaves_the_others_alone(size: int) -> None:
    got, stats = results(FaultyEngine({"bad": ValueError("because")}), "a", "bad", "ccc", "dd", batch_size=size)
    assert [len(result[1]) for result in got[:1] + got[2:]] == [1, 3, 2]
    assert isinstance(got[1], ValueError)
    assert str(got[1]) == "because"
    assert (stats["done"], stats["failed"], stats["restarts"]) == (3, 1, 0)


def test_a_batch_that_is_too_large_for_the_memory_goes_one_by_one() -> None:
    engine = FaultyEngine({}, together=torch.OutOfMemoryError("CUDA out of memory"))
    host = EngineHost(lambda: engine, warm_up=False)  # type: ignore[arg-type, return-value]
    host.start()
    from indextts.parallel_jobs import Item

    outcomes = host.run([Item(i, {"text": "a" * (i + 1)}, {}) for i in range(3)], [], [])
    assert [len(outcome.samples) for outcome in outcomes if outcome.samples is not None] == [1, 2, 3]
    assert engine.cleared == 1


def test_a_request_too_large_for_the_memory_fails_alone_and_the_worker_stays() -> None:
    got, stats = results(FaultyEngine({"huge": torch.OutOfMemoryError("CUDA out of memory")}), "a", "huge", "b")
    assert isinstance(got[1], RuntimeError)
    assert "out of memory" in str(got[1])
    assert stats["restarts"] == 0


def test_a_lost_device_replaces_the_worker_and_fails_only_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indextts.parallel_lanes.PAUSE_S", 0.01)
    got, stats = results(FaultyEngine({"bad": RuntimeError("CUDA error: an illegal memory access was encountered\nmore")}), "a", "bad", "b")
    assert isinstance(got[1], WorkerDiedError)
    assert "illegal memory access" in str(got[1])
    assert [len(got[0][1]), len(got[2][1])] == [1, 1]
    assert stats["restarts"] == 2


def test_a_stream_that_fails_says_so_after_what_it_had() -> None:
    engine = FaultyEngine({"bad": ValueError("because")})
    with WorkerPool(engine=lambda: engine, warm_up=False) as pool:  # type: ignore[arg-type, return-value]
        stream = pool.stream(request("bad"))
        assert len(next(stream)) == 5
        with pytest.raises(ValueError, match="because"):
            next(stream)


class OddError(Exception):
    """Takes two arguments, so it cannot be unpickled from its text."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("x"), ValueError, "x"),
        (FileNotFoundError("x"), FileNotFoundError, "x"),
        (TimeoutError("x"), TimeoutError, "x"),
        (Cancelled("x"), CancelledError, "cancelled"),
        (OddError(1, 2), RuntimeError, "OddError: 1 and 2"),
        (RuntimeError(), RuntimeError, "RuntimeError"),
    ],
)
def test_errors_survive_the_way_between_processes(error: Exception, kind: type[Exception], text: str) -> None:
    back = rebuild_error(pickle.loads(pickle.dumps(describe_error(error))))
    assert type(back) is kind
    assert str(back) == text
