"""Clones of voices: renders, remembers, and takes a voice that fails for a silent one, so that an evaluation runs to its end."""

from __future__ import annotations

import logging
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from indextts.evaluate.sound import Floats, floats
from indextts.evaluate.sources import Sound, Voice

if TYPE_CHECKING:
    from indextts.engine.telemetry import Telemetry
    from indextts.pipeline import IndexTTS2

logger = logging.getLogger(__name__)

_RANDOM_CODES = 60  # random weights stop when they please


@dataclass(frozen=True)
class Clip:
    """Mono samples (n,) at ``rate`` Hz; ``record`` is None where the engine gave no sound."""

    samples: Floats
    rate: int
    record: Telemetry | None = None

    @property
    def sound(self) -> Sound:
        """Samples and rate."""
        return self.samples, self.rate

    @property
    def hit_limit(self) -> bool:
        """Whether generation was stopped by force."""
        return self.record is not None and any(segment.hit_limit for segment in self.record.segments)


class Clones:
    """What ``tts`` makes of voices and texts, the same for the same ``seed``; equal requests are rendered once.

    Each pair of voice and text has draws of its own. With one seed for all, step by step the same numbers would decide, and all sentences
    would be quick or slow at the same places.
    """

    def __init__(self, tts: IndexTTS2, seed: int = 0) -> None:
        self.tts, self.seed = tts, seed
        self._limits: dict[str, Any] = {} if tts.release is not None else {"max_mel_tokens": _RANDOM_CODES}
        self._kept: dict[tuple[str, str, str], Clip] = {}
        self._sources: dict[tuple[str, str], Clip] = {}

    def clone(self, voice: Voice, text: str, **arguments: Any) -> Clip:
        """``text`` in the voice of the clip; ``arguments`` of ``infer`` besides."""
        key = (voice.name, text, repr(sorted(arguments.items())))
        if key not in self._kept:
            self._kept[key] = self._render(voice, text, arguments)
        return self._kept[key]

    def source(self, voice: Voice, text: str) -> Clip | None:
        """``text`` from the synthesiser that the clip came from, if there is one."""
        if voice.speak is None:
            return None
        key = (voice.name, text)
        if key not in self._sources:
            self._sources[key] = Clip(*voice.speak(text))
        return self._sources[key]

    def forget(self) -> None:
        """Drop the clones, after a switch that changes them."""
        self._kept.clear()

    def _render(self, voice: Voice, text: str, arguments: dict[str, Any]) -> Clip:
        samples, rate = voice.prompt
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what hit the limit is counted
            try:
                seed = (self.seed + zlib.crc32(f"{voice.name} {text}".encode())) % 2**32
                rate, wave = self.tts.infer((rate, samples), text, seed=seed, **self._limits, **arguments)
            except RuntimeError as error:
                logger.warning("%s: no sound for %r: %s", voice.name, text, error)
                return Clip(np.zeros(self.tts.sample_rate // 2, np.float32), self.tts.sample_rate)
        return Clip(floats(wave), rate, self.tts.last_telemetry)
