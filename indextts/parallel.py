"""Many requests on one engine or many: :class:`WorkerPool`.

>>> with WorkerPool() as pool:                              # one engine in this process, nothing else needed  # doctest: +SKIP
...     for rate, samples in pool.map({"spk_audio_prompt": "me.wav", "text": line, "seed": 1} for line in lines):
...         play(samples, rate)

``WorkerPool("auto")`` makes one engine per GPU of this machine, or of the Ray cluster at ``address``; ``WorkerPool(4)`` makes four
workers whatever there is. Both need the extra: ``pip install 'indextts2-lab[cluster]'``. CPU workers are tested; several GPUs and
several machines are untried.

With several requests in a batch a sample may differ by a 16-bit step from the same request alone, because matrix products of other sizes
round differently; ``batch_size=1`` (the default on the CPU) gives the same bits whatever the workers do.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np

from indextts.parallel_jobs import ClipBook, PoolFullError, PoolFuture, Ticket, WorkerDiedError, make_ticket
from indextts.parallel_lanes import Lane, TicketQueue, Worker, settle
from indextts.parallel_local import LocalWorker

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

__all__ = ["PoolFullError", "PoolFuture", "WorkerDiedError", "WorkerPool"]
logger = logging.getLogger(__name__)


class WorkerPool:
    """Renders requests (dicts of :meth:`indextts.IndexTTS2.infer`'s arguments) on one or several engines.

    ``num_workers``: None for one engine in this process; a number, or ``"auto"`` for one per GPU (one in all without GPUs), for processes
    through Ray. ``engine``: a ready engine (in this process only; it stays open), or a function without arguments that makes one; without
    it ``IndexTTS2(**engine_options)``. ``address``: of a running Ray cluster (``"auto"``, ``"ray://host:10001"``), whose nodes have this
    package and the weights. ``workers_per_gpu``: engines that share a GPU; by default as many as needed, if memory allows.
    ``threads``: of a CPU worker. ``batch_size``: requests a worker renders together (default 4 on a GPU, 1 on the CPU). ``max_queue``:
    requests that may wait. ``timeout_s``: for one batch. ``warm_up``: render a little before a worker counts as ready. ``wait``: return
    when every worker is ready or has failed. ``ray_options`` go to ``ray.init``.

    A worker that dies is replaced and its requests run once more, each alone; a request that loses two workers fails with
    :class:`WorkerDiedError`. Errors: those of the engine's constructor if no worker starts; ``ImportError`` without Ray.
    """

    def __init__(
        self,
        num_workers: int | str | None = None,
        *,
        engine: IndexTTS2 | Callable[[], IndexTTS2] | None = None,
        address: str | None = None,
        workers_per_gpu: int | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
        max_queue: int = 256,
        timeout_s: float | None = None,
        warm_up: bool = True,
        wait: bool = True,
        ray_options: Mapping[str, Any] | None = None,
        **engine_options: Any,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("max_queue", max_queue),
            ("threads", threads),
            ("workers_per_gpu", workers_per_gpu),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s!r}")
        if engine is not None and engine_options:
            raise TypeError(f"give an engine or the options of one, not both: {', '.join(sorted(engine_options))}")
        self.max_queue = max_queue
        self._clips = ClipBook()
        self._numbers = itertools.count()
        self._tickets = TicketQueue(max_queue)
        self._changed = threading.Condition()
        self._began = time.time()
        self._rejected = self._retired = 0
        workers, self._shut_down = self._make_workers(
            num_workers, engine, engine_options, address, workers_per_gpu, threads, warm_up, dict(ray_options or {})
        )
        self._lanes = [
            Lane(
                f"worker-{i}",
                worker,
                self._tickets,
                batch_size=batch_size,
                timeout_s=timeout_s,
                settle=settle,
                on_change=self._on_change,
            )
            for i, worker in enumerate(workers)
        ]
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close(cancel=True)
                raise

    @staticmethod
    def _make_workers(
        num_workers: int | str | None,
        engine: Any,
        engine_options: dict[str, Any],
        address: str | None,
        workers_per_gpu: int | None,
        threads: int | None,
        warm_up: bool,
        ray_options: dict[str, Any],
    ) -> tuple[list[Worker], Callable[[], None]]:
        if num_workers is None and address is None:
            if workers_per_gpu is not None or threads is not None or ray_options:
                raise ValueError("workers_per_gpu, threads and ray_options are for worker processes: give num_workers as well")
            return [LocalWorker(engine, engine_options, warm_up)], lambda: None
        if engine is not None and not callable(engine):
            raise TypeError("worker processes make engines of their own: give a function that makes one, not an engine")
        from indextts.parallel_ray import RayCluster

        cluster = RayCluster(address, num_workers, threads, workers_per_gpu, ray_options)
        return cluster.workers(engine, engine_options, warm_up), cluster.close

    # ---------------------------------------------------------------------------------------------------------- requests

    def submit(self, request: Mapping[str, Any], *, wait_s: float | None = 0.0) -> PoolFuture:
        """Queue one request; the future's result is what ``infer`` would return. ``future.cancel()`` works at any time.

        ``wait_s``: how long to wait for room in the queue; None waits as long as it takes. Errors: ``TypeError``, ``ValueError``,
        ``FileNotFoundError`` for input that can be seen to be bad without an engine (the rest comes through the future);
        :class:`PoolFullError`; ``RuntimeError`` for a closed pool.
        """
        ticket = make_ticket(next(self._numbers), request, self._clips)
        self._enqueue(ticket, wait_s)
        return ticket.future

    def map(self, requests: Iterable[Mapping[str, Any]], *, on_error: str = "raise", ahead: int | None = None) -> Iterator[Any]:
        """Results in the order of ``requests``, as they come. Requests are taken from the iterable only as there is room for them.

        ``on_error``: ``"raise"`` at the place of the failed request, which cancels the rest, or ``"return"`` the exception in its place.
        ``ahead``: results that may wait for the caller (default: four batches a worker, at least 8). Closing the iterator cancels the
        rest.
        """
        if isinstance(requests, Mapping):
            raise TypeError("requests must be a series of dicts of infer's arguments, got one dict")
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error must be 'raise' or 'return', got {on_error!r}")
        most = ahead if ahead is not None else max(8, 16 * len(self._lanes))
        return self._results(iter(requests), on_error == "return", max(1, min(most, self.max_queue)))

    def _results(self, requests: Iterator[Mapping[str, Any]], give_errors: bool, most: int) -> Iterator[Any]:
        pending: deque[PoolFuture | Exception] = deque()
        try:
            while True:
                for request in itertools.islice(requests, most - len(pending)):
                    try:
                        pending.append(self.submit(request, wait_s=None))
                    except (TypeError, ValueError, OSError) as error:
                        pending.append(error)
                if not pending:
                    return
                first = pending.popleft()
                try:
                    if isinstance(first, Exception):
                        raise first
                    result = first.result()
                except (Exception, CancelledError) as error:
                    if not give_errors:
                        raise
                    result = error
                yield result
        finally:
            for future in pending:
                if isinstance(future, PoolFuture):
                    future.cancel()

    def stream(self, request: Mapping[str, Any], *, wait_s: float | None = 0.0) -> PieceStream:
        """The sound of one request in pieces, int16 (n,) at the engine's rate, each as soon as it is made; closing cancels.

        Errors: as :meth:`submit`, at once; those of the engine with the first piece.
        """
        ticket = make_ticket(next(self._numbers), {"seed": secrets.randbits(32), **request}, self._clips)
        ticket.pieces = queue.SimpleQueue()
        self._enqueue(ticket, wait_s)
        return PieceStream(ticket)

    def _enqueue(self, ticket: Ticket, wait_s: float | None) -> None:
        if not any(lane.state not in ("failed", "closed") for lane in self._lanes):
            raise self._why_none()
        if not self._tickets.put(ticket, wait_s):
            self._rejected += 1
            raise PoolFullError(f"{self.max_queue} requests wait already (max_queue); try again later, or use map, which waits by itself")
        self._fail_if_abandoned()

    # ------------------------------------------------------------------------------------------------------------- state

    @property
    def workers(self) -> int:
        """How many workers the pool keeps."""
        return len(self._lanes)

    @property
    def sample_rate(self) -> int:
        """Hz of what the workers make."""
        return next((lane.facts["sample_rate"] for lane in self._lanes if lane.facts), 22050)

    def wait_ready(self, timeout_s: float | None = None) -> int:
        """Wait until every worker is ready or has failed; how many are ready. Errors: the first worker's, if none is."""
        with self._changed:
            self._changed.wait_for(lambda: all(lane.state not in ("starting",) for lane in self._lanes), timeout_s)
        ready = sum(lane.state in ("ready", "busy", "restarting") for lane in self._lanes)
        if not ready and all(lane.state == "failed" for lane in self._lanes):
            raise self._why_none()
        return ready

    def stats(self) -> dict[str, Any]:
        """The pool in figures, JSON-safe: ``workers`` (a list of rows), requests ``queued``, ``done``, ``failed``, ``rejected``, worker
        ``restarts``, ``audio_s`` made, ``elapsed_s`` since the pool was made, and ``audio_per_s`` of all workers while they were busy.
        """
        rows = [lane.row() for lane in self._lanes]
        return {
            "workers": rows,
            "ready": sum(row["state"] in ("ready", "busy") for row in rows),
            "queued": len(self._tickets.waiting),
            "max_queue": self.max_queue,
            "running": sum(row["load"] for row in rows),
            "rejected": self._rejected,
            **{name: sum(row[name] for row in rows) for name in ("done", "failed", "restarts", "audio_s", "busy_s")},
            "audio_per_s": sum(row["audio_s"] / row["busy_s"] for row in rows if row["busy_s"]),
            "elapsed_s": time.time() - self._began,
        }

    def close(self, *, cancel: bool = False, timeout_s: float | None = None) -> None:
        """Finish what was taken (or cancel it), then end the workers. ``timeout_s``: after that, cancel."""
        self._tickets.close()
        if cancel:
            self._cancel_all()
        for lane in self._lanes:
            if not lane.join(timeout_s):
                self._cancel_all()
                lane.join(30)
        self._fail_if_abandoned()
        self._shut_down()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    def _cancel_all(self) -> None:
        for ticket in self._tickets.drain():
            if ticket.attempts or not ticket.future.cancel():
                ticket.fail(CancelledError())
            elif ticket.pieces is not None:
                ticket.pieces.put(CancelledError())
        for lane in self._lanes:
            for ticket in list(lane.load):
                ticket.future.cancel()

    def _on_change(self) -> None:
        with self._changed:
            self._changed.notify_all()
        if hasattr(self, "_lanes"):
            self._fail_if_abandoned()

    def _fail_if_abandoned(self) -> None:
        """Without any worker left nobody would ever answer what waits."""
        if all(lane.state in ("failed", "closed") for lane in self._lanes):
            for ticket in self._tickets.drain():
                if ticket.attempts or ticket.future.set_running_or_notify_cancel():
                    ticket.fail(self._why_none())

    def _why_none(self) -> Exception:
        error = next((lane.error for lane in self._lanes if lane.error is not None), None)
        if error is None:
            return RuntimeError("this pool is closed; make a new WorkerPool")
        if isinstance(error, (OSError, ValueError, TypeError, ImportError)):
            return error
        return WorkerDiedError(f"no worker is left; the last error was: {error}")


class PieceStream:
    """Pieces of one streamed request, int16 (n,). Iterate over it; :meth:`close` gives the rest up."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._ended = False
        self.future = ticket.future
        self.deadline: float | None = None
        """When, on the clock ``time.monotonic``, to give up waiting with a ``TimeoutError``."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if self._ended:
            raise StopIteration
        assert self._ticket.pieces is not None
        try:
            piece = self._ticket.pieces.get(timeout=None if self.deadline is None else max(0.0, self.deadline - time.monotonic()))
        except queue.Empty:
            self.close()
            raise TimeoutError("the sound did not come in time") from None
        if isinstance(piece, np.ndarray):
            return piece
        self._ended = True
        if isinstance(piece, BaseException):
            raise piece
        raise StopIteration

    def close(self) -> None:
        """Cancel what is not made yet."""
        if not self._ticket.future.done():
            self._ticket.future.cancel()
