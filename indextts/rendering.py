"""From checked requests to waves and records: segment by segment as the recipe says, many segments at once, or as a stream."""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indextts.engine.batch_stages import encode_batch, facts_about, similar, solve_batch, vocode_batch
from indextts.engine.batching import Utterance, default_batch_size, plan_batches
from indextts.engine.emitter import NO_SOUND, Emitter, joined
from indextts.engine.memory import first_line, is_out_of_memory, stage_units
from indextts.engine.streaming import Lane, SegmentStream, SideLane
from indextts.engine.telemetry import SegmentRecord, Stopwatch, Telemetry
from indextts.engine.worker import Job
from indextts.recovery import CODES_PER_TEXT_TOKEN, Recovery, named_segment
from indextts.request import Request

logger = logging.getLogger(__name__)
READING = "reading the reference voice"


Spoken = tuple[Tensor, SegmentRecord]  # wave (1, samples) float32 on the CPU, and the facts about its segment


@dataclass(frozen=True)
class Run:
    """One pass of the recipe: what is asked for, the job that does it, its clock, its seed, and its share of the job's progress."""

    request: Request
    job: Job
    watch: Stopwatch
    seed: int
    share: tuple[float, float] = (0.0, 1.0)

    def report(self, fraction: float, message: str) -> None:
        """Progress of this run, 0 to 1; raises if the work was cancelled."""
        begin, extent = self.share
        self.job.progress(begin + extent * fraction, message)

    def report_segment(self, index: int, fraction: float, message: str, every: bool = True) -> None:
        """Progress within segment ``index``; where not ``every`` call should be seen, only cancellation is looked for."""
        if not every:
            self.job.check()
            return
        count = len(self.request.segments)
        self.report(0.05 + 0.95 * (index + fraction) / count, f"segment {index + 1} of {count}: {message}")


