"""The ``indextts`` command. Errors a user can mend are one line on stderr: exit code 2 for bad input, 1 for a failure."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from indextts import cli_bench, cli_evaluate, cli_lab, cli_long, cli_serve

EMOTION_HELP = "eight values >= 0: happy,angry,sad,afraid,disgusted,melancholic,surprised,calm"
DEFAULT_TEXT_HELP = "the text to speak; - reads it from standard input"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parser().parse_args(argv)
    arguments.command_line = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        with _warnings_as_lines():
            return arguments.run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, FileNotFoundError, TypeError) as error:
        if arguments.verbose:
            logging.exception("bad input")
        return _fail(error, 2)
    except (RuntimeError, OSError, ImportError, MemoryError) as error:
        if arguments.verbose:
            logging.exception("failure")
        return _fail(error, 1)


class _Parser(argparse.ArgumentParser):
    """Its errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(_fail(f"{message} (see {self.prog} --help)", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="indextts", description="IndexTTS2 text-to-speech: text and a reference voice to a WAV.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    say = _command(commands, "say", _say, "speak a text in the voice of a reference clip")
    say.add_argument("text", nargs="?", help=DEFAULT_TEXT_HELP)
    say.add_argument("--voice", metavar="WAV", help="reference clip, 3 to 15 seconds (default: the voice's own clip)")
    say.add_argument("-o", "--output", metavar="WAV", default="speech.wav", help="file to write (default: %(default)s)")
    emotion = say.add_mutually_exclusive_group()
    emotion.add_argument("--emotion-audio", metavar="WAV", help="clip whose emotion is taken over")
    emotion.add_argument("--emotion", metavar="V,...", help=EMOTION_HELP)
    emotion.add_argument("--emotion-text", metavar="TEXT", help="describe the emotion in words")
    cli_long.add_options(say)
    say.add_argument("--emotion-strength", type=float, default=1.0, metavar="A", help="0 to 1 (default: 1)")
    say.add_argument("--seed", type=int, help="same seed, same result")
    say.add_argument("--beams", type=int, metavar="B", help="beams of the code generation")
    say.add_argument("--steps", type=int, metavar="N", help="Euler steps of the mel stage")
    say.add_argument("--speed", type=float, default=1.0, metavar="X", help="speaking rate, 2 is twice as fast (default: 1)")
    _engine_options(say)

    serve = _command(commands, "serve", None, "a speech service for other programs: POST /v1/audio/speech")
    cli_serve.register(serve, _engine)
    _engine_options(serve)

    cli_lab.register(commands, _command, _engine_options)

    info = _command(commands, "info", _info, "GPUs, settings, the weights that are found, and a pre-flight checklist")
    info.add_argument("--model-dir", metavar="DIR", help="release folder to look at")
    info.add_argument("--json", action="store_true", help="machine-readable output")

    download = _command(commands, "download", _download, "fetch the IndexTTS-2 release and the models it builds on (about 8 GB)")
    download.add_argument("--dir", metavar="DIR", default="checkpoints", help="where to put it (default: %(default)s)")
    download.add_argument("--emotion-text", action="store_true", help="also the model that reads emotions from text (1.2 GB)")

    bench = _command(commands, "bench", _bench, "stage times, RTF, tokens per second, peak memory")
    cli_bench.add_options(bench, _list_of)
    _engine_options(bench)

    evaluate = _command(commands, "evaluate", _evaluate, "how good a voice is: words, likeness, endings, speed, beside the source voices")
    cli_evaluate.add_options(evaluate)
    _engine_options(evaluate)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens; full tracebacks")
    parser.set_defaults(run=run)
    return parser


def _engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-dir", metavar="DIR", help="release folder (default: checkpoints/, else the bundled voice)")
    parser.add_argument("--random-weights", action="store_true", help="no files: random weights, real timings, noise for sound")
    parser.add_argument("--size", choices=("release", "small"), default="small", help="size of random weights (default: %(default)s)")
    parser.add_argument("--device", help="cuda, cuda:N, mps, xpu or cpu (default: the best present)")
    parser.add_argument("--precision", default="auto", help="fp32, tf32, bf16 or fp16 (default: bf16 or fp16 on a GPU, fp32 elsewhere)")


def _engine(arguments: argparse.Namespace, *, use_accel: bool = True) -> Any:
    from indextts.pipeline import IndexTTS2

    options = {"use_fp16": True, "device": arguments.device, "precision": arguments.precision, "use_accel": use_accel}
    if arguments.random_weights:
        if arguments.model_dir:
            raise ValueError("--random-weights and --model-dir exclude each other")
        return IndexTTS2.from_random(arguments.size, **options)
    return IndexTTS2(model_dir=arguments.model_dir, **options)


def _say(arguments: argparse.Namespace) -> int:
    from indextts.audio import load_audio
    from indextts.release import find_release
    from indextts.request import check_output

    # What needs no model is checked before gigabytes are loaded; infer checks the rest before its work.
    if not 0.25 <= arguments.speed <= 4:
        raise ValueError(f"--speed must be between 0.25 and 4, got {arguments.speed:g}")
    cli_long.check_options(arguments)
    text = _read_stdin() if arguments.text == "-" else arguments.text
    if text is not None and not text.strip():
        raise ValueError("the text is empty: nothing to say")
    emotion: dict[str, Any] = {}
    if arguments.emotion is not None:
        emotion["emo_vector"] = _list_of(float)(arguments.emotion)
    if arguments.emotion_text is not None:
        emotion.update(use_emo_text=True, emo_text=arguments.emotion_text)
    check_output(arguments.output, "--output")
    for option, clip in (("--voice", arguments.voice), ("--emotion-audio", arguments.emotion_audio)):
        if clip is not None:
            load_audio(clip, role=option)
    if arguments.voice is None and not arguments.voice_of and not arguments.random_weights and not find_release(arguments.model_dir).voices:
        raise ValueError("these weights have no reference clip of their own; name one of 3 to 15 seconds with --voice")
    generation = {} if arguments.beams is None else {"num_beams": arguments.beams}
    request = {
        "emo_audio_prompt": arguments.emotion_audio,
        "emo_alpha": arguments.emotion_strength,
        "duration_factor": 1 / arguments.speed,
        "diffusion_steps": arguments.steps,
        **emotion,
        **generation,
    }
    if arguments.file is not None:
        _out(cli_long.say_file(arguments, request, functools.partial(_engine, arguments), _progress_bar))
        return 0
    with _engine(arguments) as tts, _progress_bar() as progress:
        voice = arguments.voice if arguments.voice is not None else tts.default_voice()
        path = tts.infer(voice, text, arguments.output, seed=arguments.seed, progress=progress, **request)
        record = tts.last_telemetry
    _out(f"{path}: {record.audio_s:.2f} s of speech in {record.total_s:.2f} s (RTF {record.rtf:.2f}), seed {record.seed}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from indextts.preflight import preflight

    report = preflight(arguments.model_dir)
    _out(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if arguments.json else str(report))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from indextts.release import download_release

    with _progress_bar() as progress:
        path = download_release(arguments.dir, include_qwen=arguments.emotion_text, progress=progress)
    _out(f"complete: {path}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    return cli_evaluate.run(arguments, _engine, _progress_bar, _out)


def _bench(arguments: argparse.Namespace) -> int:
    _out(cli_bench.run(arguments, _engine, _progress_bar))
    return 0


def _list_of(kind: type) -> Any:
    def parse(value: str) -> list[Any]:
        try:
            return [kind(part.strip()) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"{value!r} is not a comma-separated list of numbers") from None

    parse.__name__ = f"list of {kind.__name__}"
    return parse


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not {error.encoding} text") from error


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A function (fraction, message) that draws a bar; draws nothing where stderr is no terminal."""
    from tqdm import tqdm

    with tqdm(total=100, bar_format="{desc:24.24} {bar} {percentage:3.0f}%", leave=False, disable=None) as bar:

        def show(fraction: float, message: str) -> None:
            bar.set_description_str(message, refresh=False)
            bar.update(round(100 * fraction) - bar.n)

        yield show


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        from tqdm import tqdm

        tqdm.write(f"indextts: warning: {message}", file=sys.stderr)  # not into the middle of a progress bar

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _out(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")  # a console may lack the characters


def _fail(error: object, code: int) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    sys.stderr.write(f"indextts: {message}\n")
    return code


def _version() -> str:
    from indextts import __version__

    return f"indextts {__version__}"


if __name__ == "__main__":
    sys.exit(main())
