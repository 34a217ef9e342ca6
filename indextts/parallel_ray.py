"""Workers of a pool as Ray actors, on this machine or on a cluster.

Every worker is a process with an engine of its own, set up for the GPU it finds. Weights are read from files that are mapped into memory,
so the workers of a node share the pages of what they do not convert; reference clips go once per voice into Ray's object store, which the
workers of a node share too. A cluster's nodes need this package in the same version and the weights under the same path.

Tried with CPU workers on one machine. GPU shares, several machines and ``address`` of a cluster elsewhere are untried.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indextts.parallel_host import EngineBrokenError, EngineHost
from indextts.parallel_jobs import MOST_CLIPS, Clip, Item, Outcome, Ticket, WorkerDiedError
from indextts.parallel_lanes import Watch, Worker
from indextts.parallel_local import clips_of

INSTALL = "pip install 'indextts2-lab[cluster]'"
VRAM_PER_ENGINE_MB = 9000.0  # of the release at its peak, accelerated; measured, see README
OBJECT_STORE_MB = 128  # requests and results are small
POLL_S = 0.2
STATUS_EVERY_S = 1.0
ANSWER_S = 60.0  # a process that does not even tell its status for so long hangs
GRACE_S = 15.0  # from asking a batch to stop to ending its process


@dataclass(frozen=True)
class Share:
    """What one worker gets: CPUs and a part of a GPU, in Ray's units."""

    num_cpus: float
    num_gpus: float
    threads: int | None