class Rendering(Recovery):
    """How requests are rendered around the recipe of ``IndexTTS2``."""

    _batch_size: int | None = None
    _stream_overlap = True
    _stream_chunk_s = 0.0

    def _render(self, request: Request, job: Job, emit: Callable[[Tensor], object]) -> Telemetry:
        raise NotImplementedError

    def _utterances(self, run: Run, record: Telemetry, number: int = 0) -> list[Utterance]:
        raise NotImplementedError

    def _segment(self, run: Run, utterance: Utterance) -> Spoken:
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Most segments that :meth:`infer` and :meth:`infer_batch` render together, for the same sound; 1: one after the other.

        May be set; None chooses by the device and its memory, and 1 on the plain path. Larger is faster and needs more memory.
        """
        if self._batch_size is not None:
            return self._batch_size
        return 1 if self.low_memory else default_batch_size(self.device, self.use_accel)

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"batch_size must be a whole number >= 1, or None to choose by the device, got {size!r}")
        self._batch_size = size

    @property
    def stream_overlap(self) -> bool:
        """Whether streaming decodes the next segment while the current one is being finished, for the same sound.

        On the accelerated path on a GPU only.
        """
        return self._stream_overlap and self.device.type == "cuda" and self.use_accel

    @stream_overlap.setter
    def stream_overlap(self, on: bool) -> None:
        self._stream_overlap = bool(on)

    @property
    def stream_chunk_s(self) -> float:
        """Seconds of sound that streaming hands over at once; 0 (the default): whole segments. The sound is the same.

        Cuts the wave only: all codes and the mel of a segment are made before. Every piece costs 0.9 s of vocoder work on top of its own.
        """
        return self._stream_chunk_s

    @stream_chunk_s.setter
    def stream_chunk_s(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e6:
            raise ValueError(f"stream_chunk_s must be a number of seconds >= 0 (0: whole segments), got {seconds!r}")
        self._stream_chunk_s = float(seconds)

    def _settings_in_force(self, request: Request) -> dict[str, Any]:
        names = ("batch_size", "low_memory", "stream_overlap", "stream_chunk_s")
        return {**super()._settings_in_force(request), **{name: getattr(self, name) for name in names}}

    def _seed_of(self, request: Request) -> int:
        for seed in (request.seed, self.seed):
            if seed is not None:
                return seed
        return secrets.randbits(32)

    def _render_stream(self, request: Request, job: Job, emit: Callable[[Tensor], object]) -> Telemetry:
        """What the recipe emits and returns, earlier where that is switched on."""
        lane = self._side_lane()
        if lane is None and not self.stream_chunk_s:
            return self._render(request, job, emit)
        run = Run(request, job, Stopwatch(self.device), self._seed_of(request))
        record = Telemetry(seed=run.seed, text=request.text, settings=self._settings_in_force(request))
        self._before_inference()
        out = Emitter(emit, request.silence_samples, run.watch, record)
        frames = max(1, round(self.stream_chunk_s * self.sample_rate / self._stages.vocoder.hop)) if self.stream_chunk_s else None
        with self._stages.running():
            run.report(0.0, READING)
            with run.watch.stage("prompt"):
                utterances = self._recovering(lambda: self._utterances(run, record), record, READING)
            stream = SegmentStream(self._stages, run.watch, out, run.report_segment, job.check, lane=lane, chunk_frames=frames)
            try:
                stream.speak(utterances, CODES_PER_TEXT_TOKEN)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                logger.warning("memory ran out while streaming: the rest comes segment by segment (%s)", first_line(error))
            if len(record.segments) < len(utterances):
                self._give_back(record)
            for utterance in utterances[len(record.segments) :]:
                self._speak_one(run, utterance, record, out)
        self._finish_record(run, record, out.samples)
        return record

    def _speak_one(self, run: Run, utterance: Utterance, record: Telemetry, out: Emitter) -> None:
        """One segment by the recipe."""
        wave, facts = self._recovering(lambda: self._segment(run, utterance), record, f"speaking {named_segment(utterance)}", utterance)
        out(wave.float().cpu()[:, out.left_of_segment :], facts)

    def _side_lane(self) -> Lane | None:
        side = self._stages.side_stream if self.stream_overlap else None
        return None if side is None else SideLane(side)

    def _finish_record(self, run: Run, record: Telemetry, samples: int) -> None:
        """Close the record of a run that made ``samples`` samples. Errors: ``RuntimeError`` if that is none."""
        if samples == 0:
            raise RuntimeError(NO_SOUND)
        record.close(run.watch, samples, self.sample_rate)
        self._after_inference(record)
        run.report(1.0, "done")

    def _render_many(
        self, requests: Sequence[Request], job: Job, share: tuple[float, float] = (0.0, 1.0)
    ) -> list[tuple[Tensor, Telemetry]]:
        """Each request's joined wave (1, samples) and record; segments of all of them in batches of ``batch_size``.

        ``last_telemetry`` is then about all of them together. Errors name the request where there are several.
        """
        watch, size = Stopwatch(self.device), self.batch_size
        runs = [Run(request, job, watch, self._seed_of(request), share) for request in requests]
        parts = [Telemetry(seed=run.seed, text=run.request.text, settings=self._settings_in_force(run.request)) for run in runs]
        whole = parts[0] if len(parts) == 1 else Telemetry(requests=len(parts), settings=parts[0].settings)
        self._before_inference()
        with self._stages.running():
            utterances: list[Utterance] = []
            for number, (run, part) in enumerate(zip(runs, parts, strict=True)):
                run.report(0.05 * number / len(runs), READING)
                with _naming(number, len(runs)), watch.stage("prompt", len(utterances)):
                    utterances += self._recovering(functools.partial(self._utterances, run, part, number), whole, READING)
            spoken = self._speak_all(utterances, plan_batches(utterances, size), runs[0], whole)
        waves = []
        for number, (run, part) in enumerate(zip(runs, parts, strict=True)):
            own = [(wave, at) for wave, facts, at in spoken if facts.request == number]
            with _naming(number, len(runs)):
                waves.append(joined([wave for wave, _ in own], run.request.silence_samples))
            part.first_audio_s = min(at for wave, at in own if wave.shape[1])
        whole.segments = [facts for _, facts, _ in spoken]
        whole.first_audio_s = min(at for wave, _, at in spoken if wave.shape[1])
        whole.close(watch, sum(wave.shape[1] for wave in waves), self.sample_rate)
        self._after_inference(whole)
        for number, (part, wave) in enumerate(zip(parts, waves, strict=True)):
            if part is not whole:
                part.take_part(whole, number, wave.shape[1] / self.sample_rate)
        runs[0].report(1.0, "done")
        return list(zip(waves, parts, strict=True))

    def _speak_all(
        self, utterances: Sequence[Utterance], batches: list[list[int]], run: Run, record: Telemetry
    ) -> list[tuple[Tensor, SegmentRecord, float]]:
        """Wave, facts and time of each utterance, in their order."""
        spoken: dict[int, tuple[Tensor, SegmentRecord, float]] = {}
        total, before = sum(map(len, utterances)), 0
        for number, members in enumerate(batches):
            extent = sum(len(utterances[place]) for place in members)

            def report(fraction: float, message: str, number: int = number, extent: int = extent, before: int = before) -> None:
                done = (before + extent * fraction) / total
                run.report(0.05 + 0.95 * done, f"batch {number + 1} of {len(batches)}: {message}")

            for place, (wave, facts) in self._speak_fitting(utterances, members, number, run, report, record):
                spoken[place] = wave, facts, run.watch.now()
            before += extent
        return [spoken[place] for place in range(len(utterances))]

    def _speak_fitting(
        self,
        utterances: Sequence[Utterance],
        members: list[int],
        number: int,
        run: Run,
        report: Callable[[float, str], None],
        record: Telemetry,
    ) -> Iterator[tuple[int, Spoken]]:
        """:meth:`_speak_batch` in parts that fit into memory: as predicted, and halved where it runs out all the same."""
        waiting, size, failed_alone = list(members), len(members), False
        while waiting:
            if not failed_alone:
                size = self._most_that_fit([utterances[place] for place in waiting[:size]])
            text = None
            try:
                for place, spoken in self._speak_batch(utterances, waiting[:size], number, run, report):
                    waiting.remove(place)
                    yield place, spoken
                failed_alone = False
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                text = first_line(error)
            if text is not None:
                self._give_back(record)
                if failed_alone:
                    only = utterances[waiting[0]]
                    raise self._explained(text, f"speaking {named_segment(only)}", only)
                failed_alone = size == 1
                size = max(1, size // 2)

    def _speak_batch(
        self, utterances: Sequence[Utterance], members: list[int], number: int, run: Run, report: Callable[[float, str], None]
    ) -> Iterator[tuple[int, Spoken]]:
        """The utterances at the places ``members``: codes of all together, then mels and waves in groups of similar length."""
        stages, watch = self._stages, run.watch
        batch = [utterances[place] for place in members]
        likely_codes = CODES_PER_TEXT_TOKEN * max(map(len, batch))

        def on_step(n: int) -> None:
            if n % 10:
                run.job.check()
            else:
                report(0.7 * min(1.0, n / likely_codes), f"{len(batch)} segments, {n} codes")

        report(0.0, f"{len(batch)} segments, codes")
        units = stage_units(batch, CODES_PER_TEXT_TOKEN)
        with watch.stage("gpt", members), self._gauge.stage("gpt", units["gpt"]):
            coded = encode_batch(stages, batch, on_step)
        speaking = []
        for place, one in zip(members, coded, strict=True):
            if one.codes.shape[1]:
                speaking.append((place, one))
            else:
                yield place, (torch.zeros(1, 0), facts_about(one, 0, 0, number))
        groups = list(similar([one for _, one in speaking], len(batch)))
        for done, group in enumerate(groups):
            places, ones = [speaking[i][0] for i in group], [speaking[i][1] for i in group]

            def on_euler(step: int, steps: int, done: int = done) -> None:
                report(0.7 + 0.3 * (done + 0.8 * step / steps) / len(groups), f"mel, step {step} of {steps}")

            with watch.stage("s2mel", places), self._gauge.stage("s2mel", len(ones) * max(map(len, ones))):
                mels = solve_batch(stages, ones, on_euler)
            with watch.stage("bigvgan", places), self._gauge.stage("bigvgan", len(mels) * max(mel.shape[-1] for mel in mels)):
                waves = vocode_batch(stages, mels)
            for place, one, mel, wave in zip(places, ones, mels, waves, strict=True):
                yield place, (wave.float().cpu(), facts_about(one, mel.shape[-1], wave.shape[-1], number))


@contextlib.contextmanager
def _naming(number: int, requests: int) -> Iterator[None]:
    """Errors in the body say which request they are about, where there are several."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        if requests == 1:
            raise
        raise named(error, number) from error


def named(error: Exception, number: int) -> Exception:
    """``error`` with the request's number in front, as the closest built-in kind: some subclasses take other arguments than a message."""
    kinds = (FileNotFoundError, OSError, TypeError, ValueError, torch.OutOfMemoryError, RuntimeError)
    kind = next(kind for kind in kinds if isinstance(error, kind))
    return kind(f"request {number}: {error}")
