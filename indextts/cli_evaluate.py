"""``indextts evaluate``: measure a voice. What it measures is in :mod:`indextts.evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options besides those of the engine."""
    parser.add_argument("--voice", metavar="WAV", nargs="+", help="clips to clone (default: the weights' own, then synthesisers)")
    parser.add_argument("--synth", metavar="DIR", nargs="+", default=[], help="unpacked bundles of synthesisers")
    parser.add_argument("--unheard", metavar="NAME", nargs="+", default=[], help="voices that the weights were not trained on")
    parser.add_argument("--only", metavar="SECTION", nargs="+", help="voices digits endings joins copies settings emotions resources")
    parser.add_argument("--quick", action="store_true", help="a few texts only: shows that all runs, measures little")
    parser.add_argument("--sentences", type=int, metavar="N", help="sentences for each voice (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws; each sentence has its own (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all results")


def run(
    arguments: argparse.Namespace,
    open_engine: Callable[..., Any],
    progress_bar: Callable[[], AbstractContextManager[Callable[[float, str], None]]],
    out: Callable[[str], None],
) -> int:
    """The command; returns the exit code, 0 also where targets are missed."""
    from indextts.audio import load_audio, replace_file
    from indextts.evaluate.run import FULL, QUICK, SECTIONS, evaluate
    from indextts.evaluate.texts import CHOICES
    from indextts.request import check_output

    # Refused now, not after minutes of work.
    only = arguments.only or SECTIONS
    unknown = sorted(set(only) - set(SECTIONS))
    if unknown:
        raise ValueError(f"--only: there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if arguments.sentences is not None and not 1 <= arguments.sentences <= len(CHOICES):
        raise ValueError(f"--sentences must be between 1 and {len(CHOICES)}, got {arguments.sentences}")
    check_output(arguments.json, "--json")
    for clip in arguments.voice or []:
        load_audio(clip, role="--voice")
    for folder in arguments.synth:
        if not Path(folder, "lib").is_dir():
            raise FileNotFoundError(f"--synth {folder}: no unpacked bundle of synthesisers is there")
    amounts = QUICK if arguments.quick else FULL
    if arguments.sentences is not None:
        amounts = dataclasses.replace(amounts, sentences=arguments.sentences)
    with open_engine(arguments) as tts, progress_bar() as progress:
        done = 0

        def tick(message: str) -> None:
            nonlocal done
            done += message in SECTIONS
            logger.info(message)
            progress((done - 1) / len(only), message)

        report = evaluate(
            tts,
            clips=[Path(clip) for clip in arguments.voice] if arguments.voice else None,
            synth=[Path(folder) for folder in arguments.synth],
            unheard=arguments.unheard,
            only=only,
            amounts=amounts,
            seed=arguments.seed,
            tick=tick,
        )
    out(str(report))
    if arguments.json:
        replace_file(Path(arguments.json), json.dumps(report.to_dict(), indent=2, ensure_ascii=False).encode())
    return 0
