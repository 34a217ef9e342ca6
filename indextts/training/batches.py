"""What the language model trains on: texts as pieces, and batches of utterances of similar length."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indextts.text.lexicon import Lexicon, LexiconTokenizer
from indextts.training.alignment import NOWHERE, Positions, align
from indextts.training.coding import CodedCorpus
from indextts.training.letters import phone_tokenizer

_FEW = 200  # utterances that are aligned at once; each takes 2 ms, and a GPU would wait for it
_ALIGNERS = min(6, (os.cpu_count() or 1) - 4)  # processes for that
_POOL = 4096  # utterances that are sorted by length at a time
SPELLED = 0.12  # share of known words that training spells
# Recorded steps have few shapes, so their rows are padded to a common room for text and codes together. What one of the two may take of it
# is what the slowest and the fastest speech take, and more.
_ROOM_STEP = 64
_MOST_TEXT, _MOST_CODES = (3, 8), (7, 8)


@dataclass
class GPTBatch:
    """Rows of similar length, padded; lengths count without start and stop."""

    ids: npt.NDArray[np.int64]
    text: Tensor  # (B, L)
    text_lengths: Tensor
    codes: Tensor  # (B, N)
    code_lengths: Tensor
    positions: Tensor | None = None  # (B, N) text position that each code speaks, NOWHERE if unknown
    room: int | None = field(default=None, kw_only=True)  # no row's text and codes are longer together (default: what both are padded to)

    def width(self, before: int) -> int:
        """Length of the longest row that is laid out without a gap, after ``before`` positions: starts and stops included."""
        return before + (self.text.shape[1] + self.codes.shape[1] if self.room is None else self.room) + 4

    def tensors(self) -> tuple[Tensor, ...]:
        """All but ids and room, in order."""
        found = (self.text, self.text_lengths, self.codes, self.code_lengths, self.positions)
        return tuple(x for x in found if x is not None)


class TextIds:
    """Text ids of a corpus, encoded once, as the voice's front-end encodes them; without a ``lexicon`` every word is spelled.

    A share of the known words is spelled all the same, so that words that no lexicon knows can be read from their letters.
    """

    def __init__(self, lexicon: Path | None = None, seed: int = 0, spelled: float = SPELLED) -> None:
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, "bpe.model")
            model.write_bytes(phone_tokenizer())
            self._tokenizer = LexiconTokenizer(model, Lexicon.load(lexicon) if lexicon else Lexicon({}))
        self._spell = lambda _: rng.random() < spelled
        self._pieces: list[list[str]] = []
        self._rows: list[list[int]] = []
        self._positions: list[Positions] = []
        self._aligners: ProcessPoolExecutor | None = None

    def ids(self, text: str) -> list[int]:
        """Ids of one text, as in synthesis."""
        return self._tokenizer.ids(self._tokenizer.encode(text))

    def rows(self, texts: list[str]) -> list[list[int]]:
        """Ids of all ``texts``, of which earlier calls saw the first ones."""
        for text in texts[len(self._rows) :]:
            pieces = self._tokenizer.encode(text, spell=self._spell)
            self._pieces.append(pieces)
            self._rows.append(self._tokenizer.ids(pieces))
        return self._rows

    def positions(self, corpus: CodedCorpus) -> list[Positions]:
        """Per utterance the text position that each of its codes speaks (:func:`indextts.training.alignment.align`)."""
        self.rows(corpus.texts)
        first = len(self._positions)
        pairs = list(zip(self._pieces[first:], corpus.labels_from(first), strict=True))
        if len(pairs) < _FEW or _ALIGNERS < 2:
            self._positions += map(align, *zip(*pairs, strict=True)) if pairs else ()
        else:
            if self._aligners is None:
                self._aligners = ProcessPoolExecutor(_ALIGNERS, multiprocessing.get_context("spawn"))
            chunks = (pairs[i : i + _FEW] for i in range(0, len(pairs), _FEW))
            self._positions += itertools.chain.from_iterable(self._aligners.map(_align_all, chunks))
        return self._positions


def _align_all(pairs: list[tuple[list[str], npt.NDArray[np.uint8]]]) -> list[Positions]:
    return [align(pieces, labels) for pieces, labels in pairs]


def recorded_room(code_width: int) -> int:
    """The room of a recorded step's batch, by the width of its codes."""
    return code_width * _MOST_CODES[1] // _MOST_CODES[0]


