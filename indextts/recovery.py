"""When memory runs out: work that does not fit is foreseen, done again with less, or refused with advice."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from indextts.engine.batching import Utterance
from indextts.engine.controls import EngineControls, release_memory
from indextts.engine.memory import MemoryGauge, OutOfMemory, explain, try_twice
from indextts.engine.telemetry import Telemetry
from indextts.utils import resource_monitor

logger = logging.getLogger(__name__)
T = TypeVar("T")
CODES_PER_TEXT_TOKEN = 8  # of ordinary English speech: 50 codes and about 6 text tokens a second; for progress only


class Recovery(EngineControls):
    """Keeping an engine within its device's memory."""

    @property
    def low_memory(self) -> bool:
        """Whether memory comes before speed, for the same sound; may be set.

        What runs once per voice stays on the CPU and visits the device layer by layer, the vocoder works in chunks, and segments are
        rendered one by one unless ``batch_size`` is set.
        """
        return self._stages.low_memory

    @low_memory.setter
    def low_memory(self, on: bool) -> None:
        def change(_: object) -> None:
            self._stages.set_low_memory(bool(on))
            self._stages.clear_buffers()
            release_memory(self.device)

        self._worker.call(change)

    def _recovering(self, work: Callable[[], T], record: Telemetry, doing: str, utterance: Utterance | None = None) -> T:
        """The work, done again with all that can be spared given back if memory runs out. Errors: :class:`OutOfMemory` if it still does."""
        return try_twice(work, lambda: self._give_back(record), lambda text: self._explained(text, doing, utterance))

    def _give_back(self, record: Telemetry) -> None:
        """Free what can be made again: cached prompts that are not in use, graphs, buffers, tables."""
        record.out_of_memory += 1
        self.reference_cache.evict(0.0)
        self._stages.clear_buffers()
        release_memory(self.device)
        logger.warning("memory ran out on %s; caches, buffers and graphs were given back, and the work is done again", self.device)

    def _explained(self, text: str, doing: str, utterance: Utterance | None = None) -> OutOfMemory:
        beams = 1 if utterance is None else utterance.sampling.num_beams
        remedies = (
            (not self.low_memory, "low_memory=True"),
            (self.dtype is None and self.device.type == "cuda", "use_fp16=True"),
            (beams > 1, "num_beams=1"),
            (utterance is not None, "a smaller max_text_tokens_per_segment"),
            (utterance is None, "a shorter reference clip"),
            (True, "closing other programs that use the device"),
        )
        probe = self._gauge.probe
        return explain(text, doing, remedies, None if probe is None else probe.free_mb())

    def _before_inference(self) -> None:
        super()._before_inference()
        self._gauge.begin()

    def _after_inference(self, record: Telemetry) -> None:
        peak_mb, probe = self._gauge.read_peak(), self._gauge.probe
        super()._after_inference(record)
        if probe is not None and peak_mb > record.peak_vram_mb:  # torch's own peak counts from the last stage on
            record.peak_vram_mb = peak_mb
            resource_monitor.set_next_inference_mb(self.device.index or 0, peak_mb - probe.allocated_mb())

    @functools.cached_property
    def _gauge(self) -> MemoryGauge:
        return MemoryGauge.of(self.device)

    def _most_that_fit(self, batch: Sequence[Utterance]) -> int:
        """How many of ``batch`` are expected to fit together, at least one; what can be made again is given back before there are fewer."""
        for spared in (False, True):
            held = 0.0 if spared else self._stages.buffer_memory_mb
            if not self._gauge.lacking_mb(batch, CODES_PER_TEXT_TOKEN, held):
                return len(batch)
            if not spared:
                self.reference_cache.evict(0.0)
                self._stages.clear_buffers()
                release_memory(self.device)
        sizes = range(len(batch) - 1, 0, -1)
        return next((n for n in sizes if not self._gauge.lacking_mb(batch[:n], CODES_PER_TEXT_TOKEN)), 1)


def named_segment(utterance: Utterance) -> str:
    """How errors name a segment."""
    return f"segment {utterance.index + 1}, of {len(utterance)} text tokens"
