"""One request of a worker pool: its future, what travels to a worker, and what comes back.

Reference clips are decoded where the request is made and results are written there, so that workers on other machines need neither
the files nor the folders, a bad clip is refused at once, and a worker that dies leaves no half file.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CLIP_ARGUMENTS = ("spk_audio_prompt", "emo_audio_prompt")
MOST_CLIPS = 64


class PoolFullError(RuntimeError):
    """The pool's queue is full: the request was not taken. Wait for results, or use ``map``, which waits by itself."""


class WorkerDiedError(RuntimeError):
    """The process that worked on a request ended before it answered."""


class PoolFuture(Future[Any]):
    """A future that can also be cancelled while its request runs; the worker stops at its next decode or solver step."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = threading.Event()

    def cancel(self) -> bool:
        """Give the request up. True unless it had ended; ``result()`` then raises ``CancelledError``."""
        if super().cancel():
            return True
        if self.done():
            return False
        self.aborted.set()
        return True

    def cancelled(self) -> bool:
        """Whether the request was given up before it ended."""
        return super().cancelled() or (self.done() and isinstance(self.exception(), CancelledError))


@dataclass(frozen=True)
class Clip:
    """A decoded reference clip: mono float32 samples (n,), their rate in Hz, and the key of their content."""

    key: str
    rate: int
    samples: np.ndarray


@dataclass(frozen=True)
class Item:
    """What a worker gets: ``infer``'s arguments without clips, and which clip, by key, belongs to which argument."""

    id: int
    arguments: dict[str, Any]
    clips: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What a worker answers: int16 samples (n, 1) at ``rate`` Hz, or the kind and text of an error."""

    id: int
    rate: int = 0
    samples: np.ndarray | None = None
    error: tuple[str, str] | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def audio_s(self) -> float:
        """Seconds of sound."""
        return 0.0 if self.samples is None else len(self.samples) / self.rate


@dataclass(eq=False)
class Ticket:
    """A request on its way through the pool."""

    id: int
    arguments: dict[str, Any]
    clips: dict[str, Clip]
    output: Any = None
    progress: Callable[[float, str], None] | None = None
    pieces: queue.SimpleQueue[Any] | None = None  # of a streamed request
    sent: int = 0  # samples that a streamed request has handed over
    attempts: int = 0
    future: PoolFuture = field(default_factory=PoolFuture)

    @property
    def item(self) -> Item:
        """The part that travels."""
        return Item(self.id, self.arguments, {name: clip.key for name, clip in self.clips.items()})

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        if not self.future.done():
            self.future.set_exception(error)
        if self.pieces is not None:
            self.pieces.put(error)


class ClipBook:
    """Clips decoded so far, so that a thousand requests with one voice read its file once; a changed file is read again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Any, ...], Clip] = OrderedDict()

    def read(self, source: Any, sample_rate: int | None, role: str) -> Clip:
        """Decode ``source``. Errors: those of :func:`indextts.audio.load_audio`, with ``role`` for what the clip is."""
        from indextts.audio import content_key, load_audio

        place = self._place(source)
        with self._lock:
            if place is not None and place in self._known:
                self._known.move_to_end(place)
                return self._known[place]
        samples, rate = load_audio(source, sample_rate=sample_rate, role=role)
        clip = Clip(content_key(samples, rate), rate, samples)
        if place is not None:
            with self._lock:
                self._known[place] = clip
                while len(self._known) > MOST_CLIPS:
                    self._known.popitem(last=False)
        return clip

    @staticmethod
    def _place(source: Any) -> tuple[Any, ...] | None:
        if not isinstance(source, (str, os.PathLike)):
            return None
        try:
            path = Path(source).expanduser()
            status = path.stat()
        except (OSError, ValueError, RuntimeError):
            return None
        return os.path.realpath(path), status.st_mtime_ns, status.st_size


def make_ticket(number: int, request: Mapping[str, Any], clips: ClipBook) -> Ticket:
    """Check what can be checked without an engine. Errors: ``TypeError``, ``ValueError``, ``FileNotFoundError``."""
    from indextts.request import check_output

    if not isinstance(request, Mapping):
        raise TypeError(f"a request is a dict of infer's arguments, got {type(request).__name__}")
    arguments = dict(request)
    for name in ("spk_audio_prompt", "text"):
        if arguments.get(name) is None:
            raise TypeError(f"a request needs {name}")
    if not isinstance(arguments["text"], str):
        raise TypeError(f"text must be str, got {type(arguments['text']).__name__}")
    if not arguments["text"].strip():
        raise ValueError("the text is empty: nothing to say")
    if arguments.pop("stream_return", False):
        raise ValueError("stream_return is for the pool's method stream")
    progress = arguments.pop("progress", None)
    if progress is not None and not callable(progress):
        raise ValueError("progress must be callable as progress(fraction, message)")
    output = check_output(arguments.pop("output_path", None))
    rate = arguments.pop("sample_rate", None)
    sources = {name: arguments.pop(name) for name in CLIP_ARGUMENTS if arguments.get(name) is not None}
    read = {name: clips.read(source, rate, name) for name, source in sources.items()}
    return Ticket(number, arguments, read, output, progress)


# The more special before the more general: FileNotFoundError and TimeoutError are OSErrors.
_COMMON = (FileNotFoundError, TimeoutError, OSError, TypeError, ValueError, MemoryError, RuntimeError, CancelledError)
_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in _COMMON}


def describe_error(error: BaseException) -> tuple[str, str]:
    """An error as two strings, which every process can read: its kind, as far as it is a common one, and its text."""
    from indextts.engine.worker import Cancelled

    if isinstance(error, (Cancelled, CancelledError)):
        return "CancelledError", "cancelled"
    kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "RuntimeError")
    text = str(error) or type(error).__name__
    return kind, text if kind != "RuntimeError" or isinstance(error, RuntimeError) else f"{type(error).__name__}: {text}"


def rebuild_error(described: tuple[str, str]) -> Exception:
    """The inverse of :func:`describe_error`."""
    return _KINDS[described[0]](described[1])