def endless_batches(
    corpus: CodedCorpus, texts: TextIds, budget: int, longest: tuple[int, int], guided: bool, few_shapes: bool
) -> Iterator[GPTBatch]:
    """Batches of at most ``budget`` padded tokens, forever; new shards join between pools.

    ``longest``: most text ids and most codes; ``few_shapes``: for recorded steps.
    """
    while True:
        corpus.refresh(24)
        rows = texts.rows(corpus.texts)
        positions = texts.positions(corpus) if guided else None
        pool = corpus.rng.choice(len(corpus), min(_POOL, len(corpus)), replace=False)
        pool = pool[(corpus.tokens[pool] < longest[1]) & corpus.told[pool]]
        pool = np.array([i for i in pool if len(rows[i]) <= longest[0]], np.int64)
        if few_shapes:
            for chosen, text, codes in _alike(pool, [len(rows[i]) for i in pool], corpus.tokens[pool], budget, longest, corpus.rng):
                yield _collate(corpus, rows, chosen, positions, text, codes)
            continue
        pool = pool[np.argsort([len(rows[i]) + corpus.tokens[i] for i in pool], kind="stable")]
        groups: list[list[int]] = []
        current: list[int] = []
        width = 0
        for i in pool:
            width = max(width, len(rows[i]) + int(corpus.tokens[i]) + 16)
            if current and width * (len(current) + 1) > budget:
                groups.append(current)
                current, width = [], len(rows[i]) + int(corpus.tokens[i]) + 16
            current.append(int(i))
        groups.append(current)
        for number in corpus.rng.permutation(len(groups)):
            yield _collate(corpus, rows, np.array(groups[number]), positions)


def _alike(
    pool: npt.NDArray[np.int64],
    texts: Sequence[int],
    tokens: npt.NDArray[np.int64],
    budget: int,
    longest: tuple[int, int],
    rng: np.random.Generator,
) -> list[tuple[npt.NDArray[np.int64], int, int]]:
    """The pool in batches of few shapes, in random order: utterances, text width, code width. Small rests repeat some utterances.

    The shape depends on text and codes together. By both alone, all rows of a batch would be spoken about equally fast, and what tells
    fast from slow speech would get a gradient that pushes all rows the same way, step by step another one: the language model's
    conditioning then learns to say the same of every clip (``notebooks/data/deaf_conditioning.json``).
    """
    lengths = np.stack([np.asarray(texts), tokens])
    shares = np.array([_MOST_TEXT, _MOST_CODES])
    needed = np.maximum(lengths.sum(0), (lengths * shares[:, 1:] / shares[:, :1]).max(0))
    rooms = np.ceil(needed / _ROOM_STEP).astype(int) * _ROOM_STEP
    batches: list[tuple[npt.NDArray[np.int64], int, int]] = []
    for room in np.unique(rooms).tolist():
        text, codes = (room * share // of for share, of in (_MOST_TEXT, _MOST_CODES))
        members = rng.permutation(pool[rooms == room])
        rows = max(1, budget // (room + 16))
        if codes > longest[1] or (len(members) < rows // 4 and len(pool) > rows):
            continue  # rare shapes are not worth recording; the next pool draws others
        starts = range(0, len(members), rows)
        batches += [(np.resize(members[first : first + rows], rows), min(text, longest[0]), codes) for first in starts]
    return [batches[i] for i in rng.permutation(len(batches))]


def _collate(
    corpus: CodedCorpus,
    rows: list[list[int]],
    ids: npt.NDArray[np.int64],
    positions: list[Positions] | None,
    text_width: int = 0,
    code_width: int = 0,
) -> GPTBatch:
    """A batch as wide as its longest rows, or as said."""
    lengths = [len(rows[i]) for i in ids]
    text = np.ones((len(ids), text_width or max(lengths)), np.int64)
    for row, i in enumerate(ids):
        text[row, : lengths[row]] = rows[i]
    tokens = corpus.tokens[ids]
    codes = corpus.codes(ids, np.zeros_like(ids), code_width or int(tokens.max()))
    on = lambda array: torch.from_numpy(np.asarray(array, np.int64)).to(corpus.device, non_blocking=True)  # noqa: E731 (used often, one line)
    there = None
    if positions is not None:
        there = np.full(codes.shape, NOWHERE, np.int64)
        for row, i in enumerate(ids):
            there[row, : tokens[row]] = positions[i]
    room = recorded_room(code_width) if code_width else None
    return GPTBatch(ids, on(text), on(lengths), codes, on(tokens), None if there is None else on(there), room=room)
