"""Everything about speed that only a GPU can tell, in one run of a few minutes: ``python -m tests.gpu_trial --json trial.json``.

It checks the fused kernels and prints how far they are from torch, times each stage in every form it has, and climbs the ladder of
optimisations. A section that fails is reported and the others go on. Without a GPU ``--size small`` runs what can be run, which shows that
the script itself works. The ladder's report goes into a file of its own (``--ladder``), in the format of ``indextts bench --json``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from indextts import IndexTTS2
from indextts.bench import ladder, machine, made_up_clip
from indextts.engine import fusion
from indextts.engine.decode import StaticDecoder, feed
from indextts.engine.precision import inputs_inside
from indextts.engine.quantise import quantise
from indextts.engine.sampling import SamplingParams
from indextts.engine.solver import FastSolver
from indextts.engine.solver_ops import SolverOps
from indextts.engine.static_cache import KVStorage, StaticCache
from indextts.engine.vocoder import VocoderRunner
from indextts.models.gpt2 import Conv1D
from tests.gpu_trial_calls import attention, first_sound, many

Row = dict[str, Any]
RUNS = 5


class Trial:
    """An engine, and what the sections share."""

    def __init__(self, size: str, codes: int, most_tilings: int | None = None) -> None:
        self.most_tilings = most_tilings
        self.on_gpu = torch.cuda.is_available()
        self.tts = IndexTTS2.from_random(size, precision="bf16")
        self.stages, self.device, self.codes = self.tts._stages, self.tts.device, codes
        request = self.tts._bound_request({"spk_audio_prompt": made_up_clip(), "text": "The ferry came in at a quarter to eight."})
        self.ids = torch.tensor([request.segments[0].ids], device=self.device)
        with self.stages.running():
            voice = request.voice
            self.speaker = self.stages.speaker_prompt(voice.samples, voice.rate)
            felt = self.stages.emotion_prompt(voice.samples, voice.rate)
            self.emotion = self.stages.merge_emotion(self.speaker, felt, 1.0)

    def ms(self, work: Callable[[], object], runs: int = RUNS) -> float:
        """Median milliseconds of ``work`` after two calls that are not timed."""
        times = []
        for i in range(runs + 2):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times += [time.perf_counter() - start] if i >= 2 else []
        return 1e3 * statistics.median(times)

    def wait(self) -> None:
        """For the device."""
        if self.on_gpu:
            torch.cuda.synchronize()


def kernels(trial: Trial) -> Iterator[Row]:
    """How far the fused kernels are from torch on this device."""
    if not trial.on_gpu:
        return
    from indextts.engine.kernels import checks

    for stage, dtype in itertools.product(fusion.Fusion.names(), (torch.float32, torch.float16, torch.bfloat16)):
        if stage == "one_kernel" and dtype == torch.float32:
            continue  # made for 16 bits
        try:
            with torch.inference_mode():
                error = getattr(checks, stage)(trial.device, dtype)
            yield {
                "stage": stage,
                "dtype": str(dtype),
                "error": error,
                "bound": checks.BOUNDS[dtype],
                "passes": error <= checks.BOUNDS[dtype],
            }
        except Exception as failure:
            yield {"stage": stage, "dtype": str(dtype), "passes": False, "failure": f"{type(failure).__name__}: {failure}"[:2000]}


def decode(trial: Trial) -> Iterator[Row]:
    """Milliseconds of a decode step with its sampler."""
    runs: dict[str, dict[str, Any]] = {"torch": {}}
    if trial.on_gpu:
        runs["torch.compile"] = {"run": torch.compile(feed, dynamic=False)}
        try:
            from indextts.engine.kernels.decode import Tiling
            from indextts.engine.kernels.decode import feed as fused
            from indextts.engine.kernels.sampler import FusedBeamSearch, FusedSearch
        except ImportError as failure:
            yield {"run": "fused", "failure": str(failure)}
        else:
            choosing = {"searches": (FusedSearch, FusedBeamSearch)}
            runs |= {"sampler": choosing, "layers": {"run": fused}, ALL_FUSED: {"run": fused, **choosing}}
            try:
                from indextts.engine.kernels.one_kernel import OneKernel, launcher

                whole = OneKernel(trial.stages.gpt, *launcher(trial.device), fused)
                runs["one kernel"] = {"run": whole, **choosing}
            except Exception as failure:
                yield {"run": "one kernel", "failure": str(failure)}
            for words, tiling in itertools.islice(tilings(Tiling), trial.most_tilings):
                runs[f"{ALL_FUSED}, {words}"] = {"run": functools.partial(fused, tiling=tiling), **choosing}
    shapes = ((1, 1), (1, 3), (16, 1), (16, 3)) if trial.on_gpu else ((1, 1), (1, 3))
    weights = ("full", "int8", "fp8") if trial.on_gpu else ("full",)
    for kind, (name, options) in itertools.product(weights, runs.items()):
        if kind != "full" and name != ALL_FUSED:
            continue
        trial.stages.set_weights("full")
        if kind != "full":
            quantise(trial.stages.gpt.gpt, kind)
            if trial.on_gpu:
                inputs_inside(trial.stages.gpt.gpt)
        for rows, beams in shapes:
            yield _timed(f"{name}, {kind} weights, {rows} x {beams}", functools.partial(_step_ms, trial, options, rows, beams))
    trial.stages.set_weights("full")


ALL_FUSED = "sampler and layers"


def tilings(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Others than the one in use, which differ from it in one thing or two."""
    for given in (
        {"fused": 0}, {"overlap": True}, {"slices": 4}, {"warps": 8}, {"splits": 1}, {"overlap": True, "fused": 0}, {"columns": 16},
        {"fused": 0, "slices": 4}, {"fused": 0, "slices": 8}, {"columns": 64}, {"stages": 6}, {"depth": 64, "stages": 6}, {"warps": 2},
        {"splits": 8}, {"keys": 32}, {"overlap": True, "fused": 0, "slices": 4}, {"fused": 48},
    ):  # fmt: skip
        yield ", ".join(f"{name} {value}" for name, value in given.items()), kind(**given)


