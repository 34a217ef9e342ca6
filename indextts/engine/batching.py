"""Which sentences are rendered together."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

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
