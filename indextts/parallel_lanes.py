"""Inside a worker pool: the queue of requests, and a lane (a thread and its worker) that takes from it whenever it is free.

A free lane takes the next request, so work goes to the least loaded worker by itself. It takes its share of what waits, at most a batch:
four requests and two free workers make two batches of two.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, Protocol

import numpy as np

from indextts.parallel_jobs import Outcome, Ticket, WorkerDiedError, rebuild_error

logger = logging.getLogger(__name__)

IDLE_CHECK_S = 5.0
MOST_STARTS = 3  # in a row that fail
MOST_DEATHS = 10  # in a row without a result in between
PAUSE_S = 1.0  # before the second start, twice that before the third
Watch = Callable[[dict[str, Any]], bool]  # gets a worker's status; True: give the work up


class Worker(Protocol):
    """What a lane drives: an engine in this process or behind Ray."""

    def start(self) -> dict[str, Any]:
        """Load and warm up, anew if called again. Errors: :class:`WorkerDiedError`, or whatever the engine's constructor raises."""

    def run(self, batch: Sequence[Ticket], watch: Watch) -> list[Outcome]:
        """Render. Errors: :class:`WorkerDiedError`."""

    def stream(self, ticket: Ticket, watch: Watch) -> Iterator[np.ndarray | Outcome]:
        """Render piece by piece. Errors: :class:`WorkerDiedError`."""

    def check(self) -> dict[str, Any]:
        """The status of an idle worker. Errors: :class:`WorkerDiedError`."""

    def stop(self) -> None:
        """End it, working or not."""


