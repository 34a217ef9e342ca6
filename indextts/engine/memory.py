"""Device memory: what the stages need, whether it is there, and what to say when it is not.

Needs are learnt. Every stage is watched while it runs: how much more memory was in use at its worst than before, per unit of its work
(positions of sequences for the GPT, mel frames for solver and vocoder). The dearest unit seen so far predicts the next run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from indextts.engine.batching import Utterance
from indextts.models.length_regulator import FRAMES_PER_CODE

T = TypeVar("T")
MB = 1024 * 1024
MARGIN = 1.1  # on predictions: blocks of the allocator are larger than what is asked of it
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")  # of MPS, CPU and XPU, which raise plain RuntimeErrors


class OutOfMemory(torch.OutOfMemoryError):
    """There is not enough memory for one segment, although everything that can be made again was given up. Says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class Probe(Protocol):
    """Reads a device's memory, in MB."""

    def free_mb(self) -> float:
        """What could be allocated now."""

    def allocated_mb(self) -> float:
        """What tensors hold."""

    def peak_mb(self) -> float:
        """The most that they held since the last :meth:`reset_peak`."""

    def reset_peak(self) -> None:
        """Begin a new peak."""


def cuda_bytes(device: torch.device, what: str, which: str = "current") -> int:
    """A number of torch's allocator for a CUDA device, such as ``allocated_bytes``; ``which``: ``current`` or ``peak``.

    Ten times quicker than torch's functions for it, which go through all numbers that there are and are called several times a sentence.
    """
    counts = torch.cuda.memory_stats_as_nested_dict(device)
    return int(counts[what]["all"][which]) if counts else 0


class CudaProbe:
    """A CUDA device through torch's allocator; free is what the driver has and what the allocator keeps for later."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free_mb(self) -> float:
        """See the class."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return (free + cuda_bytes(self._device, "reserved_bytes") - cuda_bytes(self._device, "allocated_bytes")) / MB

    def allocated_mb(self) -> float:
        """Of this process."""
        return cuda_bytes(self._device, "allocated_bytes") / MB

    def peak_mb(self) -> float:
        """Of this process."""
        return cuda_bytes(self._device, "allocated_bytes", "peak") / MB

    def reset_peak(self) -> None:
        """Torch's own counter."""
        torch.cuda.reset_peak_memory_stats(self._device)


class MemoryGauge:
    """What each stage needs, learnt while it runs. Without a ``probe`` nothing is known, and everything is taken to fit."""

    def __init__(self, probe: Probe | None) -> None:
        self.probe = probe
        self.unit_mb: dict[str, float] = {}  # the dearest unit of each stage so far
        self.peak_mb = 0.0  # of the whole device since :meth:`begin`

    @classmethod
    def of(cls, device: torch.device) -> MemoryGauge:
        """For a device: CUDA is known, others are not."""
        return cls(CudaProbe(device) if device.type == "cuda" else None)

    def begin(self) -> None:
        """A new inference."""
        self.peak_mb = 0.0
        if self.probe is not None:
            self.probe.reset_peak()

    def read_peak(self) -> float:
        """The most memory that was in use since :meth:`begin`."""
        if self.probe is not None:
            self.peak_mb = max(self.peak_mb, self.probe.peak_mb())
        return self.peak_mb

    @contextlib.contextmanager
    def stage(self, name: str, units: float) -> Iterator[None]:
        """Learn from what the body needs; if memory runs out in it, that it needs more than there was."""
        if self.probe is None:
            yield
            return
        self.read_peak()
        self.probe.reset_peak()
        before, free = self.probe.allocated_mb(), self.probe.free_mb()
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                self._learn(name, units, MARGIN * free)
            raise
        self._learn(name, units, self.probe.peak_mb() - before)

    def predict_mb(self, batch: Sequence[Utterance], codes_per_token: float) -> float:
        """What the dearest stage of a batch is expected to need; 0 while nothing was learnt."""
        needs = stage_units(batch, codes_per_token)
        return MARGIN * max(self.unit_mb.get(name, 0.0) * units for name, units in needs.items())

    def lacking_mb(self, batch: Sequence[Utterance], codes_per_token: float, held_mb: float = 0.0) -> float:
        """How much memory a batch is expected to lack, 0 if it fits. ``held_mb``: of buffers that the stages would use again."""
        if self.probe is None:
            return 0.0
        return max(0.0, self.predict_mb(batch, codes_per_token) - self.probe.free_mb() - held_mb)

    def _learn(self, name: str, units: float, needed_mb: float) -> None:
        self.unit_mb[name] = max(self.unit_mb.get(name, 0.0), needed_mb / max(1.0, units))


def stage_units(batch: Sequence[Utterance], codes_per_token: float) -> dict[str, float]:
    """Units of work that a batch is expected to be in each stage: rows times the longest, since shorter rows are padded."""
    codes = max(min(one.sampling.max_mel_tokens, one.forced_codes or codes_per_token * len(one)) for one in batch)
    frames = FRAMES_PER_CODE * codes * max(one.duration_factor for one in batch)
    prompt = max(one.speaker.mel.shape[-1] for one in batch)
    rows, beams = len(batch), batch[0].sampling.num_beams
    return {
        "gpt": rows * (max(map(len, batch)) + beams * codes),
        "s2mel": rows * (prompt + frames),
        "bigvgan": rows * frames,
    }


def explain(error_text: str, doing: str, remedies: Sequence[tuple[bool, str]], free_mb: float | None) -> OutOfMemory:
    """The error for the user. ``remedies``: whether each applies, and what it is."""
    there = "" if free_mb is None else f" ({free_mb:.0f} MB were free)"
    todo = "; ".join(text for applies, text in remedies if applies)
    return OutOfMemory(f"out of memory while {doing}{there}, also after giving up caches and graphs. What helps: {todo}. [{error_text}]")


def first_line(error: BaseException) -> str:
    """The error's message without its traceback, which would keep the memory of what failed."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def try_twice(work: Callable[[], T], give_back: Callable[[], None], explained: Callable[[str], OutOfMemory]) -> T:
    """``work()``, and once more after ``give_back()`` if memory ran out. Errors: what ``explained`` makes of the second time's message."""
    for again in (True, False):
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            text = first_line(error)
        if again:
            give_back()  # outside of the handler: the error's traceback holds the tensors of what failed
    raise explained(text)
