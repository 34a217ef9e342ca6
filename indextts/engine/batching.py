"""Which segments are rendered together, and what each of them draws from."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence, Sized
from dataclasses import dataclass

import torch
from torch import Tensor

from indextts.engine.reference_cache import SpeakerPrompt
from indextts.engine.sampling import SamplingParams

# A decode step costs hardly more for more rows, so a batch may end far apart; in solver and vocoder all frames cost, padding too.
DECODE_TOLERANCE, FRAMES_TOLERANCE = 1.0, 0.2
_NOISE = 0x5DEECE66  # within the 32 bits that every generator uses
# Slack for products such as 1.15 * 100 that binary fractions put just below a whole length.
_ROUNDING = 1e-9


def group_sentences_by_length(sentences: Sequence[Sized], tolerance: float = 0.2, max_batch_size: int = 4) -> list[list[int]]:
    """Group sentences of similar length, so that little of a batch is padding.

    ``sentences``: anything with a length, usually lists of tokens. ``tolerance``: how much longer than the shortest of its batch
    a sentence may be, as a fraction. Returns the indices of every sentence once, shortest batch first, shortest sentence first
    within a batch, equal lengths in their given order.

    Errors: ``ValueError`` for a negative or infinite tolerance, a batch size below 1, or one string instead of a list.
    """
    if isinstance(sentences, (str, bytes)):
        raise ValueError("sentences is one string; pass a list of sentences, each a list of tokens")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance}; it must be a finite fraction >= 0, for example 0.2")
    if isinstance(max_batch_size, bool) or not isinstance(max_batch_size, int) or max_batch_size < 1:
        raise ValueError(f"max_batch_size is {max_batch_size!r}; it must be a whole number >= 1")

    batches: list[list[int]] = []
    limit = -1.0
    for index in sorted(range(len(sentences)), key=lambda i: len(sentences[i])):
        length = len(sentences[index])
        if batches and length <= limit and len(batches[-1]) < max_batch_size:
            batches[-1].append(index)
        else:
            batches.append([index])
            limit = length * (1 + tolerance) + _ROUNDING
    return batches


@dataclass(frozen=True)
class Utterance:
    """One text segment of one request, with everything that its sound depends on."""

    request: int
    index: int  # of the segment in its request
    ids: tuple[int, ...]
    speaker: SpeakerPrompt
    emotion: Tensor  # (1, D)
    seed: int  # of the request
    sampling: SamplingParams
    diffusion_steps: int
    guidance: float
    duration_factor: float
    forced_codes: int | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def settings(self) -> tuple[Hashable, ...]:
        """What all utterances of a batch must have in common. Voice, emotion, seed and speed may differ."""
        return self.sampling, self.forced_codes, self.diffusion_steps, self.guidance


def segment_generators(seed: int, index: int, device: torch.device) -> tuple[torch.Generator, torch.Generator]:
    """What segment ``index`` of a request with ``seed`` draws from: its codes and its noise.

    Each segment has its own, so that its sound depends neither on the segments before it nor on its batch; and the noise has its own, so
    that it does not depend on how many draws the codes took.
    """
    own = (seed + 7919 * index) % 2**63
    return torch.Generator(device).manual_seed(own), torch.Generator(device).manual_seed(own ^ _NOISE)


def plan_batches(utterances: Sequence[Utterance], size: int, tolerance: float = DECODE_TOLERANCE) -> list[list[int]]:
    """Batches of at most ``size`` utterances of equal settings and similar text lengths, as indices; those of one setting together."""
    settings: dict[Hashable, list[int]] = {}
    for index, utterance in enumerate(utterances):
        settings.setdefault(utterance.settings, []).append(index)
    return [
        [members[i] for i in group]
        for members in settings.values()
        for group in group_sentences_by_length([utterances[i] for i in members], tolerance, size)
    ]


def default_batch_size(device: torch.device, use_accel: bool) -> int:
    """Segments rendered together unless said otherwise: by the memory of a GPU, 4 elsewhere, 1 on the plain path.

    A segment of release size needs about 0.3 GB while it is rendered with 3 beams, and the steps of a batch cost little more than those
    of one.
    """
    if not use_accel:
        return 1
    if device.type != "cuda":
        return 4
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
    return next((size for least, size in ((40, 16), (20, 8), (10, 4), (7, 2)) if gigabytes >= least), 1)