def one_kernel(trial: Trial) -> Iterator[Row]:
    """The kernel of a whole step, cut in several ways: how far from torch, its time, and the bandwidth at which it reads weights."""
    if not trial.on_gpu:
        return
    from indextts.engine.kernels import checks
    from indextts.engine.kernels.decode import feed as fused
    from indextts.engine.kernels.one_kernel import PHASES, Layout, OneKernel, launcher

    gpt = trial.stages.gpt
    weights = sum(layer.weight.nbytes for layer in gpt.gpt.modules() if isinstance(layer, Conv1D)) + gpt.mel_head.weight.nbytes

    def measured(beams: int, run: Any) -> Row:
        generator = torch.Generator(trial.device).manual_seed(0)
        cache = StaticCache(KVStorage(trial.device, trial.stages.dtype, lambda: None), gpt.config.layers, gpt.config.heads, 64, 1, beams)
        length = 100 + 150 * beams  # a prefix, and the middle of 300 codes
        pair = torch.randn(2, 1, gpt.config.heads, length, 64, device=trial.device, generator=generator).to(trial.stages.dtype)
        bucket = cache.begin([(pair[0], pair[1])] * gpt.config.layers, None, cache.capacity(length, 1), 2000)
        cache.see(bucket, torch.arange(beams, device=trial.device)[None])
        x = torch.randn(1, beams, gpt.config.model_dim, device=trial.device, generator=generator)
        expected = feed(gpt, x, cache, bucket)
        found = run(gpt, x, cache, bucket)
        torch.cuda.synchronize()
        error = checks.error(found, expected)
        graph, out = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(graph):
            for _ in range(20):
                out = run(gpt, x, cache, bucket)
        graph.replay()
        torch.cuda.synchronize()
        differ = checks.error(out, found)
        took = trial.ms(graph.replay, 9) / 20
        row = {"error": error, "repeats": differ, "us": 1e3 * took, "weights_tb_per_s": weights / took / 1e9}
        if isinstance(run, OneKernel):  # clocks between the ends of its phases, and how many a step took
            run.trace = torch.zeros(gpt.config.layers, PHASES, dtype=torch.int32, device=trial.device)
            for _ in range(3):
                run(gpt, x, cache, bucket)
            clocks = run.trace.cpu().flatten().double().diff().remainder(2**32)
            run.trace = None
            row["all_clocks"] = float(clocks.sum())
            row["phase_clocks"] = [round(float(clocks[i::PHASES].median())) for i in range(PHASES)]
        return row

    with trial.stages.running():
        for beams in (1, 3):
            yield _timed(f"{beams} beams, fused kernels", functools.partial(measured, beams, fused))
            for given in LAYOUTS:
                words = ", ".join(f"{name} {value}" for name, value in given.items()) or "default"
                made = OneKernel(gpt, *launcher(trial.device), fused, Layout(**given))
                yield _timed(f"{beams} beams, one kernel, {words}", functools.partial(measured, beams, made))