def plan_shares(
    num_workers: int | str | None,
    gpus: int,
    cpus: int,
    *,
    workers_per_gpu: int | None = None,
    threads: int | None = None,
    free_mb: Sequence[float] | None = None,
    need_mb: float = VRAM_PER_ENGINE_MB,
) -> list[Share]:
    """Divide ``gpus`` and ``cpus`` among workers. ``free_mb``: free memory of each GPU, where it is known.

    ``"auto"`` or None: ``workers_per_gpu`` (default 1) workers a GPU, or one CPU worker. A number above that of the GPUs makes workers
    share them. CPU workers get ``threads`` threads, by default an equal part of the CPUs. Errors: ``ValueError`` if it does not fit.
    """
    if num_workers is None or num_workers == "auto":
        count = gpus * (workers_per_gpu or 1) or 1
    elif isinstance(num_workers, int) and not isinstance(num_workers, bool) and num_workers >= 1:
        count = num_workers
    else:
        raise ValueError(f"num_workers must be a whole number >= 1, 'auto' or None, got {num_workers!r}")
    if not gpus:
        if workers_per_gpu is not None:
            raise ValueError("workers_per_gpu is given, but there is no GPU")
        each = threads or max(1, cpus // count)
        return [Share(num_cpus=each, num_gpus=0, threads=each)] * count
    per_gpu = workers_per_gpu or -(-count // gpus)
    if count > gpus * per_gpu:
        raise ValueError(f"{count} workers do not fit on {gpus} GPUs with {per_gpu} on each")
    if free_mb and per_gpu * need_mb > min(free_mb):
        fits = max(int(min(free_mb) // need_mb), 0)
        raise ValueError(
            f"{per_gpu} engines on one GPU need {per_gpu * need_mb:.0f} MB, but {min(free_mb):.0f} MB are free; {fits} fit: "
            "ask for fewer workers or free memory"
        )
    # Rounded down: Ray counts GPUs in units of 1e-4, and three thirds must not exceed one.
    return [Share(num_cpus=1, num_gpus=1.0 if per_gpu == 1 else int(1e4 / per_gpu) / 1e4, threads=threads)] * count


class RayCluster:
    """A connection to Ray: one that is there already, a cluster at ``address``, or one started for this pool alone."""

    def __init__(
        self, address: str | None, num_workers: int | str | None, threads: int | None, workers_per_gpu: int | None, options: dict[str, Any]
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise ImportError(f"several workers need Ray: {INSTALL}") from error
        self.ray = ray
        free_mb = None
        self._owned = not ray.is_initialized()
        local = address is None and not os.environ.get("RAY_ADDRESS")  # Ray's own way to name a cluster
        if self._owned:
            if local:
                wanted = num_workers if isinstance(num_workers, int) else 1
                options = {
                    "num_cpus": max(os.cpu_count() or 1, wanted * (threads or 1)),
                    "object_store_memory": OBJECT_STORE_MB * 2**20,
                    "include_dashboard": False,
                    **options,
                }
            # "local", since without an address Ray would join whatever cluster this machine happens to run.
            self._init("local" if local else address, {"configure_logging": False, "log_to_driver": False, **options})
        try:
            there = ray.cluster_resources()
            gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 1))
            if local and gpus:
                free_mb = _free_mb()
            self.shares = plan_shares(num_workers, gpus, cpus, workers_per_gpu=workers_per_gpu, threads=threads, free_mb=free_mb)
            needed = sum(share.num_cpus for share in self.shares)
            if needed > cpus:
                raise ValueError(f"{len(self.shares)} workers need {needed:g} CPUs, but Ray has {cpus}; ask for fewer, or fewer threads")
        except BaseException:
            self.close()
            raise
        self._clips: OrderedDict[str, Any] = OrderedDict()

    def _init(self, address: str | None, options: dict[str, Any]) -> None:
        for attempt in (1, 2):
            try:
                self.ray.init(address=address, **options)
            except ConnectionError as error:
                place = address or os.environ.get("RAY_ADDRESS")
                raise ConnectionError(
                    f"no Ray cluster lets us in at {place!r}; start one with `ray start --head`. One with token authentication wants its "
                    f"token here and RAY_AUTH_MODE=token, or, on its head node, the address 'auto': {error}"
                ) from error
            except (ValueError, TypeError):
                raise
            except Exception as error:  # a busy machine may need longer than Ray waits
                self.ray.shutdown()
                if attempt == 2:
                    raise RuntimeError(f"Ray did not start: {error}") from error
            else:
                return

    def workers(self, factory: Callable[[], Any] | None, options: dict[str, Any], warm_up: bool) -> list[Worker]:
        """One worker a share, not started yet."""
        return [RayWorker(self, share, factory, options, warm_up) for share in self.shares]

    def reference(self, clip: Clip) -> Any:
        """The clip in Ray's object store, put there once."""
        if clip.key not in self._clips:
            self._clips[clip.key] = self.ray.put(clip.samples)
            while len(self._clips) > MOST_CLIPS:
                self._clips.popitem(last=False)
        return self._clips[clip.key]

    def close(self) -> None:
        """Shut Ray down if this pool started it."""
        if self._owned:
            self.ray.shutdown()


def _free_mb() -> list[float]:
    from indextts.utils.gpu_config import GPUConfig
    from indextts.utils.resource_monitor import get_vram_summary

    summaries = [get_vram_summary(gpu["index"]) for gpu in GPUConfig.list_available_gpus()]
    return [total - used for used, total, _ in summaries]


def make_engine(factory: Callable[[], Any] | None, options: dict[str, Any], on_gpu: bool) -> Any:
    """Called in the worker: an engine on the GPU that Ray gave it, or on the CPU."""
    if factory is not None:
        return factory()
    from indextts.pipeline import IndexTTS2

    return IndexTTS2(**{"device": "cuda:0" if on_gpu else "cpu", **options})


class RayWorker:
    """One actor, made anew by every :meth:`start`."""

    def __init__(
        self, cluster: RayCluster, share: Share, factory: Callable[[], Any] | None, options: dict[str, Any], warm_up: bool
    ) -> None:
        self._cluster, self._share, self._warm_up = cluster, share, warm_up
        self._make = functools.partial(make_engine, factory, options, share.num_gpus > 0)
        self._actor: Any = None

    def start(self) -> dict[str, Any]:
        """Start a process, load, warm up."""
        ray, share = self._cluster.ray, self._share
        self.stop()
        actor = ray.remote(num_cpus=share.num_cpus, num_gpus=share.num_gpus, max_restarts=0, concurrency_groups={"control": 2})(RayHost)
        if share.threads:
            actor = actor.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": str(share.threads)}})
        self._actor = actor.remote(self._make, share.threads, self._warm_up)
        facts: dict[str, Any] = self._wait(self._actor.start.remote(), None)
        from indextts import __version__

        if facts["version"] != __version__:
            raise ValueError(f"node {facts['node']} has indextts {facts['version']}, this process {__version__}; install the same on both")
        return facts

    def run(self, batch: Sequence[Ticket], watch: Watch) -> list[Outcome]:
        """Render a batch there."""
        outcomes: list[Outcome] = self._wait(self._actor.run.remote(*self._arguments(batch)), watch)
        return outcomes

    def stream(self, ticket: Ticket, watch: Watch) -> Iterator[np.ndarray | Outcome]:
        """Render piece by piece there."""
        items, *rest = self._arguments([ticket])
        pieces = self._actor.stream.options(num_returns="streaming").remote(items[0], *rest)
        while True:
            piece = self._wait_next(pieces, watch)
            if piece is None:
                return
            yield piece

    def check(self) -> dict[str, Any]:
        """Ask for the status of an idle worker."""
        return self._status()

    def stop(self) -> None:
        """End the process."""
        if self._actor is not None:
            with contextlib.suppress(Exception):
                self._cluster.ray.kill(self._actor)
            self._actor = None

    def _arguments(self, batch: Sequence[Ticket]) -> tuple[Any, ...]:
        clips = clips_of(batch)
        items: list[Item] = [ticket.item for ticket in batch]
        return items, [clip.key for clip in clips], [clip.rate for clip in clips], *(self._cluster.reference(clip) for clip in clips)

    def _wait(self, reference: Any, watch: Watch | None) -> Any:
        """The result of a call, watching the worker meanwhile."""
        ray = self._cluster.ray
        watcher = _Watcher(self, watch)
        with self._deaths():
            while not ray.wait([reference], timeout=POLL_S, fetch_local=True)[0]:
                watcher.look()
            return ray.get(reference)

    def _wait_next(self, pieces: Any, watch: Watch) -> Any:
        """The next piece of a streaming call, or None at its end."""
        ray = self._cluster.ray
        watcher = _Watcher(self, watch)
        with self._deaths():
            while not ray.wait([pieces], timeout=POLL_S, fetch_local=False)[0]:
                watcher.look()
            try:
                return ray.get(next(pieces))
            except StopIteration:
                return None

    def _status(self) -> dict[str, Any]:
        ray = self._cluster.ray
        with self._deaths():
            try:
                status: dict[str, Any] = ray.get(self._actor.status.remote(), timeout=ANSWER_S)
            except ray.exceptions.GetTimeoutError:
                self.stop()
                raise WorkerDiedError(f"the worker did not answer for {ANSWER_S:g} s and was ended") from None
            return status

    @contextlib.contextmanager
    def _deaths(self) -> Iterator[None]:
        """Ray's many ways to say that a process is gone, as one; errors of the call itself as what they are."""
        ray = self._cluster.ray
        try:
            yield
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineBrokenError):
                raise WorkerDiedError(str(cause)) from None
            if isinstance(cause, (OSError, ValueError, TypeError, ImportError)):
                raise cause from None
            raise RuntimeError(f"the worker failed: {type(cause).__name__}: {cause}") from None
        except ray.exceptions.RayError as error:
            raise WorkerDiedError(str(error).strip().partition("\n")[0] or type(error).__name__) from error


class _Watcher:
    """Looks at a working process now and then: passes its status on, asks it to stop when told to, ends it if it does not."""

    def __init__(self, worker: RayWorker, watch: Watch | None) -> None:
        self._worker, self._watch = worker, watch
        self._next = time.monotonic() + STATUS_EVERY_S
        self._stop_by: float | None = None

    def look(self) -> None:
        now = time.monotonic()
        if self._watch is None:
            return
        status: dict[str, Any] = {}
        if now >= self._next:
            self._next = now + STATUS_EVERY_S
            status = self._worker._status()
        if self._watch(status):
            self._stop_by = self._stop_by or now + GRACE_S
            self._worker._actor.cancel.remote()
            if now > self._stop_by:
                self._worker.stop()
                raise WorkerDiedError(f"the worker did not stop within {GRACE_S:g} s and was ended")


class RayHost(EngineHost):
    """The actor. ``status`` and ``cancel`` have threads of their own, so that they answer while ``run`` works."""

    def __init__(self, make: Callable[[], Any], threads: int | None, warm_up: bool) -> None:
        super().__init__(make, threads, warm_up, own_process=True)

    def status(self) -> dict[str, Any]:
        """As of any worker."""
        return super().status()

    def cancel(self) -> None:
        """As with any worker."""
        super().cancel()

    status.__ray_concurrency_group__ = "control"  # type: ignore[attr-defined]  # what ray.method sets; Ray is not imported here
    cancel.__ray_concurrency_group__ = "control"  # type: ignore[attr-defined]
