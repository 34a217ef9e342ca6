"""``indextts bench``: options to a matrix or a ladder of measurements."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Options that take several values, and the field of Switches they vary.
AXES = {
    "precisions": "precision",
    "attention": "attention",
    "graphs": "graphs",
    "fusion": "fusion",
    "one_kernel": "one_kernel",
    "compile": "compile",
    "compile_decode": "compile_decode",
    "weights": "weights",
    "channels_last": "channels_last",
    "beams": "beams",
    "steps": "steps",
    "batch": "batch",
}


def add_options(bench: argparse.ArgumentParser, list_of: Callable[[Any], Any]) -> None:
    """The command's own options; those of the engine are the caller's. Several values of an option make a matrix."""
    bench.add_argument("--codes", type=int, default=250, metavar="N", help="codes forced, 50 a second (default: %(default)s)")
    bench.add_argument("--beams", type=list_of(int), default=[3], metavar="B[,B]", help="beams (default: 3)")
    bench.add_argument("--precisions", type=list_of(str), metavar="P[,P]", help="fp32, tf32, bf16, fp16 (default: the one in force)")
    bench.add_argument("--attention", type=list_of(str), metavar="A[,A]", help="auto, cudnn, flash, efficient, math")
    bench.add_argument("--graphs", type=list_of(_on_off), metavar="on[,off]", help="CUDA graphs (default: on where possible)")
    bench.add_argument("--fusion", type=list_of(_on_off), metavar="on[,off]", help="fused kernels (default: on where they work)")
    bench.add_argument("--one-kernel", type=list_of(_on_off), metavar="on[,off]", help="for a decode step (default: on where it works)")
    bench.add_argument("--compile", type=list_of(_on_off), metavar="off[,on]", help="torch.compile of the mel stage (default: off)")
    bench.add_argument("--compile-decode", type=list_of(_on_off), metavar="off[,on]", help="torch.compile of the decoder (default: off)")
    bench.add_argument("--weights", type=list_of(str), metavar="W[,W]", help="the GPT's weights: full, int8, fp8 (default: full)")
    bench.add_argument("--channels-last", type=list_of(_on_off), metavar="off[,on]", help="in the vocoder (default: off)")
    bench.add_argument("--steps", type=list_of(int), metavar="N[,N]", help="Euler steps of the mel stage (default: the voice's)")
    bench.add_argument("--batch", type=list_of(int), metavar="N[,N]", help="requests rendered together (default: 1)")
    bench.add_argument("--plain", action="store_true", help="the plain path, without the fast decoder and mel solver, to compare with")
    bench.add_argument("--ladder", action="store_true", help="add one optimisation at a time, the plain path first")
    bench.add_argument("--no-reference", action="store_true", help="leave out the plain path's row and the distances from it")
    bench.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs (default: %(default)s)")
    bench.add_argument("--warmup", type=int, default=2, metavar="N", help="untimed runs before (default: %(default)s)")
    bench.add_argument("--voice", metavar="WAV", help="reference clip (default: a made-up one of 5 s)")
    bench.add_argument("--json", metavar="FILE", help="write the results")
    bench.add_argument("--profile", metavar="DIR", help="write a trace, a table of operations and, on a GPU, a memory snapshot")


def run(arguments: argparse.Namespace, engine: Callable[..., Any], progress_bar: Callable[[], Any]) -> str:
    """Measure, write what was asked for, and return the table. ``engine(arguments, use_accel=)`` makes the engine."""
    from indextts.bench import ladder, made_up_clip, matrix
    from indextts.bench_profile import profile

    check(arguments)
    command = shlex.join(["indextts", *arguments.command_line])
    measuring = {"codes": arguments.codes, "runs": arguments.runs, "warmup": arguments.warmup, "voice": arguments.voice}
    with engine(arguments, use_accel=not arguments.plain) as tts:
        with progress_bar() as progress:
            common: dict[str, Any] = {"progress": progress, "command": command, **measuring}
            if arguments.ladder:
                report = ladder(tts, beams=arguments.beams[0], **common)
            else:
                report = matrix(tts, _axes(arguments), reference=not arguments.no_reference, **common)
        if arguments.profile:
            clip = arguments.voice or made_up_clip()
            steps = arguments.steps[0] if arguments.steps else None
            call = {"spk_audio_prompt": clip, "text": "The ferry came in.", "num_beams": arguments.beams[0], "diffusion_steps": steps}
            profile(tts, arguments.profile, {**call, "seed": 1, "forced_codes": arguments.codes})
    if arguments.json:
        report.save(arguments.json)
    return str(report)


def check(arguments: argparse.Namespace) -> None:
    """Refuse now what would fail after minutes of work: ``ValueError``, ``FileNotFoundError``."""
    from indextts.audio import load_audio
    from indextts.request import GENERATION_RANGES, check_output

    fewest, most = GENERATION_RANGES["num_beams"]
    if not fewest <= min(arguments.beams) <= max(arguments.beams) <= most:
        raise ValueError(f"--beams must be between {fewest} and {most}, got {','.join(map(str, arguments.beams))}")
    for name, count in (("--codes", arguments.codes), ("--runs", arguments.runs), ("--batch", min(arguments.batch or [1]))):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if arguments.warmup < 0:
        raise ValueError(f"--warmup must be at least 0, got {arguments.warmup}")
    check_output(arguments.json, "--json")
    if arguments.profile is not None and Path(arguments.profile).exists() and not Path(arguments.profile).is_dir():
        raise ValueError(f"--profile {arguments.profile!r} is not a folder")
    if arguments.voice is not None:
        load_audio(arguments.voice, role="--voice")


def _axes(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    given = {field: getattr(arguments, option) for option, field in AXES.items()}
    return {field: values for field, values in given.items() if values is not None}


def _on_off(value: str) -> bool:
    if value not in ("on", "off"):
        raise ValueError(value)
    return value == "on"
