"""What a run cost: device times per stage and segment, and the record every inference leaves behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

STAGES = ("gpt", "s2mel", "bigvgan")


@dataclass(frozen=True)
class StageTime:
    """Device seconds of one stage of one segment, with its start on the run's own clock (0 = the call).

    ``start_s`` and ``device_s`` come from CUDA events on a GPU and from the host clock elsewhere.
    """

    stage: str
    segment: int
    start_s: float
    device_s: float


@dataclass(frozen=True)
class SegmentRecord:
    """What one text segment became."""

    index: int
    text_tokens: int
    codes: int
    mel_frames: int
    samples: int
    hit_limit: bool


@dataclass
class Telemetry:
    """The full record of one inference; ``gpt_s + s2mel_s + bigvgan_s + other_s = total_s``."""

    total_s: float = 0.0
    gpt_s: float = 0.0
    s2mel_s: float = 0.0
    bigvgan_s: float = 0.0
    other_s: float = 0.0
    audio_s: float = 0.0
    rtf: float = 0.0
    first_audio_s: float | None = None
    tokens: int = 0
    tokens_per_s: float = 0.0
    mel_frames: int = 0
    speaker_cache_hit: bool = False
    emotion_cache_hit: bool = False
    prompt_s: float = 0.0
    peak_vram_mb: float = 0.0
    cache_mb: float = 0.0
    seed: int | None = None
    text: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    segments: list[SegmentRecord] = field(default_factory=list)
    stages: list[StageTime] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for ``json.dumps``."""
        return asdict(self)

    def close(self, stopwatch: Stopwatch, samples: int, sample_rate: int) -> None:
        """Fill in the sums once the run is over."""
        self.total_s = stopwatch.elapsed()
        self.stages = stopwatch.read()
        for stage in STAGES:
            setattr(self, f"{stage}_s", sum(t.device_s for t in self.stages if t.stage == stage))
        self.prompt_s = sum(t.device_s for t in self.stages if t.stage == "prompt")
        self.other_s = self.total_s - self.gpt_s - self.s2mel_s - self.bigvgan_s
        self.tokens = sum(s.codes for s in self.segments)
        self.mel_frames = sum(s.mel_frames for s in self.segments)
        self.tokens_per_s = self.tokens / self.gpt_s if self.gpt_s > 0 else 0.0
        self.audio_s = samples / sample_rate
        self.rtf = self.total_s / self.audio_s if samples else 0.0


class Stopwatch:
    """Times stages on the device: two CUDA events a stage, read once at the end, so that timing never stalls the stream."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._marks: list[tuple[str, int, Any, Any]] = []
        self._start = time.perf_counter()
        self._start_event = self._mark() if self._cuda else None

    @contextlib.contextmanager
    def stage(self, name: str, segment: int = 0) -> Iterator[None]:
        """Time what the body puts on the device."""
        begin = self._mark()
        try:
            yield
        finally:
            self._marks.append((name, segment, begin, self._mark()))

    def elapsed(self) -> float:
        """Host seconds since the start, the device's work included."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - self._start

    def read(self) -> list[StageTime]:
        """All stage times so far, in the order in which they ended."""
        if not self._cuda:
            return [StageTime(name, segment, begin - self._start, end - begin) for name, segment, begin, end in self._marks]
        torch.cuda.synchronize(self._device)
        return [
            StageTime(name, segment, self._start_event.elapsed_time(begin) / 1e3, begin.elapsed_time(end) / 1e3)  # type: ignore[union-attr]
            for name, segment, begin, end in self._marks
        ]

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
