"""What the notebooks are made of: an engine, predictions, measurements, recorded figures, plots and sound.

A lesson's cells stay short because the work is here, one file for each idea; the experiments of a lesson are in a module named after it.
"""

from __future__ import annotations

from widgets.lessons.engine import SENTENCE, can_speak, open_engine, speak
from widgets.lessons.measure import Timing, interleaved, synchronize, this_machine, timed
from widgets.lessons.pages import note, predict, table
from widgets.lessons.plots import bars, heat, lines, panels, spread
from widgets.lessons.records import recorded
from widgets.lessons.sound import listen, play

__all__ = [
    "SENTENCE",
    "Timing",
    "bars",
    "can_speak",
    "heat",
    "interleaved",
    "lines",
    "listen",
    "note",
    "open_engine",
    "panels",
    "play",
    "predict",
    "recorded",
    "speak",
    "spread",
    "synchronize",
    "table",
    "this_machine",
    "timed",
]
