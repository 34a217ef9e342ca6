"""Players for notebooks: one sound, several to switch between, and one that is still being made. Levels are never changed.

Each is a plain ES module beside this file (no build step, nothing fetched at run time) and speaks 16-bit WAV bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets as T

from widgets.sound import wav_bytes

if TYPE_CHECKING:
    from indextts.runs import RunRecord

_HERE = Path(__file__).parent
_COMMON = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("keys.js", "player_common.js"))
STYLE = (_HERE / "player.css").read_text(encoding="utf-8")


def module(name: str) -> str:
    """The ES module of a widget: what all share, then its own file."""
    return f"{_COMMON}\n{(_HERE / name).read_text(encoding='utf-8')}"


class Player(anywidget.AnyWidget):
    """Plays one sound: play/pause (space), a waveform to seek in (mouse, arrows, Home, End), download.

    ``wav``: 16-bit WAV bytes, empty for none; ``label`` is shown, ``filename`` offered for the download; ``autoplay`` plays new sound at
    once, where the browser allows it.

    >>> Player.of(record)  # doctest: +SKIP
    """

    _esm = module("player.js")
    _css = STYLE
    wav = T.Bytes(b"").tag(sync=True)
    label = T.Unicode("").tag(sync=True)
    filename = T.Unicode("speech.wav").tag(sync=True)
    autoplay = T.Bool(False).tag(sync=True)

    @classmethod
    def of(cls, record: RunRecord, **traits: Any) -> Player:
        """A player of a run's sound."""
        player = cls(**traits)
        player.show(record)
        return player

    def show(self, record: RunRecord) -> None:
        """Put a run's sound in."""
        with self.hold_sync():
            self.label = record.label
            self.filename = f"run_{record.id}.wav"
            self.wav = wav_bytes(record.samples, record.sample_rate)

    def set_sound(self, samples: Any, sample_rate: int, label: str = "") -> None:
        """Put a sound in: mono, int16 or float in [-1, 1]."""
        with self.hold_sync():
            self.label = label
            self.wav = wav_bytes(samples, sample_rate)

    def clear(self) -> None:
        """Take the sound out."""
        with self.hold_sync():
            self.label, self.wav = "", b""


class SwitchPlayer(anywidget.AnyWidget):
    """Several sounds that run together, one of them heard: buttons or keys 1, 2, 3 switch at once, at the same position; space plays.

    ``tracks``: dicts with ``label`` and ``wav`` (16-bit WAV bytes); ``current``: index of the one that is heard. With ``blind`` neither
    labels nor waveform are shown, but ``labels`` (A, B, X). ``playing`` can be set; ``position_s`` follows play, pause and seek.
    """

    _esm = module("switch_player.js")
    _css = STYLE
    tracks = T.List(T.Dict()).tag(sync=True)
    current = T.Int(0).tag(sync=True)
    blind = T.Bool(False).tag(sync=True)
    labels = T.List(T.Unicode(), ["A", "B", "X"]).tag(sync=True)
    playing = T.Bool(False).tag(sync=True)
    position_s = T.Float(0.0).tag(sync=True)

    def set_sounds(self, sounds: Sequence[tuple[str, Any, int]]) -> None:
        """Put sounds in, as (label, mono samples, sample rate in Hz); the first is heard."""
        tracks = [{"label": label, "wav": wav_bytes(samples, rate)} for label, samples, rate in sounds]
        with self.hold_sync():
            self.current, self.playing, self.position_s = 0, False, 0.0
            self.tracks = tracks

    @T.validate("current")
    def _existing(self, proposal: Any) -> int:
        index = int(proposal["value"])
        if index and not 0 <= index < len(self.tracks):
            raise T.TraitError(f"current is {index}; there are {len(self.tracks)} tracks")
        return index


class StreamPlayer(anywidget.AnyWidget):
    """Plays sound while it is made, without gaps as long as it comes in time. Once the kernel has it all, show a :class:`Player`.

    ``received_s`` seconds arrived in the page, ``gaps`` times the sound ran out, ``playing`` whether it is heard.
    """

    _esm = module("stream_player.js")
    _css = STYLE
    received_s = T.Float(0.0).tag(sync=True)
    gaps = T.Int(0).tag(sync=True)
    playing = T.Bool(False).tag(sync=True)

    def begin(self, sample_rate: int) -> None:
        """Forget what came before and get ready for sound at ``sample_rate`` Hz."""
        self.send({"type": "begin", "rate": int(sample_rate)})

    def feed(self, samples: Any) -> None:
        """Hand over the next piece, float32 (n,) in [-1, 1]."""
        piece = np.ascontiguousarray(samples, dtype="<f4").reshape(-1)
        if piece.size:
            self.send({"type": "piece"}, [piece.tobytes()])

    def end(self) -> None:
        """Say that nothing more comes; what is there plays on."""
        self.send({"type": "end"})

    def stop(self) -> None:
        """Be silent at once."""
        self.send({"type": "stop"})
