"""Panels for notebooks: views of one engine and its runs. Importing this package loads nothing heavy; panels come on first use.

>>> from widgets import Lab
>>> Lab(tts)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widgets.base import Panel
    from widgets.lab import Lab
    from widgets.listening import ListeningPanel
    from widgets.memory import MemoryPanel
    from widgets.model_card import ModelCardPanel
    from widgets.player import Player, StreamPlayer, SwitchPlayer
    from widgets.recorder import Recorder
    from widgets.session import Session
    from widgets.switches import SwitchesPanel
    from widgets.synthesis import SynthesisPanel
    from widgets.timing import TimingPanel
    from widgets.workers import WorkersPanel

__all__ = [
    "Lab",
    "ListeningPanel",
    "MemoryPanel",
    "ModelCardPanel",
    "Panel",
    "Player",
    "Recorder",
    "Session",
    "StreamPlayer",
    "SwitchPlayer",
    "SwitchesPanel",
    "SynthesisPanel",
    "TimingPanel",
    "WorkersPanel",
]

_HOMES = {
    "Lab": "lab",
    "ListeningPanel": "listening",
    "MemoryPanel": "memory",
    "ModelCardPanel": "model_card",
    "Panel": "base",
    "Player": "player",
    "Recorder": "recorder",
    "Session": "session",
    "StreamPlayer": "player",
    "SwitchPlayer": "player",
    "SwitchesPanel": "switches",
    "SynthesisPanel": "synthesis",
    "TimingPanel": "timing",
    "WorkersPanel": "workers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"widgets.{_HOMES[name]}"), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
