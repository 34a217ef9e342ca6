"""What was spoken, and at what cost: a record of every run, and the history that panels and lessons draw from. No widgets here.

>>> history = RunHistory()
>>> record = render(tts, history, "plain", spk_audio_prompt="me.wav", text="Hello.")  # doctest: +SKIP
>>> record.rtf, record.settings["precision"]  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from indextts.audio import pcm16, replace_file, write_wav
from indextts.engine.telemetry import Telemetry

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2
    from indextts.text import Segment

Progress = Callable[[float, str], None]
MOST_RUNS = 200
# What a run asks for; where its result goes and how it is watched say nothing about the sound.
_NOT_RECORDED = {"progress", "stream_return", "output_path", "verbose"}


@dataclass(eq=False)
class RunRecord:
    """One finished run: what was asked for, what it cost, how it sounds.

    ``request`` holds the arguments of ``infer``, JSON-safe (a voice given as an array becomes a description) and with the seed that was
    used. ``samples`` is int16 (n,) at ``sample_rate`` Hz; ``created_s`` is Unix time.
    """

    id: int
    label: str
    created_s: float
    request: dict[str, Any]
    telemetry: Telemetry
    sample_rate: int
    samples: npt.NDArray[np.int16]

    @property
    def rtf(self) -> float:
        """Real-time factor: total time over audio duration, lower is faster."""
        return self.telemetry.rtf

    @property
    def audio_s(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / self.sample_rate

    @property
    def total_s(self) -> float:
        """Seconds from the call to the last sample."""
        return self.telemetry.total_s

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's settings in force during the run."""
        return self.telemetry.settings

    @property
    def notes(self) -> list[str]:
        """What went short in this run, in words; empty if nothing did."""
        segments = self.telemetry.segments
        found = []
        empty = [str(segment.index + 1) for segment in segments if segment.samples == 0]
        if empty:
            found.append(f"No sound for segment {', '.join(empty)} of {len(segments)}: the model stopped before its first code.")
        if any(segment.hit_limit for segment in segments):
            limit = self.settings.get("max_mel_tokens")
            found.append(f"Generation was stopped at its limit of {limit} codes, so speech may be cut off.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, without the samples."""
        return {
            "id": self.id,
            "label": self.label,
            "created_s": self.created_s,
            "sample_rate": self.sample_rate,
            "audio_s": self.audio_s,
            "total_s": self.total_s,
            "rtf": self.rtf,
            "request": self.request,
            "telemetry": self.telemetry.to_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the sound as a 16-bit WAV; returns the path. Errors: ``OSError`` naming the path and the cause."""
        write_wav(path, self.samples, self.sample_rate)
        return Path(path)


class RunHistory:
    """Runs in the order in which they ended; safe to use from several threads.

    Holds at most ``most`` runs: the oldest goes when one too many arrives.
    """

    def __init__(self, most: int = MOST_RUNS) -> None:
        if most < 1:
            raise ValueError(f"a history holds at least one run, got most={most}")
        self.most = most
        self._runs: dict[int, RunRecord] = {}
        self._next = 1
        self._lock = threading.Lock()
        self._subscribers: list[Callable[[], object]] = []

    def new(
        self, tts: IndexTTS2, request: Mapping[str, Any], samples: Any, label: str | None = None, telemetry: Telemetry | None = None
    ) -> RunRecord:
        """Make and add the record of a run that ``tts`` has just finished; ``samples`` is int16 of any shape with one channel."""
        telemetry = telemetry or tts.last_telemetry
        described = describe_request({**request, "seed": telemetry.seed})
        flat = np.ascontiguousarray(pcm16(samples).reshape(-1))
        with self._lock:
            number, self._next = self._next, self._next + 1
        record = RunRecord(number, label or f"run {number}", time.time(), described, telemetry, tts.sample_rate, flat)
        self.add(record)
        return record

    def add(self, record: RunRecord) -> None:
        """Add a record, in the place of one with the same id if there is one."""
        with self._lock:
            self._runs[record.id] = record
            self._next = max(self._next, record.id + 1)
            while len(self._runs) > self.most:
                del self._runs[next(iter(self._runs))]
        self._changed()

    def get(self, number: int) -> RunRecord:
        """The run of that id. Errors: ``KeyError`` that says which ids there are."""
        with self._lock:
            if number not in self._runs:
                raise KeyError(f"there is no run {number}; there are {sorted(self._runs) or 'none'}")
            return self._runs[number]

    def remove(self, *numbers: int) -> None:
        """Forget runs; ids that are not there do not matter."""
        with self._lock:
            gone = [self._runs.pop(number, None) for number in numbers]
        if any(gone):
            self._changed()

    def clear(self) -> None:
        """Forget all runs; their numbers are not used again."""
        with self._lock:
            self._runs.clear()
        self._changed()

    def __iter__(self) -> Iterator[RunRecord]:
        with self._lock:
            return iter(list(self._runs.values()))

    def __len__(self) -> int:
        with self._lock:
            return len(self._runs)

    def __contains__(self, number: object) -> bool:
        with self._lock:
            return number in self._runs

    def subscribe(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback()`` after every change, in the thread that made it; returns the function that ends this."""
        with self._lock:
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._subscribers:
                    self._subscribers.remove(callback)

        return unsubscribe

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write all records, without sound, as a JSON list."""
        text = json.dumps([record.to_dict() for record in self], indent=1, ensure_ascii=False)
        replace_file(Path(path), text.encode("utf-8"))
        return Path(path)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row a run: the times in seconds, the figures, and the settings in force."""
        rows = [_row(record) for record in self]
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["id"]
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(Path(path), buffer.getvalue().encode("utf-8"))
        return Path(path)

    def _changed(self) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for callback in subscribers:
            callback()


def render(
    tts: IndexTTS2,
    history: RunHistory | None = None,
    label: str | None = None,
    progress: Progress | None = None,
    on_piece: Callable[[npt.NDArray[np.float32]], object] | None = None,
    **infer_arguments: Any,
) -> RunRecord:
    """Run ``tts.infer(**infer_arguments)`` to its end and return its record, added to ``history`` if there is one.

    ``on_piece`` receives the sound while it is made, float32 (n,) in [-1, 1] a piece. An exception in either callback cancels the run.
    Without a seed one is drawn, so that every record can be repeated. Errors: those of ``infer``; ``TypeError`` for ``stream_return``,
    which ``on_piece`` stands for.
    """
    if "stream_return" in infer_arguments:
        raise TypeError("render returns when the run is over; use on_piece to receive the sound while it is made")
    arguments = dict(infer_arguments)
    if arguments.get("seed") is None:
        arguments["seed"] = tts.seed if getattr(tts, "seed", None) is not None else secrets.randbits(32)
    seen: list[Telemetry] = []

    def watched(fraction: float, message: str) -> None:
        if fraction >= 1.0:  # the record is complete now, and another thread's run has not replaced it yet
            seen[:] = [tts.last_telemetry]
        if progress is not None:
            progress(fraction, message)

    if on_piece is None:
        path = arguments.pop("output_path", None)
        _, samples = cast("tuple[int, npt.NDArray[np.int16]]", tts.infer(**arguments, progress=watched))
        if path is not None:
            write_wav(path, samples.reshape(-1), tts.sample_rate)
    else:
        samples = _streamed(tts, {**arguments, "progress": watched}, on_piece)
    telemetry = seen[0] if seen else tts.last_telemetry
    target = history if history is not None else RunHistory()
    return target.new(tts, infer_arguments, samples, label, telemetry)


def describe_request(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``infer``'s arguments as plain JSON values: paths as text, sound as a description, callbacks and None left out."""
    return {key: _plain(value) for key, value in arguments.items() if value is not None and key not in _NOT_RECORDED}


def preview_segments(tts: IndexTTS2, text: str, max_text_tokens_per_segment: int = 120, quick_streaming_tokens: int = 0) -> list[Segment]:
    """The segments that ``infer`` would speak, in order. Errors: ``ValueError`` for bad text or limits."""
    with text_lock(tts):
        return tts.frontend.segments(text, max_text_tokens_per_segment, quick_streaming_tokens, on_unknown="ignore")


def text_lock(tts: IndexTTS2) -> contextlib.AbstractContextManager[Any]:
    """Held by whoever uses the text front-end of ``tts`` or changes its glossary: the grammar is not known to be safe for threads."""
    lock: contextlib.AbstractContextManager[Any] = getattr(tts, "_text_lock", None) or contextlib.nullcontext()
    return lock


def _streamed(tts: IndexTTS2, arguments: dict[str, Any], on_piece: Callable[[npt.NDArray[np.float32]], object]) -> npt.NDArray[np.int16]:
    pieces = []
    stream = tts.infer(**arguments, stream_return=True)
    try:
        for piece in stream:
            sound = np.asarray(piece, dtype=np.float32).reshape(-1)
            pieces.append(sound)
            on_piece(sound)
    finally:
        stream.close()
    return pcm16(np.float32(32767) * np.concatenate(pieces))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple) and len(value) == 2 and hasattr(value[1], "shape"):
        return f"array of {_seconds(value[1], value[0])} at {value[0]} Hz"
    if hasattr(value, "shape"):
        return f"array of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)


def _seconds(samples: Any, rate: Any) -> str:
    longest = max(samples.shape, default=0)
    return f"{longest / rate:.2f} s" if rate else f"{longest} samples"


def _row(record: RunRecord) -> dict[str, Any]:
    telemetry = record.telemetry
    times = {name: getattr(telemetry, name) for name in ("total_s", "gpt_s", "s2mel_s", "bigvgan_s", "other_s", "first_audio_s")}
    figures = {name: getattr(telemetry, name) for name in ("tokens", "tokens_per_s", "mel_frames", "peak_vram_mb", "cache_mb", "seed")}
    return {
        "id": record.id,
        "label": record.label,
        "created_s": record.created_s,
        "text": telemetry.text,
        "audio_s": record.audio_s,
        "rtf": record.rtf,
        **times,
        **figures,
        **{f"setting.{name}": value for name, value in record.settings.items()},
    }
