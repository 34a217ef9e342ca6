"""Recording a reference voice from the browser's microphone."""

from __future__ import annotations

from typing import Any

import anywidget
import traitlets as T

from widgets.player import STYLE, module
from widgets.sound import wav_samples


class Recorder(anywidget.AnyWidget):
    """A record button with a level meter. ``wav`` becomes the recording, a 16-bit mono WAV, when it is stopped or ``most_s`` is reached.

    Needs a browser that allows the microphone, which all do on https and localhost only; elsewhere the widget says so.
    """

    _esm = module("recorder.js")
    _css = STYLE
    wav = T.Bytes(b"").tag(sync=True)
    most_s = T.Float(15.0).tag(sync=True)

    @property
    def recording(self) -> tuple[int, Any] | None:
        """(sample rate in Hz, int16 (n,)), or None before the first recording. Errors: ``ValueError`` for bytes that are no recording."""
        return wav_samples(self.wav) if self.wav else None
