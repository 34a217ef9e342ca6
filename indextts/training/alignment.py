"""Which piece of the text every code speaks: from the phones' known times, so that attention can be shown where to look.

A GPT finds the alignment of codes and text by itself, but only after thousands of steps; the synthesisers know it. The pieces are matched
with the runs of equal phone labels (Needleman and Wunsch, 1970), since a lexicon and a synthesiser pronounce a word differently now and
then, and since some words are spelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indextts.models.gpt2 import GPT2Attention
from indextts.text.lexicon import BOUNDARY
from indextts.training.phones import PHONES, UNKNOWN

NOWHERE = -1  # a code whose piece is not known
_GAP = 0.7  # of a phone that one side lacks
_ALIKE = {"ah": {"ax", "ah", "ih", "eh", "uh"}, "ih": {"ax", "iy"}, "er": {"r", "ax"}, "ao": {"aa", "ow"}, "aa": {"ao", "ah"}}
_VOWELS = frozenset(("aa", "ae", "ah", "ao", "aw", "ax", "ay", "eh", "er", "ey", "ih", "iy", "ow", "oy", "uh", "uw"))
_PAUSE, _LETTER, _SILENT = "pause", "letter", "silent"

Positions = npt.NDArray[np.int16]


def align(pieces: Sequence[str], labels: npt.NDArray[np.uint8]) -> Positions:
    """For each of the labels (T,), indices into ``PHONES`` or unknown, the index of the piece that it speaks, or :data:`NOWHERE`."""
    positions = np.full(len(labels), NOWHERE, np.int16)
    kinds = [_kind(piece) for piece in pieces]
    spoken = [i for i, kind in enumerate(kinds) if kind != _SILENT]
    edges = np.flatnonzero(np.diff(labels)) + 1
    starts = np.concatenate([[0], edges]).astype(int)
    ends = np.concatenate([edges, [len(labels)]]).astype(int)
    runs = [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if labels[a] != UNKNOWN]
    if not spoken or not runs:
        return positions
    costs = np.array([_costs(kinds[i]) for i in spoken])[:, [int(labels[a]) for a, _ in runs]]
    for row, column in _path(costs):
        positions[runs[column][0] : runs[column][1]] = spoken[row]
    return positions


def _kind(piece: str) -> str:
    """A phone without stress, a pause, a letter, or nothing that sounds."""
    if piece in (",", ".", "?", "!", "-"):
        return _PAUSE
    if piece in (BOUNDARY, "'"):
        return _SILENT
    return piece.rstrip("012") if piece.islower() else _LETTER


_table: dict[str, list[float]] = {}


def _costs(kind: str) -> list[float]:
    """Cost of hearing each of ``PHONES`` where the text has ``kind``."""
    if kind not in _table:
        _table[kind] = [_cost(kind, phone) for phone in PHONES]
    return _table[kind]


def _cost(kind: str, phone: str) -> float:
    if kind == phone or (kind == _PAUSE and phone == "pau"):
        return 0.0
    if kind == _PAUSE or phone == "pau":
        return 2.0
    if kind == _LETTER:
        return 0.5
    if phone in _ALIKE.get(kind, ()):
        return 0.3
    return 0.9 if (kind in _VOWELS) == (phone in _VOWELS) else 1.3


def _path(costs: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Matched (row, column) pairs of the cheapest monotonic matching; what is left out on either side costs a gap."""
    rows, columns = costs.shape
    ramp = _GAP * np.arange(columns + 1)
    best = np.zeros((rows + 1, columns + 1))
    best[0] = ramp
    for i in range(rows):
        from_above = best[i] + _GAP
        from_above[1:] = np.minimum(from_above[1:], best[i, :-1] + costs[i])
        best[i + 1] = np.minimum.accumulate(from_above - ramp) + ramp
    pairs = []
    i, j = rows, columns
    while i and j:
        if np.isclose(best[i, j], best[i - 1, j - 1] + costs[i - 1, j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif np.isclose(best[i, j], best[i - 1, j] + _GAP):
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


class Watch:
    """Records what some attention layers of a GPT make of their input, to score where they look."""

    def __init__(self, layers: Sequence[GPT2Attention], heads: int) -> None:
        self._heads = heads
        self._layers = layers
        self._seen: list[Tensor] = []
        self._handles = [layer.c_attn.register_forward_hook(self._keep) for layer in layers]

    def _keep(self, module: object, inputs: object, output: Tensor) -> None:
        self._seen.append(output)

    def close(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()

    def loss(self, queries: Tensor, keys: Tensor, known: Tensor) -> Tensor:
        """Mean of -log of the attention that the watched heads pay from position ``queries`` (B, N) to ``keys`` (B, N).

        Only where ``known`` (B, N) is true. Attention over all earlier positions counts, as in the forward pass just made.
        """
        total = queries.new_zeros((), dtype=torch.float32)
        for layer, qkv in zip(self._layers, self._seen, strict=True):
            q, k, _ = (x.unflatten(-1, (layer.heads, -1))[:, :, : self._heads].transpose(1, 2) for x in qkv.chunk(3, dim=-1))
            q = q.gather(2, queries[:, None, :, None].expand(-1, self._heads, -1, q.shape[-1]))
            scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
            hidden = torch.arange(k.shape[2], device=k.device) > queries[:, None, :, None]
            logs = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
            there = logs.gather(-1, keys[:, None, :, None].expand(-1, self._heads, -1, 1))[..., 0]
            total = total - (there * known[:, None]).sum() / (known.sum() * self._heads).clamp(min=1)
        self._seen.clear()
        return total / len(self._layers)
