"""What conditions a sequence is spoken as the sequence is, however rare its manner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from indextts.training.companions import Groups
from indextts.training.corpus import Corpus, tempo_of
from indextts.training.language_model import conditioned_tempo_loss
from indextts.training.phones import PHONES, UNKNOWN
from tests.training.made_up import write_shards


def test_others_share_the_key_and_are_drawn_equally_often() -> None:
    keys = np.array([7, 3, 7, 5, 7, 3, 7])
    groups, rng = Groups(keys), np.random.default_rng(0)
    ids = np.tile(np.arange(7), 3000)
    found = groups.others(ids, rng)
    assert (keys[found] == keys[ids]).all()
    assert (found[ids == 3] == 3).all(), "nobody else has that key"
    assert (found[ids != 3] != ids[ids != 3]).all()
    assert groups.sizes(np.arange(7)).tolist() == [4, 2, 4, 1, 4, 2, 4]
    counts = np.bincount(found[ids == 0], minlength=7)
    assert counts[[2, 4, 6]].min() > 900
    assert counts.sum() == 3000


def test_groups_of_nothing_and_of_one() -> None:
    rng = np.random.default_rng(0)
    assert Groups(np.zeros(0, np.int64)).others(np.zeros(0, np.int64), rng).size == 0
    assert Groups(np.array([4])).others(np.array([0, 0]), rng).tolist() == [0, 0]


def test_a_tempo_is_tokens_per_phone_without_pauses() -> None:
    pause, phones = PHONES.index("pau"), [PHONES.index(p) for p in ("aa", "b", "ch", "d", "eh", "f")]
    slow = np.repeat([pause, *phones, pause], [30, *[8] * 6, 5])
    quick = np.repeat(phones, 4)
    few = np.repeat(phones[:2], 9)
    unknown = np.full(20, UNKNOWN)
    labels = np.concatenate([slow, quick, few, unknown]).astype(np.uint8)
    starts = np.cumsum([0, slow.size, quick.size, few.size])
    assert tempo_of(labels, starts) == pytest.approx([np.log(8), np.log(4), np.nan, np.nan], nan_ok=True)


def test_a_corpus_knows_the_tempo_of_its_utterances(tmp_path: Path) -> None:
    corpus = Corpus(write_shards(tmp_path), torch.device("cpu"))
    while corpus.refresh():
        pass
    known = np.isfinite(corpus.tempo)
    assert known.mean() > 0.6
    assert corpus.tempo[known].min() >= np.log(7.5)  # letters of eight tokens, equal neighbours count as one


def test_only_known_tempos_count() -> None:
    foretold = torch.tensor([1.4, 1.6, 9.0], requires_grad=True)
    loss = conditioned_tempo_loss(foretold, torch.tensor([1.4, 1.4, torch.nan]))
    assert loss.item() == pytest.approx(0.5)  # one of two is off by one usual spread
    loss.backward()
    assert foretold.grad is not None
    assert foretold.grad.tolist() == pytest.approx([0.0, 5.0, 0.0], abs=1e-5)
    assert conditioned_tempo_loss(foretold, torch.full((3,), torch.nan)).item() == 0