LAYOUTS: tuple[dict[str, Any], ...] = ({}, {"flight": 8, "foresee": 0}, {"foresee": 0}, {"part": 96}, {"part": 192}, {"ring": 5})


def _step_ms(trial: Trial, options: dict[str, Any], rows: int, beams: int) -> Row:
    stages, params = trial.stages, SamplingParams(num_beams=beams)
    decoder = StaticDecoder(stages.gpt, trial.device, stages.dtype, use_graphs=trial.on_gpu, **options)
    with stages.running(), stages.gpt_autocast():
        prefix, mask = stages.gpt.prefix(stages.gpt.conditioning(trial.speaker.latents, trial.emotion), trial.ids)
        prefill = trial.ms(lambda: decoder.prefill(prefix.expand(rows, -1, -1), mask.expand(rows, -1)))
        state = decoder.prefill(prefix.expand(rows, -1, -1), mask.expand(rows, -1))
        draws = torch.Generator(trial.device)
        step = trial.ms(lambda: decoder.decode(state, params, generator=draws.manual_seed(0), forced_codes=trial.codes), 3) / trial.codes
        codes = torch.arange(trial.codes, device=trial.device).remainder(100).repeat(rows, 1)
        latents = trial.ms(lambda: decoder.latents(state, codes))
        return {"prefill_ms": prefill, "step_ms": step, "latents_ms": latents, "captured": decoder.use_graphs}


def profile(trial: Trial) -> Iterator[Row]:
    """What one sentence spends its time in: kernels by device time (on the CPU: operations), and what the device waits for."""
    from torch.profiler import ProfilerActivity

    for beams in (1, 3):
        call = functools.partial(
            trial.tts.infer_forced,
            trial.codes,
            spk_audio_prompt=made_up_clip(),
            text="The ferry came in at a quarter to eight.",
            num_beams=beams,
            seed=1,
        )
        for _ in range(2):
            call()
        trial.wait()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * trial.on_gpu]) as seen:
            start = time.perf_counter()
            call()
            trial.wait()
            took = 1e3 * (time.perf_counter() - start)
        key = "self_device_time_total" if trial.on_gpu else "self_cpu_time_total"
        rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, key))
        busy = sum(getattr(row, key) for row in rows) / 1e3
        yield {"what": f"{beams} beams", "wall_ms": took, "busy_ms": busy, "calls": sum(row.count for row in rows)}
        for row in rows[:24]:
            total = getattr(row, key) / 1e3
            yield {"what": f"{beams} beams: {row.key[:90]}", "total_ms": total, "count": row.count, "each_us": 1e3 * total / row.count}


def solver(trial: Trial) -> Iterator[Row]:
    """Milliseconds of 25 Euler steps for 5 s after a prompt of 5 s, and the distance from float32."""
    stages, prompt = trial.stages, trial.speaker.mel.shape[-1]
    frames = int(1.72 * trial.codes)
    draws = torch.Generator(trial.device).manual_seed(0)
    content = trial.speaker.condition.shape[-1]
    mu = torch.cat([trial.speaker.condition, torch.randn(1, frames, content, device=trial.device, generator=draws)], dim=1)
    noise = torch.randn(1, trial.speaker.mel.shape[1], prompt + frames, device=trial.device, generator=draws)
    given = (mu, trial.speaker.mel, trial.speaker.style)

    def measured(dtype: torch.dtype, ops: type[SolverOps], **options: Any) -> Row:
        made = FastSolver(stages.s2mel, trial.device, dtype, use_graphs=trial.on_gpu, ops=ops, **options)
        with stages.running():
            took = trial.ms(lambda: made.solve(*given, steps=25, guidance=0.7, noise=noise))
            mel = made.solve(*given, steps=25, guidance=0.7, noise=noise)
        return {"ms": took, "distance": float((mel - exact).norm() / exact.norm()), "memory_mb": made.memory_mb}

    with stages.float32_originals(), stages.running():
        exact = stages.s2mel.cfm.solve(*given, steps=25, guidance=0.7, noise=noise)
    kinds: list[type[SolverOps]] = [SolverOps]
    if trial.on_gpu:
        from indextts.engine.kernels.solver import FusedSolverOps

        kinds.append(FusedSolverOps)
    dtypes = (torch.float16, torch.bfloat16, torch.float32) if trial.on_gpu else (torch.bfloat16,)
    for dtype, ops in itertools.product(dtypes, kinds):
        yield _timed(f"{ops.__name__} {dtype}", functools.partial(measured, dtype, ops))
    if trial.on_gpu:
        yield _timed("whole loop, fused, float16", functools.partial(measured, torch.float16, kinds[-1], whole_loop=True))
        yield _timed("torch.compile, bfloat16", lambda: _compiled_solver(trial, given, noise))


