"""Utterances that belong together: of one speaker, in one manner, or both. What conditions a sequence is drawn from among its own.

Drawn exactly, not by trying: one manner in sixteen is rare, and a conditioning clip in another tempo teaches the language model not to
listen for tempo at all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Ints = npt.NDArray[np.int64]


class Groups:
    """Utterances 0 to N - 1 by their ``keys`` (N,)."""

    def __init__(self, keys: _Ints) -> None:
        self._order = np.argsort(keys, kind="stable")
        ordered = keys[self._order]
        starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
        sizes = np.diff(starts, append=len(keys))
        place = np.arange(len(keys))
        self._first, self._size, self._place = (np.empty(len(keys), np.int64) for _ in range(3))
        self._first[self._order] = np.repeat(starts, sizes)
        self._size[self._order] = np.repeat(sizes, sizes)
        self._place[self._order] = place - np.repeat(starts, sizes)

    def sizes(self, ids: _Ints) -> _Ints:
        """How many utterances share the key of each of ``ids`` (B,), itself included."""
        found: _Ints = self._size[ids]
        return found

    def others(self, ids: _Ints, rng: np.random.Generator) -> _Ints:
        """For each of ``ids`` (B,) another utterance with its key, all equally often; itself where it is the only one."""
        size = self._size[ids]
        step = 1 + (rng.random(len(ids)) * (size - 1)).astype(np.int64)
        found: _Ints = self._order[self._first[ids] + (self._place[ids] + step) % size]
        return found
