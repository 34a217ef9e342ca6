"""Workers without engines: what they render says which request it was, and they die, hang or fail on command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from indextts.bench import made_up_clip
from indextts.parallel import WorkerPool
from indextts.parallel_jobs import Outcome, Ticket, WorkerDiedError
from indextts.parallel_lanes import Watch

VOICE = made_up_clip(0.5)
RATE = 22050


def request(text: str, **more: Any) -> dict[str, Any]:
    return {"spk_audio_prompt": VOICE, "text": text, **more}


def sound_of(text: str) -> np.ndarray:
    """A few samples that only this text has."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int16).reshape(-1, 1)


def text_of(result: tuple[int, np.ndarray]) -> str:
    rate, samples = result
    assert rate == RATE
    assert samples.dtype == np.int16
    return bytes(samples.reshape(-1).astype(np.uint8)).decode()


class FakeWorker:
    """``before(worker, batch)`` runs inside every batch and may raise; ``on_start(worker)`` inside every start."""

    def __init__(self, before: Callable[[FakeWorker, Sequence[Ticket]], None] | None = None, on_start: Any = None, size: int = 1) -> None:
        self.before, self.on_start, self.size = before, on_start, size
        self.starts = self.stops = 0
        self.batches: list[list[str]] = []
        self.broken = threading.Event()

    def start(self) -> dict[str, Any]:
        self.starts += 1
        self.broken.clear()
        if self.on_start is not None:
            self.on_start(self)
        return {"pid": 1000 + self.starts, "device": "cpu", "batch_size": self.size, "sample_rate": RATE, "threads": 1}

    def run(self, batch: Sequence[Ticket], watch: Watch) -> list[Outcome]:
        texts = [ticket.arguments["text"] for ticket in batch]
        self.batches.append(texts)
        if self.before is not None:
            self.before(self, batch)
        if watch({"progress": (0.5, "half"), "memory_mb": 12.0}):
            return [Outcome(ticket.id, error=("CancelledError", "cancelled")) for ticket in batch]
        return [Outcome(ticket.id, RATE, sound_of(text)) for ticket, text in zip(batch, texts, strict=True)]

    def stream(self, ticket: Ticket, watch: Watch) -> Iterator[np.ndarray | Outcome]:
        for character in ticket.arguments["text"]:
            if self.before is not None:
                self.before(self, [ticket])
            yield sound_of(character).reshape(-1)
        yield Outcome(ticket.id, RATE)

    def check(self) -> dict[str, Any]:
        if self.broken.is_set():
            raise WorkerDiedError("gone while idle")
        return {}

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WorkerPool]]:
    """Make a pool of fake workers; closed at the end."""
    made: list[WorkerPool] = []

    def make(*workers: FakeWorker, **options: Any) -> WorkerPool:
        monkeypatch.setattr(WorkerPool, "_make_workers", staticmethod(lambda *_: (list(workers), lambda: None)))
        monkeypatch.setattr("indextts.parallel_lanes.PAUSE_S", 0.01)
        made.append(WorkerPool(**options))
        return made[-1]

    yield make
    for pool in made:
        pool.close(cancel=True)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
