"""What the language model trains on: texts as pieces, and batches of utterances of similar length."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
_TEXT_STEP, _CODE_STEP = 32, 64  # for recorded steps: what text and codes are padded to


@dataclass
class GPTBatch:
    """Rows of similar length, padded; lengths count without start and stop."""

    ids: npt.NDArray[np.int64]
    text: Tensor  # (B, L)
    text_lengths: Tensor
    codes: Tensor  # (B, N)
    code_lengths: Tensor
    positions: Tensor | None = None  # (B, N) text position that each code speaks, NOWHERE if unknown

    def tensors(self) -> tuple[Tensor, ...]:
        """All but the ids, in order."""
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


def endless_batches(corpus: CodedCorpus, texts: TextIds, budget: int, longest: int, guided: bool, few_shapes: bool) -> Iterator[GPTBatch]:
    """Batches of at most ``budget`` padded tokens, forever; new shards join between pools. ``few_shapes``: for recorded steps."""
    while True:
        corpus.refresh(24)
        rows = texts.rows(corpus.texts)
        positions = texts.positions(corpus) if guided else None
        pool = corpus.rng.choice(len(corpus), min(_POOL, len(corpus)), replace=False)
        pool = pool[(corpus.tokens[pool] < longest) & corpus.told[pool]]
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
    pool: npt.NDArray[np.int64], texts: Sequence[int], tokens: npt.NDArray[np.int64], budget: int, longest: int, rng: np.random.Generator
) -> list[tuple[npt.NDArray[np.int64], int, int]]:
    """The pool in batches of few shapes, in random order: utterances, text width, code width. Small rests repeat some utterances."""
    text_widths = -(-np.asarray(texts) // _TEXT_STEP) * _TEXT_STEP
    code_widths = np.minimum(-(-tokens // _CODE_STEP) * _CODE_STEP, longest)
    widths = np.stack([text_widths, code_widths], axis=1)
    batches: list[tuple[npt.NDArray[np.int64], int, int]] = []
    for text, codes in np.unique(widths, axis=0):
        members = rng.permutation(pool[(widths == (text, codes)).all(axis=1)])
        rows = max(1, budget // int(text + codes + 16))
        if len(members) < rows // 4 and len(pool) > rows:
            continue  # rare shapes are not worth recording; the next pool draws others
        starts = range(0, len(members), rows)
        batches += [(np.resize(members[first : first + rows], rows), int(text), int(codes)) for first in starts]
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
    return GPTBatch(ids, on(text), on(lengths), codes, on(tokens), None if there is None else on(there))