def _compiled_solver(trial: Trial, given: Any, noise: Any) -> Row:
    stages, start = trial.stages, time.perf_counter()
    stages.compile_s2mel(True)
    try:
        with stages.running():
            stages.solve(*given, steps=25, guidance=0.7, noise=noise)
            trial.wait()
            start_up = time.perf_counter() - start
            return {"ms": trial.ms(lambda: stages.solve(*given, steps=25, guidance=0.7, noise=noise), 3), "start_up_s": start_up}
    finally:
        stages.compile_s2mel(False)


def vocoder(trial: Trial) -> Iterator[Row]:
    """Milliseconds of 5 s of wave, and the distance from float32."""
    network = trial.stages.vocoder
    mel = torch.randn(1, 80, int(1.72 * trial.codes), device=trial.device, generator=torch.Generator(trial.device).manual_seed(0))
    with trial.stages.float32_originals(), trial.stages.running():
        exact = network(mel)
    kernels: list[Any] = [None]
    if trial.on_gpu:
        from indextts.engine.kernels import snake

        kernels.append(snake.activate)
    dtypes = (torch.float16, torch.bfloat16, torch.float32) if trial.on_gpu else (torch.float32, torch.bfloat16)
    tuning = (False, True) if trial.on_gpu else (False,)

    def measured(dtype: torch.dtype, kernel: Any, inside: bool, graphs: bool, tuned: bool) -> Row:
        runner = VocoderRunner(network, trial.device, dtype, fused=kernel, channels_last=inside)
        trial.stages.cudnn_benchmark = tuned
        with trial.stages.running():
            if graphs:
                runner.use_graphs(3)
            took, wave = trial.ms(lambda: runner(mel)), runner(mel)
        return {"ms": took, "distance": float((wave - exact).norm() / exact.norm()), "memory_mb": runner.memory_mb}

    for dtype, kernel, inside, graphs, tuned in itertools.product(dtypes, kernels, (False, True), tuning, tuning):
        words = [str(dtype), "fused" if kernel else "torch", *["channels last"] * inside, *["graphs"] * graphs, *["autotuned"] * tuned]
        yield _timed(", ".join(words), functools.partial(measured, dtype, kernel, inside, graphs, tuned))
    trial.stages.cudnn_benchmark = None


def _timed(what: str, work: Callable[[], Row]) -> Row:
    try:
        return {"what": what, **work()}
    except Exception as failure:
        return {"what": what, "failure": f"{type(failure).__name__}: {failure}"[:2000], "trace": traceback.format_exc()[-1500:]}


SECTIONS: dict[str, Callable[[Trial], Iterator[Row]]] = {
    "kernels": kernels, "one_kernel": one_kernel, "profile": profile, "decode": decode, "solver": solver, "vocoder": vocoder,
    "attention": attention, "many": many, "first_sound": first_sound,
}  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the sections; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="release", choices=("release", "small"))
    parser.add_argument("--codes", type=int, default=250)
    parser.add_argument("--sections", nargs="+", default=[*SECTIONS], choices=[*SECTIONS])
    parser.add_argument("--tilings", type=int, help="how many other tilings of the decode kernels to time (default: all)")
    parser.add_argument("--json", default="gpu_trial.json", help="what was found")
    parser.add_argument("--ladder", metavar="FILE", help="also climb the ladder of optimisations, and write its report")
    options = parser.parse_args(argv)
    trial = Trial(options.size, options.codes, options.tilings)
    report: dict[str, Any] = {"machine": machine(trial.device), "options": vars(options), "sections": {}}
    if options.ladder:
        command = f"python -m tests.gpu_trial --size {options.size} --codes {options.codes} --ladder {options.ladder}"
        try:
            climbed = ladder(trial.tts, codes=options.codes, runs=RUNS, command=command, progress=lambda _, rung: print(rung, flush=True))
            print(climbed, flush=True)
            climbed.save(options.ladder)
        except Exception:
            traceback.print_exc()
    for name in options.sections:
        rows = report["sections"].setdefault(name, [])
        try:
            for row in SECTIONS[name](trial):
                rows.append(row)
                shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items() if key != "trace"}
                print(name, shown, flush=True)
        except Exception:
            rows.append({"failure": traceback.format_exc()[-3000:]})
            print(name, rows[-1]["failure"], flush=True)
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")  # after each section: a run may be cut short
    trial.tts.close()
    return report


if __name__ == "__main__":
    main()