class TicketQueue:
    """Requests that wait, first come first served; bounded."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.changed = threading.Condition()
        self.waiting: deque[Ticket] = deque()
        self.free_lanes = 0
        self.accepting = True

    def put(self, ticket: Ticket, wait_s: float | None) -> bool:
        """Add a request, waiting for room at most ``wait_s`` seconds (None: as long as it takes). False if there is none."""
        with self.changed:
            self.changed.wait_for(lambda: not self.accepting or len(self.waiting) < self.most, wait_s)
            if not self.accepting:
                raise RuntimeError("this pool is closed; make a new WorkerPool")
            if len(self.waiting) >= self.most:
                return False
            self.waiting.append(ticket)
            self.changed.notify_all()
            return True

    def put_back(self, tickets: Sequence[Ticket]) -> None:
        """Return requests to the front, whatever the bound says: they were in once."""
        with self.changed:
            self.waiting.extendleft(reversed(tickets))
            self.changed.notify_all()

    def take(self, most: int, wait_s: float) -> list[Ticket] | None:
        """A share of what waits, [] if nothing came in time, None once the queue is closed and empty."""
        with self.changed:
            self.free_lanes += 1
            try:
                self.changed.wait_for(lambda: self.waiting or not self.accepting, wait_s)
                if not self.waiting:
                    return [] if self.accepting else None
                share = min(most, math.ceil(len(self.waiting) / self.free_lanes))
                batch = [self.waiting.popleft()]
                while len(batch) < share and self.waiting and not (_alone(batch[0]) or _alone(self.waiting[0])):
                    batch.append(self.waiting.popleft())
                self.changed.notify_all()
                return batch
            finally:
                self.free_lanes -= 1

    def close(self) -> None:
        """Accept no more; lanes end when what waits is done."""
        with self.changed:
            self.accepting = False
            self.changed.notify_all()

    def drain(self) -> list[Ticket]:
        """Take out all that waits."""
        with self.changed:
            tickets, self.waiting = list(self.waiting), deque()
            self.changed.notify_all()
        return tickets


def _alone(ticket: Ticket) -> bool:
    """Streams go piece by piece; a request that lost its worker may be the reason, and must not take others along again."""
    return ticket.pieces is not None or ticket.attempts > 0


class Lane:
    """A thread that keeps one worker alive and busy."""

    def __init__(
        self,
        name: str,
        worker: Worker,
        tickets: TicketQueue,
        *,
        batch_size: int | None,
        timeout_s: float | None,
        settle: Callable[[Ticket, Outcome], None],
        on_change: Callable[[], None],
    ) -> None:
        self.name, self.worker, self.tickets = name, worker, tickets
        self.batch_size, self.timeout_s, self.settle, self.on_change = batch_size, timeout_s, settle, on_change
        self.state = "starting"
        self.error: BaseException | None = None
        self.facts: dict[str, Any] = {}
        self.load: list[Ticket] = []
        self.done = self.failed = self.restarts = 0
        self.busy_s = self.audio_s = self.memory_mb = 0.0
        self._heard: set[str] = set()
        self._deaths = 0
        self._begun = 0.0
        self._thread = threading.Thread(target=self._serve, name=f"indextts-{name}", daemon=True)
        self._thread.start()

    def row(self) -> dict[str, Any]:
        """This worker as a row of the pool's statistics."""
        keys = ("pid", "node", "device", "architecture", "precision", "threads")
        return {
            "name": self.name,
            "state": self.state,
            **{key: self.facts.get(key) for key in keys},
            "load": len(self.load),
            "done": self.done,
            "failed": self.failed,
            "restarts": self.restarts,
            "busy_s": self.busy_s,
            "audio_s": self.audio_s,
            "rtf": self.busy_s / self.audio_s if self.audio_s else None,
            "memory_mb": self.memory_mb,
            "error": str(self.error) if self.error else None,
        }

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread; True once it has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ------------------------------------------------------------------------------------------------------- the thread

    def _serve(self) -> None:
        try:
            while self._bring_up() and self._work():
                self.restarts += 1
                self._change("restarting")
        except BaseException as error:  # a lane must never end in silence: its requests would wait for ever
            logger.exception("%s ended", self.name)
            self.error = error
        with contextlib.suppress(Exception):
            self.worker.stop()
        for ticket in self.load:
            ticket.fail(self.error or RuntimeError(f"{self.name} ended"))
        self.load = []
        self._change("failed" if self.error else "closed")

    def _bring_up(self) -> bool:
        """Start the worker, several times if its process dies. False: given up."""
        for start in range(1, MOST_STARTS + 1):
            try:
                self.facts = self.worker.start()
            except WorkerDiedError as error:
                self.error = error
                logger.warning("%s: start %d of %d failed: %s", self.name, start, MOST_STARTS, error)
            except Exception as error:  # a missing file or a wrong setting will be missing or wrong again
                self.error = error
                logger.warning("%s does not start: %s", self.name, error)
                return False
            else:
                self.error = None
                self._change("ready")
                return True
            if start < MOST_STARTS and self.tickets.accepting:
                time.sleep(PAUSE_S * start)
        return False

    def _work(self) -> bool:
        """Serve until the queue closes (False) or the worker dies (True: start another)."""
        size = self.batch_size or self.facts.get("batch_size") or 1
        while True:
            batch = self.tickets.take(size, IDLE_CHECK_S)
            if batch is None:
                return False
            try:
                if not batch:
                    self._note(self.worker.check())
                    continue
                self.load = [ticket for ticket in batch if self._begin(ticket)]
                if self.load:
                    self._change("busy")
                    self._run(self.load)
                    self._deaths = 0
            except WorkerDiedError as error:
                self._lost(error)
                self._deaths += 1
                if self._deaths >= MOST_DEATHS:
                    self.error = error
                    return False
                return True
            self.load = []
            if self.tickets.accepting:
                self._change("ready")

    @staticmethod
    def _begin(ticket: Ticket) -> bool:
        if ticket.attempts == 0 and not ticket.future.set_running_or_notify_cancel():
            if ticket.pieces is not None:
                ticket.pieces.put(CancelledError())
            return False
        if ticket.future.aborted.is_set():
            ticket.fail(CancelledError())
            return False
        return True

    def _run(self, batch: list[Ticket]) -> None:
        begin = self._begun = time.perf_counter()
        try:
            outcomes = [self._stream(batch[0])] if batch[0].pieces is not None else self.worker.run(batch, self._watch)
        finally:
            self.busy_s += time.perf_counter() - begin
        by_id = {outcome.id: outcome for outcome in outcomes}
        late = self.timeout_s is not None and time.perf_counter() - begin > self.timeout_s
        for ticket in batch:
            outcome = by_id[ticket.id]
            if late and outcome.error and outcome.error[0] == "CancelledError" and not ticket.future.aborted.is_set():
                outcome = Outcome(ticket.id, error=("TimeoutError", f"the request took longer than {self.timeout_s:g} s and was stopped"))
            for text in outcome.warnings:
                if text not in self._heard:  # as with warnings in this process: once
                    self._heard.add(text)
                    logger.warning("%s: %s", self.name, text)
            self.audio_s += outcome.audio_s
            self.done += outcome.error is None
            self.failed += outcome.error is not None
            self.settle(ticket, outcome)

    def _stream(self, ticket: Ticket) -> Outcome:
        """Hand pieces over as they come; after a retry, without those that were handed over before."""
        assert ticket.pieces is not None
        skip, rate = ticket.sent, self.facts.get("sample_rate", 22050)
        with contextlib.closing(self.worker.stream(ticket, self._watch)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                if isinstance(piece, Outcome):
                    return piece
                self.audio_s += len(piece) / rate
                fresh = piece[skip:]
                skip = max(0, skip - len(piece))
                if len(fresh):
                    ticket.sent += len(fresh)
                    ticket.pieces.put(fresh)
        raise WorkerDiedError(f"{self.name} ended a stream early")

    def _watch(self, status: dict[str, Any]) -> bool:
        """Pass progress on; True once nobody wants the batch any more, or it takes too long."""
        self._note(status)
        for ticket in self.load:
            if ticket.progress is not None and "progress" in status and not ticket.future.aborted.is_set():
                try:
                    ticket.progress(*status["progress"])
                except Exception as error:  # as with infer: an exception in it cancels the request
                    logger.info("%s: progress callback of request %d: %s", self.name, ticket.id, error)
                    ticket.future.aborted.set()
        late = self.timeout_s is not None and time.perf_counter() - self._begun > self.timeout_s
        return late or all(ticket.future.aborted.is_set() for ticket in self.load)

    def _note(self, status: dict[str, Any]) -> None:
        self.memory_mb = status.get("memory_mb", self.memory_mb)

    def _lost(self, error: WorkerDiedError) -> None:
        """The worker is gone: its requests go back to the front once, then fail."""
        logger.warning("%s was lost and will be replaced: %s", self.name, error)
        again = []
        for ticket in self.load:
            ticket.attempts += 1
            if ticket.future.done():
                continue
            if ticket.future.aborted.is_set():
                ticket.fail(CancelledError())
            elif ticket.attempts > 1:
                self.failed += 1
                ticket.fail(WorkerDiedError(f"two workers died on this request, so it is given up; the second said: {error}"))
            else:
                again.append(ticket)
        self.load = []
        self.tickets.put_back(again)
        with contextlib.suppress(Exception):
            self.worker.stop()

    def _change(self, state: str) -> None:
        self.state = state
        self.on_change()


def settle(ticket: Ticket, outcome: Outcome) -> None:
    """Give a request its result: written if it names a file, else ``(rate, samples (n, 1))``."""
    from indextts.audio import write_wav

    if ticket.future.aborted.is_set():
        ticket.fail(CancelledError())
    elif outcome.error is not None:
        ticket.fail(rebuild_error(outcome.error))
    elif ticket.pieces is not None:
        ticket.future.set_result(ticket.sent)
        ticket.pieces.put(None)
    elif ticket.output is None:
        ticket.future.set_result((outcome.rate, outcome.samples))
    else:
        try:
            assert outcome.samples is not None
            write_wav(ticket.output, outcome.samples.reshape(-1), outcome.rate)
        except (OSError, ValueError) as error:
            ticket.fail(error)
        else:
            ticket.future.set_result(ticket.output)
