"""The shards of synthetic speech on the training device: everything is random access, nothing is copied twice."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indextts.training.phones import PHONES, UNKNOWN

logger = logging.getLogger(__name__)

SAMPLE_RATE = 22050
TOKEN_SAMPLES = 441  # samples at 22 050 Hz from one semantic token to the next
IGNORED = -100
_FEWEST_PHONES = 6  # that tell a tempo
_Ints = npt.NDArray[np.int64]


class Corpus:
    """Utterances of the shards found so far in ``folder``; :meth:`refresh` finds more while they are made, up to ``most_hours``.

    Without ``samples`` the sound itself is left on the disk.
    """

    def __init__(self, folder: Path, device: torch.device, seed: int = 0, *, most_hours: float = math.inf, samples: bool = True) -> None:
        self.folder, self.device = folder, device
        self._most_s, self._with_samples = 3600 * most_hours, samples
        self.rng = np.random.default_rng(seed)
        self._read: set[str] = set()
        self._samples = torch.zeros(0, dtype=torch.int16, device=device)
        self._labels = torch.zeros(0, dtype=torch.uint8, device=device)
        self._used = self._labels_used = 0
        self.starts: _Ints = np.zeros(0, np.int64)  # all per utterance
        self.lengths: _Ints = np.zeros(0, np.int64)
        self.label_starts: _Ints = np.zeros(0, np.int64)
        self.tokens: _Ints = np.zeros(0, np.int64)
        self.speakers: _Ints = np.zeros(0, np.int64)
        self.styles: _Ints = np.zeros(0, np.int64)
        self.labelled: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.tempo: npt.NDArray[np.float32] = np.zeros(0, np.float32)  # see tempo_of
        self.paused: npt.NDArray[np.float32] = np.zeros(0, np.float32)  # see pauses_of
        self.told: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)  # whose text is known
        self.texts: list[str] = []

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def seconds(self) -> float:
        """Seconds of speech held."""
        return self._used / SAMPLE_RATE

    def wait(self, seconds: float, timeout_s: float) -> None:
        """Read shards until ``seconds`` of speech are here; ``RuntimeError`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.seconds < seconds:
            if not self.refresh() and time.monotonic() > deadline:
                raise RuntimeError(
                    f"only {self.seconds:.0f} s of speech in {self.folder} after {timeout_s:.0f} s; {seconds:.0f} s are needed"
                )
            time.sleep(0.1)

    def refresh(self, most: int = 8) -> int:
        """Read at most ``most`` new shards; returns how many."""
        if self.seconds >= self._most_s:
            return 0
        new = [path for path in self._present() if path.name not in self._read][:most]
        for path in new:
            self._read.add(path.name)
            self.load(path)
        return len(new)

    def _present(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))

    def load(self, path: Path) -> None:
        """Add one shard."""
        with np.load(path) as shard:
            samples, labels = shard["samples"], shard["labels"]
            lengths, tokens = shard["lengths"].astype(np.int64), shard["tokens"].astype(np.int64)
            speakers, styles = shard["speakers"].astype(np.int64), shard["styles"].astype(np.int64)
            texts = bytes(shard["texts"]).decode().split("\n")
        label_starts = np.cumsum(tokens) - tokens
        self.starts = np.concatenate([self.starts, self._used + np.cumsum(lengths) - lengths])
        self.label_starts = np.concatenate([self.label_starts, self._labels_used + label_starts])
        self.lengths = np.concatenate([self.lengths, lengths])
        self.tokens = np.concatenate([self.tokens, tokens])
        self.speakers = np.concatenate([self.speakers, speakers])
        self.styles = np.concatenate([self.styles, styles])
        self.labelled = np.concatenate([self.labelled, np.minimum.reduceat(labels, label_starts) != UNKNOWN])
        self.tempo = np.concatenate([self.tempo, tempo_of(labels, label_starts)])
        self.paused = np.concatenate([self.paused, pauses_of(labels, label_starts)])
        if self._with_samples:
            self._samples, self._used = _appended(self._samples, self._used, torch.from_numpy(samples))
        else:
            self._used += samples.size
        self._labels, self._labels_used = _appended(self._labels, self._labels_used, torch.from_numpy(labels))
        self.told = np.concatenate([self.told, np.array([bool(text) for text in texts])])
        self.texts += texts

    def draw(self, count: int, least_tokens: int, among: npt.NDArray[np.bool_] | None = None) -> _Ints:
        """``count`` random utterances with at least ``least_tokens`` semantic tokens (the longest ones if there are none)."""
        fits = self.tokens >= min(least_tokens, int(self.tokens.max()))
        if among is not None:
            fits &= among
        pool = np.flatnonzero(fits)
        return self.rng.choice(pool, count)

    def offsets(self, ids: _Ints, tokens: int) -> _Ints:
        """A random first token for a piece of ``tokens`` in each utterance; often the very beginning or end."""
        room = np.maximum(self.tokens[ids] - tokens - 1, 0)
        kind = self.rng.random(len(ids))
        middle = (self.rng.random(len(ids)) * (room + 1)).astype(np.int64)
        return np.where(kind < 0.2, 0, np.where(kind < 0.4, room, middle))

    def waves(self, ids: _Ints, offsets: _Ints, samples: int) -> Tensor:
        """Pieces (B, samples) in [-1, 1] at 22 050 Hz from token ``offsets`` on; zero past an utterance's end."""
        first = torch.from_numpy(self.starts[ids] + offsets * TOKEN_SAMPLES).to(self.device)
        end = torch.from_numpy(self.starts[ids] + self.lengths[ids]).to(self.device)
        index = first[:, None] + torch.arange(samples, device=self.device)
        pieces = self._samples[index.clamp(max=self._used - 1)].float() / 32768
        return pieces.masked_fill(index >= end[:, None], 0)

    def labels(self, ids: _Ints, offsets: _Ints, tokens: int) -> Tensor:
        """Phones (B, tokens) int64, :data:`IGNORED` where unknown or past the end."""
        first = torch.from_numpy(self.label_starts[ids] + offsets).to(self.device)
        end = torch.from_numpy(self.label_starts[ids] + self.tokens[ids]).to(self.device)
        index = first[:, None] + torch.arange(tokens, device=self.device)
        pieces = self._labels[index.clamp(max=self._labels_used - 1)].long()
        return pieces.masked_fill((pieces == UNKNOWN) | (index >= end[:, None]), IGNORED)

    def labels_from(self, first: int) -> list[npt.NDArray[np.uint8]]:
        """Phones (T,) of the whole utterances from ``first`` on, unknown ones included; asks the device once."""
        if first >= len(self):
            return []
        start = int(self.label_starts[first])
        labels = np.asarray(self._labels[start : self._labels_used].cpu())
        return np.split(labels, self.label_starts[first + 1 :] - start)


def tempo_of(labels: npt.NDArray[np.uint8], starts: _Ints) -> npt.NDArray[np.float32]:
    """How slowly each utterance is spoken: log of the tokens per phone, pauses left out; NaN where too few phones are known.

    ``labels``: of all utterances one after the other; ``starts``: where each begins.
    """
    spoken = (labels != UNKNOWN) & (labels != PHONES.index("pau"))
    begins = np.diff(labels, prepend=labels[:1]) != 0
    begins[starts] = True
    phones = np.add.reduceat(spoken & begins, starts, dtype=np.int64)
    ratio = np.add.reduceat(spoken, starts, dtype=np.int64) / np.maximum(phones, 1)
    return np.where(phones >= _FEWEST_PHONES, np.log(np.maximum(ratio, 1)), np.nan).astype(np.float32)


def pauses_of(labels: npt.NDArray[np.uint8], starts: _Ints) -> npt.NDArray[np.float32]:
    """Share of each utterance that is pauses, from its first phone to its last; NaN where no phones are known. Arguments as above."""
    shares = np.full(len(starts), np.nan, np.float32)
    for i, one in enumerate(np.split(labels, starts[1:])):
        pause = one == PHONES.index("pau")
        spoken = np.flatnonzero(~pause & (one != UNKNOWN))
        if spoken.size:
            shares[i] = pause[spoken[0] : spoken[-1] + 1].mean()
    return shares


def _appended(store: Tensor, used: int, new: Tensor) -> tuple[Tensor, int]:
    """``store`` with ``new`` after its first ``used`` entries; grows by half when full."""
    needed = used + new.numel()
    if needed > store.numel():
        grown = torch.zeros(max(needed, int(1.5 * store.numel())), dtype=store.dtype, device=store.device)
        grown[:used] = store[:used]
        store = grown
    store[used:needed] = new.to(store.device)
    return store, needed
