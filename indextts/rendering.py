"""From checked requests to waves and records: segment by segment as the recipe says, or many segments at once."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indextts.engine.batch_stages import CodedUtterance, encode_batch, similar, solve_batch, vocode_batch
from indextts.engine.batching import Utterance, default_batch_size, plan_batches
from indextts.engine.controls import EngineControls
from indextts.engine.telemetry import SegmentRecord, Stopwatch, Telemetry
from indextts.engine.worker import Job
from indextts.request import Request

CODES_PER_TEXT_TOKEN = 8  # of ordinary English speech: 50 codes and about 6 text tokens a second; for progress only
NO_SOUND = "the model ended every segment at once, so there is no sound; try another seed or a longer text"

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


class Rendering(EngineControls):
    """How requests are rendered around the recipe of ``IndexTTS2``."""

    _batch_size: int | None = None

    def _utterances(self, run: Run, record: Telemetry, number: int = 0) -> list[Utterance]:
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Most segments that :meth:`infer` and :meth:`infer_batch` render together, for the same sound; 1: one after the other.

        May be set; None chooses by the device and its memory, and 1 on the plain path. Larger is faster and needs more memory.
        """
        return default_batch_size(self.device, self.use_accel) if self._batch_size is None else self._batch_size

    @batch_size.setter
    def batch_size(self, size: int | None) -> None:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"batch_size must be a whole number >= 1, or None to choose by the device, got {size!r}")
        self._batch_size = size

    def _settings_in_force(self, request: Request) -> dict[str, Any]:
        return {**super()._settings_in_force(request), "batch_size": self.batch_size}

    def _seed_of(self, request: Request) -> int:
        for seed in (request.seed, self.seed):
            if seed is not None:
                return seed
        return secrets.randbits(32)

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
                run.report(0.05 * number / len(runs), "reading the reference voice")
                with _naming(number, len(runs)), watch.stage("prompt", len(utterances)):
                    utterances += self._utterances(run, part, number)
            spoken = self._speak_all(utterances, plan_batches(utterances, size), runs[0])
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

    def _speak_all(self, utterances: Sequence[Utterance], batches: list[list[int]], run: Run) -> list[tuple[Tensor, SegmentRecord, float]]:
        """Wave, facts and time of each utterance, in their order."""
        spoken: dict[int, tuple[Tensor, SegmentRecord, float]] = {}
        total, before = sum(map(len, utterances)), 0
        for number, members in enumerate(batches):
            extent = sum(len(utterances[place]) for place in members)

            def report(fraction: float, message: str, number: int = number, extent: int = extent, before: int = before) -> None:
                done = (before + extent * fraction) / total
                run.report(0.05 + 0.95 * done, f"batch {number + 1} of {len(batches)}: {message}")

            for place, (wave, facts) in self._speak_batch(utterances, members, number, run, report):
                spoken[place] = wave, facts, run.watch.elapsed()
            before += extent
        return [spoken[place] for place in range(len(utterances))]

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
        with watch.stage("gpt", members):
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

            with watch.stage("s2mel", places):
                mels = solve_batch(stages, ones, on_euler)
            with watch.stage("bigvgan", places):
                waves = vocode_batch(stages, mels)
            for place, one, mel, wave in zip(places, ones, mels, waves, strict=True):
                yield place, (wave.float().cpu(), facts_about(one, mel.shape[-1], wave.shape[-1], number))


def facts_about(coded: CodedUtterance, mel_frames: int, samples: int, batch: int | None = None) -> SegmentRecord:
    """What an utterance became; ``batch``: which batch it was in, if any."""
    own, n = coded.utterance, coded.codes.shape[1]
    return SegmentRecord(own.index, len(own), n, mel_frames, samples, coded.hit_limit, request=own.request, batch=batch)


def joined(waves: Sequence[Tensor], silence_samples: int) -> Tensor:
    """Waves (1, samples) one after the other with silences between them; those of no samples do not count.

    Errors: ``RuntimeError`` if none has any.
    """
    heard = [wave for wave in waves if wave.shape[1]]
    if not heard:
        raise RuntimeError(NO_SOUND)
    silence = torch.zeros(1, silence_samples)
    return torch.cat([piece for wave in heard for piece in (silence, wave)][1:], dim=1)


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
