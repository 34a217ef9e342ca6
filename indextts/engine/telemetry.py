"""What a run cost: device times per stage and segment, and the record every inference leaves behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

STAGES = ("gpt", "s2mel", "bigvgan")


@dataclass(frozen=True)
class StageTime:
    """Device seconds of one stage of one segment, with its start on the run's own clock (0 = the call).

    ``start_s`` and ``device_s`` come from CUDA events on a GPU and from the host clock elsewhere. Where ``rows`` segments went through the
    stage together, each has its share of the time (by codes for the GPT, by mel frames after it), one after the other.
    """

    stage: str
    segment: int
    start_s: float
    device_s: float
    request: int = 0  # of a batch of requests
    rows: int = 1


@dataclass(frozen=True)
class SegmentRecord:
    """What one text segment became."""

    index: int
    text_tokens: int
    codes: int
    mel_frames: int
    samples: int
    hit_limit: bool
    request: int = 0  # of a batch of requests
    batch: int | None = None  # which batch it was decoded in; None: by itself


@dataclass
class Telemetry:
    """The full record of one inference; ``gpt_s + s2mel_s + bigvgan_s + other_s - overlapped_s = total_s``.

    ``overlapped_s``: time in which two stages ran side by side, which happens in streaming on a GPU only. ``requests``: how many the
    record is about; more than one after ``infer_batch``. ``out_of_memory``: how often memory ran out and work was done again with less.
    """

    total_s: float = 0.0
    gpt_s: float = 0.0
    s2mel_s: float = 0.0
    bigvgan_s: float = 0.0
    other_s: float = 0.0
    overlapped_s: float = 0.0
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
    out_of_memory: int = 0
    requests: int = 1
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
        total_s = stopwatch.elapsed()
        self.stages = stopwatch.read(self.segments)
        self._add_up()
        self.overlapped_s = stopwatch.overlapped()
        self._set_total(total_s, samples / sample_rate)

    def take_part(self, whole: Telemetry, request: int, audio_s: float) -> None:
        """Become the record of one request with ``audio_s`` seconds of sound in a record of several, whose total the parts share."""
        self.peak_vram_mb, self.cache_mb = whole.peak_vram_mb, whole.cache_mb
        self.segments = [segment for segment in whole.segments if segment.request == request]
        self.stages = [time for time in whole.stages if time.request == request]
        self._add_up()
        shared = (whole.other_s - whole.prompt_s) * audio_s / whole.audio_s
        self._set_total(self.gpt_s + self.s2mel_s + self.bigvgan_s + self.prompt_s + shared, audio_s)

    def _add_up(self) -> None:
        for stage in (*STAGES, "prompt"):
            setattr(self, f"{stage}_s", sum(t.device_s for t in self.stages if t.stage == stage))
        self.tokens = sum(s.codes for s in self.segments)
        self.mel_frames = sum(s.mel_frames for s in self.segments)
        self.tokens_per_s = self.tokens / self.gpt_s if self.gpt_s > 0 else 0.0

    def _set_total(self, total_s: float, audio_s: float) -> None:
        self.total_s, self.audio_s = total_s, audio_s
        self.other_s = total_s - self.gpt_s - self.s2mel_s - self.bigvgan_s + self.overlapped_s
        self.rtf = total_s / audio_s if audio_s else 0.0


class Stopwatch:
    """Times stages on the device: two CUDA events a stage, read once at the end, so that timing never stalls the stream."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._marks: list[tuple[str, tuple[int, ...], Any, Any]] = []
        self._start = time.perf_counter()
        self._start_event = self._mark() if self._cuda else None

    @contextlib.contextmanager
    def stage(self, name: str, segments: int | Sequence[int] = 0) -> Iterator[None]:
        """Time what the body puts on the current stream for a segment, or for several together: their places in the record's list."""
        begin = self._mark()
        try:
            yield
        finally:
            places = (segments,) if isinstance(segments, int) else tuple(segments)
            self._marks.append((name, places, begin, self._mark()))

    def elapsed(self) -> float:
        """Host seconds since the start, the device's work included."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - self._start

    def now(self) -> float:
        """Host seconds since the start, without waiting for the device."""
        return time.perf_counter() - self._start

    def read(self, segments: Sequence[SegmentRecord] = ()) -> list[StageTime]:
        """All stage times so far, in the order in which they ended; ``segments``: the record's list, which says how to share them out."""
        times = []
        for (name, places, _, _), (start_s, device_s) in zip(self._marks, self._intervals(), strict=True):
            known = [segments[place] if place < len(segments) else SegmentRecord(place, 0, 0, 0, 0, False) for place in places]
            sizes = [max(1, segment.codes if name == "gpt" else segment.mel_frames) for segment in known]
            for i, segment in enumerate(known):
                before, share = (device_s * part / sum(sizes) for part in (sum(sizes[:i]), sizes[i]))
                times.append(StageTime(name, segment.index, start_s + before, share, segment.request, len(places)))
        return times

    def overlapped(self) -> float:
        """Seconds in which two of the :data:`STAGES` ran side by side."""
        total, busy_until = 0.0, 0.0
        for start_s, device_s in sorted(span for (name, *_), span in zip(self._marks, self._intervals(), strict=True) if name in STAGES):
            total += max(0.0, min(busy_until, start_s + device_s) - start_s)
            busy_until = max(busy_until, start_s + device_s)
        return total

    def _intervals(self) -> list[tuple[float, float]]:
        """Start and length of each mark, in seconds."""
        if not self._cuda:
            return [(begin - self._start, end - begin) for _, _, begin, end in self._marks]
        torch.cuda.synchronize(self._device)
        since: Any = self._start_event
        return [(since.elapsed_time(begin) / 1e3, begin.elapsed_time(end) / 1e3) for _, _, begin, end in self._marks]

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
