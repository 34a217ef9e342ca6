"""The known phone times reach the right places: wrong ones would teach a voice to skip or repeat words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from indextts.models.gpt import UnifiedVoice
from indextts.models.semantic_codec import SemanticCodec
from indextts.training import batches
from indextts.training.alignment import NOWHERE, Watch, align
from indextts.training.batches import TextIds
from indextts.training.coding import FaithfulCodes, owners_of_codes
from indextts.training.corpus import IGNORED
from indextts.training.language_model import GPTBatch, attention_loss, sequence_losses, watched_layers
from indextts.training.phones import PHONES, UNKNOWN
from indextts.training.sizes import miniature, small_voice

torch.set_num_threads(1)


def labels(spoken: str, frames: int = 3) -> np.ndarray:
    return np.repeat(np.array([UNKNOWN if phone == "?" else PHONES.index(phone) for phone in spoken.split()], np.uint8), frames)


def heard(pieces: list[str], spoken: str) -> list[str]:
    """The piece of each spoken phone's middle frame."""
    return [pieces[i] if i != NOWHERE else "" for i in align(pieces, labels(spoken))[1::3]]


def test_each_phone_finds_its_piece() -> None:
    pieces = ["▁", "dh", "ah0", "▁", "k", "ae1", "t", ",", "▁", "r", "ae1", "n", "."]
    assert heard(pieces, "pau dh ax k ae t pau r ae n pau") == ["", "dh", "ah0", "k", "ae1", "t", ",", "r", "ae1", "n", "."]


def test_other_pronunciations_and_unlabelled_frames_do_not_shift_the_rest() -> None:
    pieces = ["▁", "f", "ao1", "r", "t", "iy0", "▁", "b", "aa1", "k", "s", "ah0", "z", "!"]
    assert heard(pieces, "pau f r t iy ? b aa k s ih z z pau") == ["", "f", "r", "t", "iy0", "", "b", "aa1", "k", "s", "ah0", "z", "z", "!"]


def test_letters_of_a_spelled_word_share_its_phones() -> None:
    pieces = ["▁", "s", "iy1", "▁", "S", "H", "I", "P", "▁", "g", "ow1", "."]
    found = heard(pieces, "s iy sh ih p g ow pau")
    assert found[:2] + found[-3:] == ["s", "iy1", "g", "ow1", "."]
    assert set(found[2:5]) <= set("SHIP")
    assert found[2:5] == sorted(found[2:5], key="SHIP".index)


def test_nothing_to_align_is_no_error() -> None:
    assert (align([], labels("k ae t")) == NOWHERE).all()
    assert (align(["▁", "k"], labels("? ?")) == NOWHERE).all()


@pytest.fixture
def batch() -> GPTBatch:
    lengths = torch.tensor([4, 6]), torch.tensor([7, 3])
    positions = torch.tensor([[0, 0, 1, 2, 2, NOWHERE, 3], [1, 4, 5, 9, 9, 9, 9]])
    return GPTBatch(np.arange(2), torch.randint(3, 30, (2, 6)), lengths[0], torch.randint(0, 60, (2, 7)), lengths[1], positions)


@torch.no_grad()
def test_attention_is_scored_where_the_next_code_is_spoken(batch: GPTBatch) -> None:
    """Against attention worked out one query at a time, each row laid out as it is alone."""
    torch.manual_seed(0)
    gpt = UnifiedVoice(miniature().config.gpt).eval()
    with torch.no_grad():
        for parameter in gpt.gpt.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # attention far from uniform
    conditioning = torch.randn(2, 6, 32)
    layer, heads, inputs = gpt.gpt.h[1].attn, 1, []
    layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    watch = Watch([layer], heads)
    sequence_losses(gpt, conditioning, batch, 0.0)
    scored = attention_loss(watch, batch, 6)
    q, k, _ = layer.c_attn(inputs[0]).chunk(3, dim=-1)
    width = q.shape[-1] // layer.heads
    expected = []
    for row in range(2):
        for j in range(int(batch.code_lengths[row])):
            if batch.positions[row, j] != NOWHERE:
                query = 6 + int(batch.text_lengths[row]) + 2 + j  # the start code predicts the first code
                scores = k[row, : query + 1, :width] @ q[row, query, :width] / width**0.5
                expected.append(-scores.log_softmax(0)[6 + 1 + int(batch.positions[row, j])])
    torch.testing.assert_close(scored, torch.stack(expected).mean())
    watch.close()


def test_shown_where_to_look_heads_learn_it(batch: GPTBatch) -> None:
    torch.manual_seed(0)
    config = miniature().config.gpt
    gpt = UnifiedVoice(config)
    watch = Watch([gpt.gpt.h[i].attn for i in watched_layers(config.layers)], 1)
    conditioning = torch.randn(2, 6, 32)
    optimiser = torch.optim.Adam(gpt.gpt.parameters(), 3e-3)
    curve = []
    for _ in range(40):
        sequence_losses(gpt, conditioning, batch, 0.0)
        loss = attention_loss(watch, batch, 6)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.append(float(loss.detach()))
    assert curve[-1] < 0.5 * curve[0]
    assert watched_layers(small_voice().config.gpt.layers) == [1, 3, 5]


def test_every_phone_owns_a_code() -> None:
    codes = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3])
    phones = torch.tensor([5, 5, 9, 5, 5, 5, 7, 7, 7, 7, 5])
    assert owners_of_codes(codes, phones, 4).tolist() == [9, 5, 7, 5]


@torch.no_grad()
def test_codes_agree_with_what_was_spoken_and_are_otherwise_the_codecs_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = SemanticCodec(miniature().config.semantic_codec).eval()
    faithful = FaithfulCodes(codec, tmp_path / "owners.npy")
    features, truth = torch.randn(2, 40, 32), torch.randint(0, 5, (2, 40))
    truth[:, ::7] = IGNORED
    own = codec.quantize(features)[0]
    first = faithful(own, truth)
    owners = faithful._owners
    assert owners is not None
    known = truth != IGNORED
    assert torch.equal(owners[first][known], truth[known])
    assert torch.equal(first[~known], own[~known])
    assert torch.equal(faithful(own, owners[own]), own)


def test_alignments_of_several_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoken:
        def __init__(self) -> None:
            self.texts = ["A cat.", "", "Two dogs.", "A bird."]

        def __len__(self) -> int:
            return len(self.texts)

        def labels_from(self, first: int) -> list[np.ndarray]:
            return [np.full(5 + i, 1 + i, np.uint8) for i in range(first, len(self))]

    alone = TextIds().positions(Spoken())  # type: ignore[arg-type]
    monkeypatch.setattr(batches, "_FEW", 2)
    monkeypatch.setattr(batches, "_ALIGNERS", 2)
    monkeypatch.setattr(batches, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    several = TextIds().positions(Spoken())  # type: ignore[arg-type]
    assert [row.tolist() for row in several] == [row.tolist() for row in alone]
    assert [len(row) for row in alone] == [5, 6, 7, 8]
