"""Training sees what inference will see; if these fail, a voice trains well and speaks badly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from indextts.models.gpt import UnifiedVoice
from indextts.models.length_regulator import target_frames
from indextts.models.s2mel import S2Mel
from indextts.models.semantic_encoder import semantic_features_frontend
from indextts.training import acoustic, features
from indextts.training.corpus import IGNORED, Corpus
from indextts.training.language_model import GPTBatch, sequence_losses
from indextts.training.make_data import Utterance, save_shard
from indextts.training.phones import PHONES, UNKNOWN, semantic_tokens, token_labels
from indextts.training.sizes import miniature
from indextts.training.synthesisers import Speech

torch.set_num_threads(1)


@pytest.fixture
def gpt() -> UnifiedVoice:
    torch.manual_seed(0)
    return UnifiedVoice(miniature().config.gpt).eval()


def batch_of(texts: list[list[int]], codes: list[list[int]]) -> GPTBatch:
    def padded(rows: list[list[int]]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=7)

    lengths = [torch.tensor([len(row) for row in rows]) for rows in (texts, codes)]
    return GPTBatch(np.arange(len(texts)), padded(texts), lengths[0], padded(codes), lengths[1])


def rows_alone(gpt: UnifiedVoice, batch: GPTBatch, conditioning: torch.Tensor, share: float) -> torch.Tensor:
    losses = []
    for i in range(len(batch.ids)):
        n, m = int(batch.text_lengths[i]), int(batch.code_lengths[i])
        one = GPTBatch(
            batch.ids[i : i + 1],
            batch.text[i : i + 1, :n],
            batch.text_lengths[i : i + 1],
            batch.codes[i : i + 1, :m],
            batch.code_lengths[i : i + 1],
        )
        losses.append(sequence_losses(gpt, conditioning[i : i + 1], one, share)[1] * (m + 1))
    return torch.stack(losses).sum() / (batch.code_lengths + 1).sum()


@torch.no_grad()
def test_padded_rows_lose_what_they_lose_alone(gpt: UnifiedVoice) -> None:
    batch = batch_of([[5, 6, 8], [9, 10, 11, 12, 13, 14]], [[3, 4, 5, 6, 7, 8, 9], [1, 2]])
    conditioning = torch.randn(2, 6, 32)
    for share in (0.0, 1.0):
        together = sequence_losses(gpt, conditioning, batch, share)[1]
        torch.testing.assert_close(together, rows_alone(gpt, batch, conditioning, share), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_room_for_text_and_codes_together_changes_no_loss(gpt: UnifiedVoice) -> None:
    batch = batch_of([[5, 6, 8], [9, 10, 11, 12, 13, 14]], [[3, 4, 5, 6, 7, 8, 9], [1, 2]])
    conditioning = torch.randn(2, 6, 32)
    expected = sequence_losses(gpt, conditioning, batch, 0.0)
    assert batch.width(6) == 6 + 6 + 7 + 4
    batch.room = 10  # text and codes of the longest row
    assert batch.width(6) == 6 + 10 + 4
    for found, wanted in zip(sequence_losses(gpt, conditioning, batch, 0.0), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_latent_positions_are_those_of_the_models_own_forward(gpt: UnifiedVoice) -> None:
    batch = batch_of([[5, 6, 8, 9]], [[3, 4, 5, 6, 7]])
    conditioning = torch.randn(1, 6, 32)
    _, logits = gpt(conditioning, batch.text, None, batch.codes, None)
    targets = torch.tensor([[3, 4, 5, 6, 7, gpt.config.stop_mel_token]])
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets)
    torch.testing.assert_close(sequence_losses(gpt, conditioning, batch, 0.0)[1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generation_positions_are_those_of_decoding(gpt: UnifiedVoice) -> None:
    codes = [3, 4, 5, 6]
    batch = batch_of([[5, 6, 8, 9]], [codes])
    conditioning = torch.randn(1, 6, 32)
    prefix, mask = gpt.prefix(conditioning, batch.text)
    logits, cache = gpt.prefill(prefix, mask)
    losses = []
    for step, target in enumerate([*codes, gpt.config.stop_mel_token], start=1):
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([target])))
        logits, cache = gpt.decode_step(torch.tensor([target]), step, cache, mask)
    torch.testing.assert_close(sequence_losses(gpt, conditioning, batch, 1.0)[1], torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_batched_encoder_input_equals_the_pipelines_front_end() -> None:
    torch.manual_seed(1)
    clips = [0.1 * torch.randn(n) for n in (9000, 7777, 6400)]  # odd and even numbers of frames
    waves = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    inputs, mask = features.semantic_inputs(waves, torch.tensor([clip.numel() for clip in clips]))
    for row, clip in enumerate(clips):
        expected, expected_mask = semantic_features_frontend(clip)
        tokens = expected.shape[1]
        assert tokens == semantic_tokens(clip.numel())
        torch.testing.assert_close(inputs[row, :tokens], expected[0], atol=2e-3, rtol=1e-3)
        assert mask[row, :tokens].tolist() == expected_mask[0].tolist()


def test_piece_has_exactly_the_tokens_asked_for() -> None:
    for tokens in (60, 101, 200):
        waves_16k = features.to_16k(torch.randn(1, features.piece_samples(tokens)))
        inputs, mask = features.semantic_inputs(waves_16k)
        assert inputs.shape[1] == tokens
        assert bool(mask.all())


def test_pitch_follows_a_glide() -> None:
    time = torch.arange(32000) / 16000
    glide = 120 * 2 ** (time - 1)  # an octave in a second: 60 to 240 Hz around 120
    wave = torch.sin(2 * torch.pi * torch.cumsum(glide, 0) / 16000) + 0.5 * torch.sin(4 * torch.pi * torch.cumsum(glide, 0) / 16000)
    bins = features.pitch_bins(0.2 * wave[None], 99)[0]
    assert bins[20] < bins[50] < bins[80]
    absolute = features.pitch_bins(0.2 * wave[None], 99, absolute=True)[0]
    assert absolute[20] < absolute[50] < absolute[80]
    assert (
        features.pitch_bins(0.2 * wave[None, ::2], 49, absolute=True)[0, 10:40] > absolute[20:80:2]
    ).float().mean() > 0.9  # an octave up
    assert (features.pitch_bins(0.1 * torch.randn(1, 32000), 99) == 0).float().mean() > 0.9


def test_labels_follow_the_warp_and_map_espeaks_names() -> None:
    speech = Speech(np.zeros(22050, np.int16), 22050, [("_", 0.2), ("i@", 0.6), ("Q?", 0.8), ("s", 1.0)])
    plain, faster = token_labels(speech, 50), token_labels(speech, 25, warp=2.0)
    names = [PHONES[i] if i != UNKNOWN else "?" for i in plain]
    assert names[0] == "pau"
    assert names[15] == "ih"
    assert names[26] == "r"
    assert names[35] == "?"
    assert names[45] == "s"
    assert (faster == plain[::2][:25]).mean() > 0.85


def test_corpus_cuts_waves_and_labels_at_the_same_place(tmp_path: Path) -> None:
    def utterance(seconds: float, speaker: int) -> Utterance:
        count = int(22050 * seconds)
        samples = (np.arange(count) // 441).astype(np.int16)  # every 20 ms hold their own number
        tokens = semantic_tokens(-(-count * 320 // 441))
        return Utterance(samples, np.arange(tokens, dtype=np.uint8), speaker, 4, f"Text {speaker}.")

    save_shard([utterance(1.0, 1), utterance(2.0, 2)], tmp_path / "a.npz")
    save_shard([utterance(1.5, 3)], tmp_path / "b.npz")
    corpus = Corpus(tmp_path, torch.device("cpu"))
    corpus.refresh()
    assert len(corpus) == 3
    assert corpus.seconds == pytest.approx(4.5, abs=0.01)
    ids, offsets = np.array([0, 1, 2]), np.array([10, 20, 70])
    waves, labels = corpus.waves(ids, offsets, 441 * 10), corpus.labels(ids, offsets, 10)
    assert (waves[0, ::441] * 32768).round().tolist() == list(range(10, 20))
    assert labels[1].tolist() == list(range(20, 30))
    assert labels[2, 5:].eq(IGNORED).any()  # past the end
    assert corpus.texts[2] == "Text 3."


@torch.no_grad()
def test_flow_loss_is_zero_for_the_true_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    config = miniature().config
    s2mel = S2Mel(config.s2mel, config.gpt_latent_dim)
    n, p = 20, 15
    mel, prompt = torch.randn(3, 80, target_frames(n)), torch.randn(3, 80, 26)
    seen = {}

    def estimator(x: torch.Tensor, prompt_x: torch.Tensor, t: torch.Tensor, style: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        seen.update(x=x, prompt_x=prompt_x, mu=mu)
        now = x[..., 26:]
        noise = (now - t[:, None, None] * mel) / (1 - t[:, None, None])
        return torch.cat([torch.full_like(prompt, 9.0), mel - noise], dim=-1)

    monkeypatch.setattr(s2mel.cfm.estimator, "forward", estimator)
    loss = acoustic.flow_loss(s2mel, torch.randn(3, n, 32), torch.randn(3, p, 32), mel, prompt, torch.randn(3, 16))
    assert loss < 1e-6
    assert seen["x"][..., :26].abs().max() == 0
    assert seen["prompt_x"][..., 26:].abs().max() == 0
    assert seen["mu"].shape == (3, 26 + target_frames(n), 16)
