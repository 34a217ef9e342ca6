"""What leaves a run: waves with silences between segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from indextts.engine.telemetry import SegmentRecord, Stopwatch, Telemetry

NO_SOUND = "the model ended every segment at once, so there is no sound; try another seed or a longer text"


class Emitter:
    """Hands waves on with silences between segments, and notes in ``record`` what left and when."""

    def __init__(self, emit: Callable[[Tensor], object], silence_samples: int, watch: Stopwatch, record: Telemetry) -> None:
        self._emit, self._silence, self._watch, self._record = emit, torch.zeros(1, silence_samples), watch, record
        self.left_of_segment = 0  # samples that left of a segment that is not complete
        self.samples = 0

    def __call__(self, wave: Tensor, facts: SegmentRecord | None) -> None:
        """Wave (1, samples) float32 on the CPU; ``facts`` come with the last wave of a segment."""
        if facts is not None:
            self._record.segments.append(facts)
        if wave.shape[1]:
            if self._record.first_audio_s is None:
                self._record.first_audio_s = self._watch.now()
            elif not self.left_of_segment and self._silence.shape[1]:
                self._put(self._silence)
            self._put(wave)
        self.left_of_segment = 0 if facts is not None else self.left_of_segment + wave.shape[1]

    def _put(self, wave: Tensor) -> None:
        self.samples += wave.shape[1]
        self._emit(wave)


def joined(waves: Sequence[Tensor], silence_samples: int) -> Tensor:
    """Waves (1, samples) one after the other with silences between them; those of no samples do not count.

    Errors: ``RuntimeError`` if none has any.
    """
    heard = [wave for wave in waves if wave.shape[1]]
    if not heard:
        raise RuntimeError(NO_SOUND)
    silence = torch.zeros(1, silence_samples)
    return torch.cat([piece for wave in heard for piece in (silence, wave)][1:], dim=1)
