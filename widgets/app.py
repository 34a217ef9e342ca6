"""What the notebook behind ``indextts app`` shows: the lab over an engine that the command line chose."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as W

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

__all__ = ["FILES", "NOTEBOOK", "OPTIONS_VARIABLE", "open_app_engine", "open_lab"]

FILES = Path(__file__).with_name("app_files")
NOTEBOOK = FILES / "lab.ipynb"
OPTIONS_VARIABLE = "INDEXTTS_APP_OPTIONS"
NO_VOICE = "No weights were found, so these are random: everything runs and is timed for real, but the sound is noise."


def open_app_engine(options: dict[str, Any]) -> tuple[IndexTTS2, str]:
    """An engine as ``options`` say, and a sentence about it, empty if there is nothing to say.

    ``options``: ``model_dir``, ``random`` (a size), ``device``, ``precision``; all may be missing. Without weights to be found and none
    named, a tiny engine with random ones. Errors: those of ``IndexTTS2``.
    """
    from indextts.pipeline import IndexTTS2

    engine = {"use_fp16": True, **{name: options[name] for name in ("device", "precision") if options.get(name)}}
    if options.get("random"):
        return IndexTTS2.from_random(options["random"], **engine), "Random weights, as asked for: the sound is noise."
    if options.get("model_dir"):
        return IndexTTS2(model_dir=options["model_dir"], **engine), ""
    try:
        return IndexTTS2(**engine), ""
    except FileNotFoundError:
        return IndexTTS2.from_random("small", **engine), NO_VOICE


def open_lab() -> W.Widget:
    """The lab, or in words why there is none."""
    from widgets.base import words
    from widgets.lab import Lab

    try:
        tts, sentence = open_app_engine(json.loads(os.environ.get(OPTIONS_VARIABLE, "{}")))
    except (OSError, ValueError, RuntimeError) as error:
        return W.HTML(f'<p role="alert"><b>The engine could not be loaded.</b> {html.escape(words(error))}</p>')
    lab = Lab(tts)
    return W.VBox([W.HTML(f'<p role="note">{html.escape(sentence)}</p>'), lab]) if sentence else lab
