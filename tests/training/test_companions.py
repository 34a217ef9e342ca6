"""What conditions a sequence is spoken as the sequence is, however rare its manner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from indextts.training.companions import Groups
from indextts.training.conditioning import ConditioningHeads, listening_share, spread_of, tempo_loss, with_gradient_share
from indextts.training.corpus import Corpus, pauses_of, tempo_of
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


def test_pauses_are_a_share_of_what_lies_between_the_first_and_the_last_phone() -> None:
    pause, phones = PHONES.index("pau"), [PHONES.index(p) for p in ("aa", "b")]
    with_one = np.repeat([pause, phones[0], pause, phones[1], pause], [30, 6, 3, 6, 9])
    without, silent, unknown = np.repeat(phones, 4), np.full(5, pause), np.full(20, UNKNOWN)
    parts = [with_one, without, silent, unknown]
    starts = np.cumsum([0] + [part.size for part in parts[:-1]])
    assert pauses_of(np.concatenate(parts).astype(np.uint8), starts) == pytest.approx([0.2, 0, np.nan, np.nan], nan_ok=True)


def test_a_corpus_knows_the_tempo_of_its_utterances(tmp_path: Path) -> None:
    corpus = Corpus(write_shards(tmp_path), torch.device("cpu"))
    while corpus.refresh():
        pass
    known = np.isfinite(corpus.tempo)
    assert known.mean() > 0.6
    assert corpus.tempo[known].min() >= np.log(7.5)  # letters of eight tokens, equal neighbours count as one


def test_only_known_tempos_count() -> None:
    foretold = torch.tensor([1.4, 1.6, 9.0], requires_grad=True)
    loss = tempo_loss(foretold, torch.tensor([1.4, 1.4, torch.nan]))
    assert loss.item() == pytest.approx(0.5)  # one of two is off by one usual spread
    loss.backward()
    assert foretold.grad is not None
    assert foretold.grad.tolist() == pytest.approx([0.0, 5.0, 0.0], abs=1e-5)
    assert tempo_loss(foretold, torch.full((3,), torch.nan)).item() == 0


def test_heads_learn_from_both_kinds_of_conditioning_and_say_how_well() -> None:
    torch.manual_seed(0)
    heads = ConditioningHeads(8)
    latents, emotion = torch.randn(4, 3, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    truth = torch.tensor([[0.0, 8.0, 1.4], [5.0, 0.0, torch.nan], [1.0, 4.0, 1.2], [0.0, 4.0, 1.6]])
    loss, parts = heads.losses(latents, emotion, truth)
    assert set(parts) == {"voice", "manner", "tempo", "spread"}
    loss.backward()
    assert latents.grad is not None and emotion.grad is not None  # noqa: PT018 (one fact)
    assert (latents.grad.abs().sum((1, 2)) > 0).all()
    assert (emotion.grad.abs().sum(1) > 0).all()


def test_heads_hear_what_tells_clips_apart_however_faint_it_is() -> None:
    torch.manual_seed(0)
    heads = ConditioningHeads(8)
    latents, emotion = torch.randn(16, 3, 8), torch.randn(16, 8)
    truth = torch.stack([torch.arange(16.0) % 4, torch.arange(16.0) % 3, torch.full((16,), 1.4)], dim=1)
    told = []
    for loudness, common in ((1.0, 0.0), (0.5, 3.0)):
        given = (loudness * latents + common).requires_grad_(), (loudness * emotion + common).requires_grad_()
        _, parts = heads.losses(*given, truth)
        told.append([float(parts[name].detach()) for name in ("voice", "manner", "tempo")])
        sum(parts[name] for name in ("voice", "manner", "tempo")).backward()
        for x in given:
            assert x.grad is not None
            total = x.grad.flatten(0, -2)
            assert total.sum(0).abs().max() < 1e-3 * total.abs().max(), "nobody is asked to say more of the same"
    assert told[1] == pytest.approx(told[0], abs=0.02)
    assert float(parts["spread"].detach()) < 0.2


def test_saying_nearly_the_same_of_all_clips_costs_and_is_cured() -> None:
    torch.manual_seed(0)
    heads = ConditioningHeads(8)
    truth = torch.stack([torch.arange(16.0) % 4, torch.arange(16.0) % 3, torch.full((16,), 1.4)], dim=1)
    latents = torch.nn.Parameter(1 + 1e-4 * torch.randn(16, 3, 8))
    emotion = torch.nn.Parameter(1 + 1e-4 * torch.randn(16, 8))
    assert float(spread_of(torch.ones(4, 8))) < 1e-5
    assert float(spread_of(emotion.detach() - emotion.detach().mean(0))) == pytest.approx(1.0)
    optimiser = torch.optim.Adam([latents, emotion], 0.02)
    for _ in range(150):
        loss, parts = heads.losses(latents, emotion, truth)
        optimiser.zero_grad()
        loss.backward()
        assert latents.grad is not None
        assert latents.grad.isfinite().all()
        optimiser.step()
    assert float(parts["spread"].detach()) > 0.4


def test_at_first_the_codes_teach_the_conditioning_nothing() -> None:
    assert [listening_share(step) for step in (0, 400, 600, 800, 9000)] == [0, 0, 0.5, 1, 1]
    for share in (0.0, 0.25, 1.0):
        x = torch.randn(5, requires_grad=True)
        through = with_gradient_share(x, torch.tensor(share))
        assert torch.equal(through, x)
        (3 * through).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == pytest.approx([3 * share] * 5)
