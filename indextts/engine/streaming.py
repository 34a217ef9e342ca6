"""Streaming: the sound of a segment is finished and leaves while the next segment's codes are being generated.

Decoding reads weights and hardly computes, solver and vocoder compute: on a GPU the two run side by side, on a stream each. One host thread
drives both. It queues solver and vocoder of segment i, which takes it a few milliseconds, goes on with the codes of segment i + 1, and
between two steps looks whether sound has arrived. Elsewhere than on a GPU the same calls run one after the other. Either way the sound is
that of the recipe, which is the oracle.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from indextts.engine.batch_stages import CodedUtterance, encode_batch, facts_about, solve_batch
from indextts.engine.batching import Utterance
from indextts.engine.stages import Stages
from indextts.engine.telemetry import SegmentRecord, Stopwatch

Emit = Callable[[Tensor, SegmentRecord | None], object]
Report = Callable[[int, float, str], None]  # place of the segment, how far it is (0 to 1), what happens
MOST_UNFINISHED = 2  # segments whose sound may be on its way: more would only hold memory


class Ticket(Protocol):
    """A wave on its way to the host."""

    wave: Tensor

    def ready(self) -> bool:
        """Whether it has arrived."""

    def wait(self) -> None:
        """Until it has."""


class Lane(Protocol):
    """Where solver and vocoder run."""

    def running(self) -> contextlib.AbstractContextManager[None]:
        """What is put on the device in the body runs here, after all that was put there before."""

    def to_host(self, wave: Tensor) -> Ticket:
        """Start to fetch a wave that was made here."""

    def finish(self) -> None:
        """Wait for all that runs here."""


@dataclass
class Arrived:
    """A wave on the host."""

    wave: Tensor

    def ready(self) -> bool:
        """It is."""
        return True

    def wait(self) -> None:
        """Nothing to wait for."""


class SameLane:
    """The current stream: everything in order."""

    def running(self) -> contextlib.AbstractContextManager[None]:
        """No other place."""
        return contextlib.nullcontext()

    def to_host(self, wave: Tensor) -> Arrived:
        """The wave, once it is made."""
        return Arrived(wave.float().cpu())

    def finish(self) -> None:
        """Nothing is on its way."""


@dataclass
class _Copy:
    wave: Tensor  # pinned
    source: Tensor
    event: torch.cuda.Event

    def ready(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


class SideLane:
    """A CUDA stream beside the current one, of higher priority: its sound is due before that of the segment being decoded."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """On the stream, after what the current one has been given so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            yield

    def to_host(self, wave: Tensor) -> _Copy:
        """A copy to pinned memory that nobody waits for yet."""
        pinned = torch.empty(wave.shape, dtype=torch.float32, pin_memory=True)
        pinned.copy_(wave, non_blocking=True)
        event = torch.cuda.Event()
        event.record(self.stream)
        return _Copy(pinned, wave, event)

    def finish(self) -> None:
        """Wait for the stream."""
        self.stream.synchronize()


@dataclass
class _Leaving:
    ticket: Ticket
    facts: SegmentRecord | None
    place: int
    held: Any  # memory of the other stream, which must not be given away before this one is done with it


class SegmentStream:
    """Speaks utterances one by one, handing over each wave as soon as it has arrived, in order.

    ``emit(wave, facts)``: wave (1, samples) float32 on the CPU; ``facts`` come with the last wave of a segment. ``chunk_frames``: cut the
    wave of a segment into pieces of so many mel frames, the first of which leaves before the last is made (None: one piece a segment).
    ``check()`` raises when the work was cancelled.
    """

    def __init__(
        self,
        stages: Stages,
        watch: Stopwatch,
        emit: Emit,
        report: Report,
        check: Callable[[], None],
        *,
        lane: Lane | None = None,
        chunk_frames: int | None = None,
    ) -> None:
        self.stages, self.watch, self.emit, self.report, self.check = stages, watch, emit, report, check
        self.lane: Lane = lane or SameLane()
        self.chunk_frames = chunk_frames
        self._leaving: deque[_Leaving] = deque()

    def speak(self, utterances: Sequence[Utterance], codes_per_token: float) -> None:
        """All of them. Errors of a stage, of ``emit`` or of ``check`` end it."""
        try:
            for place, utterance in enumerate(utterances):
                self._finish(place, self._encode(place, utterance, codes_per_token * len(utterance)))
            self._deliver(wait=True)
        finally:
            self.lane.finish()
            self._leaving.clear()

    def _encode(self, place: int, utterance: Utterance, likely_codes: float) -> CodedUtterance:
        def on_step(n: int) -> None:
            self._deliver()
            if n % 10:
                self.check()
            else:
                self.report(place, 0.7 * min(1.0, n / likely_codes), f"{n} codes")

        self.report(place, 0.0, "codes")
        with self.watch.stage("gpt", place):
            (coded,) = encode_batch(self.stages, [utterance], on_step)
        return coded

    def _finish(self, place: int, coded: CodedUtterance) -> None:
        """Queue solver and vocoder."""
        if coded.codes.shape[1] == 0:
            self._leaving.append(_Leaving(Arrived(torch.zeros(1, 0)), facts_about(coded, 0, 0), place, None))
            return
        while len({leaving.place for leaving in self._leaving}) >= MOST_UNFINISHED:
            self._deliver_first()

        def on_euler(step: int, steps: int) -> None:
            self.report(place, 0.7 + 0.25 * step / steps, f"mel, step {step} of {steps}")

        with self.lane.running():
            with self.watch.stage("s2mel", place):
                (mel,) = solve_batch(self.stages, [coded], on_euler)
            self.report(place, 0.95, "wave")
            chunks = self.stages.mel_to_waves(mel, self.chunk_frames or self.stages.vocoder_frames)
            samples = 0
            for last, wave in self._timed(chunks, place):
                samples += wave.shape[-1]
                facts = facts_about(coded, mel.shape[-1], samples) if last else None
                self._leaving.append(_Leaving(self.lane.to_host(wave), facts, place, coded))
                self._deliver()

    def _timed(self, chunks: Iterator[Tensor], place: int) -> Iterator[tuple[bool, Tensor]]:
        """Waves with whether each is the last."""
        before: Tensor | None = None
        while True:
            with self.watch.stage("bigvgan", place):
                wave = next(chunks, None)
            if before is not None:
                yield wave is None, before
            if wave is None:
                return
            before = wave

    def _deliver(self, wait: bool = False) -> None:
        """Hand over what has arrived; with ``wait``, everything."""
        while self._leaving and (wait or self._leaving[0].ticket.ready()):
            self._deliver_first()

    def _deliver_first(self) -> None:
        first = self._leaving.popleft()
        first.ticket.wait()
        self.emit(first.ticket.wave, first.facts)
