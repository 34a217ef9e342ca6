"""``indextts say --file``: a book or a script, resumable."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

LARGEST_FILE = 64 * 2**20  # bytes; the longest novels have less than 10 MB


def add_options(say: argparse.ArgumentParser) -> None:
    """What ``say`` takes beside a text."""
    say.add_argument("--file", metavar="TXT", help="speak a text file of any length; interrupted, run it again and it goes on")
    say.add_argument(
        "--voice-of",
        metavar="NAME=WAV",
        action="append",
        default=[],
        help="with --file: the voice of lines that begin with 'NAME:'; may be given several times",
    )
    say.add_argument("--keep-parts", action="store_true", help="with --file: keep the finished sentences, to change some of them later")
    say.add_argument("--workers", metavar="N", help="with --file: worker processes (needs the extra cluster), or auto: one per GPU")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse combinations that mean nothing. Errors: ``ValueError``."""
    if (arguments.text is None) == (arguments.file is None):
        raise ValueError("give a --file, or a text (see indextts say --help)")
    if arguments.file is None and (arguments.voice_of or arguments.keep_parts or arguments.workers):
        raise ValueError("--voice-of, --keep-parts and --workers go with --file")
    workers = arguments.workers
    if workers not in (None, "auto") and not (workers.isdigit() and int(workers) >= 1):
        raise ValueError(f"--workers must be a whole number >= 1 or auto, got {workers!r}")


def read_text(path: str) -> str:
    """The file's text. Errors: ``ValueError``, ``FileNotFoundError``."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"--file {path!r}: no such file")
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"--file {path!r} is larger than {LARGEST_FILE // 2**20} MB; split it")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--file {path!r} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise ValueError(f"--file {path!r} cannot be read: {error.strerror}") from error


def read_voices(pairs: list[str]) -> dict[str, str]:
    """``NAME=WAV`` pairs as a mapping. Errors: ``ValueError``."""
    voices: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name.strip() and equals and path):
            raise ValueError(f"--voice-of must be NAME=WAV, got {pair!r}")
        voices[name.strip()] = path
    return voices


def say_file(
    arguments: argparse.Namespace,
    request: Mapping[str, Any],
    make_engine: Callable[[], Any],
    progress_bar: Callable[[], AbstractContextManager[Callable[[float, str], None]]],
) -> str:
    """Speak the file with ``infer``'s arguments ``request``; the line to print."""
    from contextlib import ExitStack

    from indextts.longform import duration
    from indextts.longform_text import read_script

    text, voices = read_text(arguments.file), read_voices(arguments.voice_of)
    read_script(text, voices)  # a bad script is refused before gigabytes are loaded
    with ExitStack() as stack:
        tts = stack.enter_context(make_engine())
        pool = None
        if arguments.workers:
            from indextts.parallel import WorkerPool

            count = "auto" if arguments.workers == "auto" else int(arguments.workers)
            pool = stack.enter_context(WorkerPool(count, engine=make_engine))
        progress = stack.enter_context(progress_bar())
        voice = arguments.voice
        if voice is None and (tts.release is None or tts.release.voices):
            voice = tts.default_voice()
        options = {"voices": voices, "seed": arguments.seed or 0, "keep_parts": arguments.keep_parts, "pool": pool, "progress": progress}
        result = tts.infer_long(voice, text, arguments.output, **options, **request)
    earlier = f", {result.found} of them from an earlier run" if result.found else ""
    spoken = f"{result.sentences} sentences{earlier}, {duration(result.audio_s)} of speech in {duration(result.total_s)}"
    return f"{os.fspath(result.path)}: {spoken}"
