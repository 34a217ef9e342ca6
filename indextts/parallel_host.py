"""The engine's side of a worker pool: one engine, warmed up, that renders batches and says how it is.

The same class runs in this process and, wrapped as a Ray actor, in any other.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from indextts.parallel_jobs import Item, Outcome, describe_error

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

Factory = Callable[[], "IndexTTS2"]
WARMUP_TEXT, WARMUP_CODES = "Good morning.", 16
ACCELERATOR_BATCH, CPU_BATCH = 4, 1


class EngineBrokenError(RuntimeError):
    """The engine's device no longer works; only a new process can go on."""


class EngineHost:
    """One engine and its state, as a pool sees them. ``start`` first; ``status`` and ``cancel`` may be called at any time."""

    def __init__(self, make_engine: Factory, threads: int | None = None, warm_up: bool = True, own_process: bool = False) -> None:
        self._make_engine, self._threads, self._warm_up, self._own_process = make_engine, threads, warm_up, own_process
        self._engine: IndexTTS2 | None = None
        self._progress = (0.0, "")
        self._cancelled = False

    def start(self) -> dict[str, Any]:
        """Load the engine, with the settings that suit this process's GPU, and run it once. Returns a description of the worker."""
        import torch

        from indextts import __version__
        from indextts.utils.gpu_config import GPUConfig

        begin = time.perf_counter()
        architecture = "CPU"
        if self._own_process:
            if self._threads:
                torch.set_num_threads(self._threads)
            architecture = GPUConfig.apply_optimal_settings(0)["architecture"]
        self._engine = engine = self._make_engine()
        if engine.device.type == "cuda" and not self._own_process:
            architecture = GPUConfig.get_optimal_settings(torch.cuda.get_device_capability(engine.device))["architecture"]
        if self._warm_up:
            self._warm(engine)
        return {
            "pid": os.getpid(),
            "node": platform.node(),
            "device": str(engine.device),
            "architecture": architecture if engine.device.type == "cuda" else engine.device.type.upper(),
            "precision": engine.precision,
            "sample_rate": engine.sample_rate,
            "threads": torch.get_num_threads(),
            "batch_size": CPU_BATCH if engine.device.type == "cpu" else ACCELERATOR_BATCH,
            "version": __version__,
            "start_s": time.perf_counter() - begin,
        }

    @staticmethod
    def _warm(engine: IndexTTS2) -> None:
        from indextts.bench import made_up_clip

        codes = min(WARMUP_CODES, engine.cfg.gpt.max_mel_tokens)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cut off on purpose
            engine.infer(made_up_clip(3.0), WARMUP_TEXT, max_mel_tokens=codes, seed=0)

    def run(self, items: Sequence[Item], keys: Sequence[str], rates: Sequence[int], *samples: np.ndarray) -> list[Outcome]:
        """Render a batch; ``samples[i]`` is the clip ``keys[i]`` at ``rates[i]`` Hz. A request that fails leaves the others alone.

        Errors: :class:`EngineBrokenError` if the device is lost.
        """
        clips = {key: (rate, clip) for key, rate, clip in zip(keys, rates, samples, strict=True)}
        self._begin()
        return self._render([(item.id, _bind(item, clips)) for item in items])

    def _render(self, batch: list[tuple[int, dict[str, Any]]]) -> list[Outcome]:
        engine, begin = self._ready(), time.perf_counter()
        try:
            results, said = self._heard(lambda: engine.infer_batch([arguments for _, arguments in batch], progress=self._report))
        except Exception as error:
            self._check_device(error)
            if self._cancelled or len(batch) == 1:
                return [Outcome(number, error=describe_error(error), seconds=time.perf_counter() - begin) for number, _ in batch]
            # One of them is at fault, or all together are too much: each for itself.
            return [outcome for request in batch for outcome in self._render([request])]
        seconds = (time.perf_counter() - begin) / len(batch)
        return [
            Outcome(number, rate, samples, None, seconds, said if i == 0 else ())
            for i, ((number, _), (rate, samples)) in enumerate(zip(batch, results, strict=True))
        ]

    def stream(self, item: Item, keys: Sequence[str], rates: Sequence[int], *samples: np.ndarray) -> Iterator[np.ndarray | Outcome]:
        """Render one request piece by piece: int16 samples (n,), and at the end an :class:`Outcome` without samples."""
        from indextts.audio import pcm16

        engine, begin = self._ready(), time.perf_counter()
        clips = {key: (rate, clip) for key, rate, clip in zip(keys, rates, samples, strict=True)}
        self._begin()
        try:
            for piece in engine.infer(**_bind(item, clips), stream_return=True, progress=self._report):
                yield pcm16(32767 * piece).reshape(-1)
        except GeneratorExit:
            raise
        except Exception as error:
            self._check_device(error)
            yield Outcome(item.id, error=describe_error(error), seconds=time.perf_counter() - begin)
        else:
            yield Outcome(item.id, engine.sample_rate, seconds=time.perf_counter() - begin)

    def status(self) -> dict[str, Any]:
        """Progress of the batch at work, and this process's memory in MiB."""
        from indextts.utils.resource_monitor import get_process_memory_mb

        return {"progress": self._progress, "memory_mb": get_process_memory_mb()}

    def cancel(self) -> None:
        """Stop the batch at work at its next step."""
        self._cancelled = True

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _ready(self) -> IndexTTS2:
        if self._engine is None:
            raise RuntimeError("this worker has not been started")
        return self._engine

    def _begin(self) -> None:
        self._progress, self._cancelled = (0.0, ""), False

    def _report(self, fraction: float, message: str) -> None:
        from indextts.engine.worker import Cancelled

        if self._cancelled:
            raise Cancelled("cancelled by the caller")
        self._progress = (fraction, message)

    def _heard(self, work: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
        """The result of ``work``; in a process of its own also its warnings, which nobody would see there."""
        if not self._own_process:
            return work(), ()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = work()
        return result, tuple(dict.fromkeys(str(warning.message) for warning in caught))

    def _check_device(self, error: Exception) -> None:
        """A CUDA error leaves the process's context unusable; running out of memory does not, but makes room for the next try."""
        import torch

        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            self._ready().clear_caches()
        elif isinstance(error, RuntimeError) and ("CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"):
            raise EngineBrokenError(str(error).partition("\n")[0]) from error


def _bind(item: Item, clips: dict[str, tuple[int, np.ndarray]]) -> dict[str, Any]:
    return {**item.arguments, **{name: clips[key] for name, key in item.clips.items()}}
