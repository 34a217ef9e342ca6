"""Measuring an engine: one state, a matrix of states, or one optimisation after the other. ``indextts bench`` is this on the command line.

Runs compare because the number of codes is forced and the reference voice is cached; warm-up runs are apart from the timed ones, the
figures are medians with their spread, and every row says on what, with what settings and by which command it was measured.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from indextts.bench_report import STAGES, BenchReport, BenchRow, Spread, machine, table
from indextts.bench_switches import Switches, combinations, ladder_of

if TYPE_CHECKING:
    from indextts.bench_distance import Reference
    from indextts.engine.telemetry import Telemetry
    from indextts.pipeline import IndexTTS2

__all__ = ["BenchReport", "BenchRow", "Switches", "bench", "ladder", "machine", "made_up_clip", "matrix", "table"]

TEXT = (
    "The harbour was quiet when the ferry came in, and the first passengers stepped onto the pier with their collars turned up "
    "against the wind."
)
Progress = Callable[[float, str], None]


def made_up_clip(seconds: float = 5.0, rate: int = 22050) -> tuple[int, np.ndarray]:
    """A voiced-sounding reference clip made by formula, (rate, float32 (n,)), for runs whose sound does not matter."""
    return rate, _made_up(seconds, rate).copy()


@functools.lru_cache(maxsize=4)
def _made_up(seconds: float, rate: int) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * t) ** 2
    noise = np.random.default_rng(0).standard_normal(t.size)
    return (0.2 * envelope * tone + 0.003 * noise).astype(np.float32)


def bench(
    tts: IndexTTS2,
    *,
    codes: int = 250,
    beams: int = 3,
    runs: int = 5,
    warmup: int = 2,
    voice: Any = None,
    text: str = TEXT,
    steps: int | None = None,
    batch: int = 1,
    label: str | None = None,
    reference: Reference | None = None,
    switch_s: float = 0.0,
    command: str = "",
) -> BenchRow:
    """Time ``runs`` warm calls, each of ``batch`` requests of exactly ``codes`` codes, on ``tts`` as it is, after ``warmup`` untimed ones.

    ``reference``: what the output is compared with, from :meth:`Reference.of`. ``switch_s``: seconds it took to get into this state; with
    what the first warm-up call took longer than the median they are the row's start-up cost (unknown without warm-up).
    Errors: ``ValueError`` for counts below 1, and those of ``infer``.
    """
    import torch

    from indextts.bench_cost import floors, measure_rates
    from indextts.models.length_regulator import target_frames

    if runs < 1 or warmup < 0:
        raise ValueError(f"runs must be at least 1 and warmup at least 0, got {runs} and {warmup}")
    switches = Switches.of(tts, beams=beams, steps=steps, batch=batch)
    switches.check(tts)
    clip = voice if voice is not None else made_up_clip()
    call = {"spk_audio_prompt": clip, "text": text, "num_beams": beams, "diffusion_steps": steps, "seed": 1, "forced_codes": codes}
    request = tts._bound_request(call)
    waits = [_timed(tts, call, batch) for _ in range(warmup)]
    measured = [_timed(tts, call, batch) for _ in range(runs)]
    records = [run.record for run in measured]
    totals, last = [run.seconds for run in measured], records[-1]
    total = statistics.median(totals)
    stages = {name: Spread.of([getattr(record, f"{name}_s") for record in records]) for name in STAGES}
    rates = measure_rates(tts.device, tts.dtype or torch.float32)
    bounds = floors(
        tts._stages,
        rates,
        codes=codes,
        prefix=tts.cfg.gpt.condition_num_latent + 5 + len(request.segments[0].ids),
        prompt_frames=0 if tts.cache_mel is None else tts.cache_mel.shape[-1],
        mel_frames=target_frames(codes, 1.0),
        beams=beams,
        steps=request.diffusion_steps,
        segments=batch * len(request.segments),
        together=batch,
    )
    made, audio, gpt = batch * len(request.segments) * codes, measured[-1].audio_s, stages["gpt"].median
    return BenchRow(
        label=label or switches.label(),
        switches=switches.to_dict(),
        codes=made,
        runs=runs,
        warmup=warmup,
        audio_s=audio,
        total=Spread.of(totals),
        rtf=total / audio,
        stages=stages,
        tokens_per_s=made / gpt if gpt else 0.0,
        decode_gb_per_s=bounds.decode_bytes / gpt / 1e9 if gpt else 0.0,
        rates=rates.to_dict(),
        floors_s=bounds.to_dict(),
        floor_fraction={name: getattr(bounds, f"{name}_s") / stages[name].median for name in STAGES[:3] if stages[name].median},
        peak_vram_mb=max(record.peak_vram_mb for record in records),
        start_up_s=switch_s + max(0.0, waits[0].seconds - total) if waits else None,
        distance=reference.distance(tts, beams, steps) if reference is not None else None,
        settings=last.settings,
        machine=machine(tts.device),
        command=command,
    )


def matrix(
    tts: IndexTTS2,
    axes: Mapping[str, Sequence[Any]],
    *,
    base: Switches | None = None,
    reference: bool = True,
    progress: Progress | None = None,
    command: str = "",
    **measuring: Any,
) -> BenchReport:
    """A row for every combination of ``axes``, a mapping of :class:`Switches` fields to their values, in ``base``'s other settings.

    >>> matrix(tts, {"precision": ["fp32", "bf16"], "beams": [3, 1]}, codes=100)   # doctest: +SKIP

    ``base`` is the state ``tts`` is in unless given. With ``reference`` the plain float32 path comes first and the others are compared
    with it. ``measuring``: ``codes, runs, warmup, voice, text`` of :func:`bench`. The engine is left in the state it was in.
    Errors: ``ValueError`` and ``TypeError`` for states that do not exist or do not fit the device, before anything is measured.
    """
    states = combinations(base or Switches.of(tts), axes)
    rows = [(state.label(), state) for state in states]
    first = Switches(beams=states[0].beams, steps=states[0].steps)
    if reference and first != states[0]:
        rows.insert(0, (first.label(), first))
    return _measure(tts, rows, reference, progress, command, measuring)


def ladder(
    tts: IndexTTS2,
    rungs: Sequence[tuple[str, Switches]] | None = None,
    *,
    beams: int = 3,
    progress: Progress | None = None,
    command: str = "",
    **measuring: Any,
) -> BenchReport:
    """One row per rung: the plain path first, then one optimisation more each time, as far as the device goes; see :func:`ladder_of`.

    ``rungs``: (label, state) pairs of one's own. ``measuring`` as for :func:`matrix`. The engine is left in the state it was in.
    """
    return _measure(tts, list(rungs or ladder_of(tts, beams)), True, progress, command, measuring)


def _measure(
    tts: IndexTTS2,
    rows: list[tuple[str, Switches]],
    compare: bool,
    progress: Progress | None,
    command: str,
    measuring: Mapping[str, Any],
) -> BenchReport:
    from indextts.bench_distance import Reference

    for _, state in rows:
        state.check(tts)
    clip = measuring.get("voice")
    clip = made_up_clip() if clip is None else clip
    tts._bound_request({"spk_audio_prompt": clip, "text": TEXT, "forced_codes": measuring.get("codes")})  # refuses what does not fit
    before, wish, results = Switches.of(tts), tts.channels_last_wish, []
    try:
        reference = Reference.of(tts, clip, sorted({state.beams for _, state in rows})) if compare else None
        for index, (label, state) in enumerate(rows):
            if progress is not None:
                progress(index / len(rows), label)
            start = time.perf_counter()
            state.apply(tts)
            switch_s = time.perf_counter() - start
            work: dict[str, Any] = {"beams": state.beams, "steps": state.steps, "batch": state.batch}
            results.append(bench(tts, **work, label=label, reference=reference, switch_s=switch_s, command=command, **measuring))
    finally:
        before.apply(tts)
        tts.set_channels_last(wish)
    if progress is not None:
        progress(1.0, "done")
    return BenchReport(machine(tts.device), command, results)


@dataclass(frozen=True)
class _Run:
    """One call: its seconds, from call to result on the host's clock, the seconds of audio it made, and its record."""

    seconds: float
    audio_s: float
    record: Telemetry


def _timed(tts: IndexTTS2, call: dict[str, Any], batch: int) -> _Run:
    start = time.perf_counter()
    results = tts.infer_batch([{**call, "seed": seed} for seed in range(1, batch + 1)])
    seconds = time.perf_counter() - start
    return _Run(seconds, sum(len(samples) / rate for rate, samples in results), tts.last_telemetry)
