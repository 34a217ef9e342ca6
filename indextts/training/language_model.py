"""Stage 4: UnifiedVoice on codes. Conditioned on other utterances of the same speaker, one for the voice and one for the manner.

Half of the sequences count code positions as generation does (0, 2, 3, ..), half as the latent pass does (0, 1, 2, ..): the released
system uses both, and a small model cannot be expected to shrug off the difference.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.models.gpt import UnifiedVoice
from indextts.text.lexicon import Lexicon, LexiconTokenizer
from indextts.training.alignment import NOWHERE, Positions, Watch, align
from indextts.training.coding import CodedCorpus
from indextts.training.emotions import emotion_rows
from indextts.training.letters import phone_tokenizer
from indextts.training.loop import StageSettings, Trainer, autocast
from indextts.training.parts import load_part, restore
from indextts.training.sizes import SIZES
from indextts.training.speed import compile_blocks

logger = logging.getLogger(__name__)

_BATCH_TOKENS = 28_000
_POOL = 4096  # utterances that are sorted by length at a time
_TEXT_WEIGHT = 0.01
_DROPOUT = 0.05
_OTHER_MANNER = 0.25  # share of rows whose manner comes from another speaker
SPELLED = 0.12  # share of known words that training spells
_WATCHED_HEADS = 2  # of each watched layer; the others look where they like
_ALIGNMENT_WEIGHT = 0.1


@dataclass
class GPTBatch:
    """Rows of similar length, padded; lengths count without start and stop."""

    ids: npt.NDArray[np.int64]
    text: Tensor  # (B, L)
    text_lengths: Tensor
    codes: Tensor  # (B, N)
    code_lengths: Tensor
    positions: Tensor | None = None  # (B, N) text position that each code speaks, NOWHERE if unknown


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
        for i in range(len(self._positions), len(corpus)):
            self._positions.append(align(self._pieces[i], corpus.labels_of(i)))
        return self._positions


def load_gpt_part(settings: StageSettings) -> tuple[UnifiedVoice, dict[str, Tensor]]:
    """The trained language model, frozen, on the device; and the emotion tables beside it."""
    gpt = UnifiedVoice(SIZES[settings.size]().config.gpt)
    tensors, _ = load_part(settings.parts, "gpt")
    restore({"gpt": gpt}, {key: value for key, value in tensors.items() if key.startswith("gpt.")})
    matrices = {key: value for key, value in tensors.items() if key.startswith("matrix.")}
    return gpt.to(settings.device).requires_grad_(False).eval(), matrices


def watched_layers(layers: int) -> list[int]:
    """Which attention layers of a stack of ``layers`` are shown where to look: from the second on, every other one, at most three."""
    return list(range(1, layers, 2))[:3]


def train_gpt(corpus: CodedCorpus, settings: StageSettings, lexicon: Path | None = None, guided: bool = True) -> None:
    """Train for the time given; the part also holds the emotion tables.

    ``lexicon``: the ``lexicon.txt.gz`` that the voice will come with. ``guided``: some attention heads are shown which piece each code
    speaks, so that the alignment is there after a few hundred steps; needs speech with phone times.
    """
    torch.manual_seed(settings.seed)
    config = SIZES[settings.size]().config
    gpt = UnifiedVoice(config.gpt, dropout=_DROPOUT)
    trainer = Trainer("gpt", {"gpt": gpt}, settings, peak=1.2e-3, betas=(0.9, 0.96), weight_decay=0.03)
    texts = TextIds(lexicon, settings.seed)
    watch = Watch([gpt.gpt.h[i].attn for i in watched_layers(config.gpt.layers)], _WATCHED_HEADS) if guided else None
    compile_blocks(gpt.gpt.h, settings.device)

    def tables() -> dict[str, Tensor]:
        averaged: Any = trainer.averaged["gpt"]
        return emotion_rows(averaged, corpus, config.emo_num)

    batches = _endless_batches(corpus, texts, int(_BATCH_TOKENS * settings.batch), config.gpt.max_mel_tokens, guided)
    gpt.train()
    while trainer.running:
        batch = next(batches)
        with trainer.autocast():
            conditioning = _conditioning(gpt, corpus, batch.ids)
            text_loss, code_loss, right = sequence_losses(gpt, conditioning, batch)
        loss, values = code_loss + _TEXT_WEIGHT * text_loss, {"codes": code_loss, "text": text_loss, "code_accuracy": right}
        if watch is not None:
            values["attention"] = attention_loss(watch, batch, conditioning.shape[1])
            loss = loss + _ALIGNMENT_WEIGHT * values["attention"]
        trainer.step(loss, **values)
        trainer.save_if_due(tables)
    trainer.save(tables())


def attention_loss(watch: Watch, batch: GPTBatch, before: int) -> Tensor:
    """How little the watched heads look at the piece that the next code speaks, in the last pass; ``before`` positions precede text."""
    assert batch.positions is not None
    known = (batch.positions != NOWHERE) & (torch.arange(batch.positions.shape[1], device=batch.codes.device) < batch.code_lengths[:, None])
    queries = before + batch.text_lengths[:, None] + 2 + torch.arange(batch.positions.shape[1], device=batch.codes.device)
    longest = int((batch.text_lengths + batch.code_lengths).max()) + before + 4
    return watch.loss(queries.clamp(max=longest - 1), before + 1 + batch.positions.clamp(min=0), known)


def warm_up(settings: StageSettings) -> None:
    """A few steps on random numbers: compiles, and fills the libraries' caches, while earlier stages are still busy."""
    config = SIZES[settings.size]().config.gpt
    gpt = UnifiedVoice(config, dropout=_DROPOUT).to(settings.device)
    compile_blocks(gpt.gpt.h, settings.device)
    for count, letters, tokens in ((48, 50, 170), (80, 61, 233), (30, 100, 401), (120, 30, 120)):
        rows = max(2, int(count * settings.batch))
        on = settings.device
        features = torch.randn(rows, 150, config.feature_dim, device=on)
        lengths = torch.full((rows,), 149, device=on)
        batch = GPTBatch(
            np.arange(rows),
            torch.randint(2, config.number_text_tokens, (rows, letters), device=on),
            torch.randint(5, letters + 1, (rows,), device=on),
            torch.randint(0, config.start_mel_token, (rows, tokens), device=on),
            torch.randint(20, tokens + 1, (rows,), device=on),
        )
        with autocast(settings):
            latents = gpt.speaker_latents(features, lengths, isolate_padding=True)
            conditioning = gpt.conditioning(latents, gpt.emotion_vector(features, lengths, isolate_padding=True))
            loss = sequence_losses(gpt, conditioning, batch)[1]
        loss.backward()


def _endless_batches(corpus: CodedCorpus, texts: TextIds, budget: int, longest: int, guided: bool) -> Iterator[GPTBatch]:
    """Batches of at most ``budget`` padded tokens, forever; new shards join between pools."""
    while True:
        corpus.refresh(24)
        rows = texts.rows(corpus.texts)
        positions = texts.positions(corpus) if guided else None
        pool = corpus.rng.choice(len(corpus), min(_POOL, len(corpus)), replace=False)
        pool = pool[corpus.tokens[pool] < longest]
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


def _collate(corpus: CodedCorpus, rows: list[list[int]], ids: npt.NDArray[np.int64], positions: list[Positions] | None) -> GPTBatch:
    lengths = [len(rows[i]) for i in ids]
    text = np.ones((len(ids), max(lengths)), np.int64)
    for row, i in enumerate(ids):
        text[row, : lengths[row]] = rows[i]
    tokens = corpus.tokens[ids]
    codes = corpus.codes(ids, np.zeros_like(ids), int(tokens.max()))
    on = lambda array: torch.from_numpy(np.asarray(array, np.int64)).to(corpus.device, non_blocking=True)  # noqa: E731 (used often, one line)
    there = None
    if positions is not None:
        there = np.full(codes.shape, NOWHERE, np.int64)
        for row, i in enumerate(ids):
            there[row, : tokens[row]] = positions[i]
    return GPTBatch(ids, on(text), on(lengths), codes, on(tokens), None if there is None else on(there))


def _conditioning(gpt: UnifiedVoice, corpus: CodedCorpus, ids: npt.NDArray[np.int64]) -> Tensor:
    """Conditioning (B, C, D) from companions: a piece of the speaker for the voice, one spoken alike for the manner."""
    voice = corpus.companions(ids, same_style=bool(corpus.rng.random() < 0.5))
    manner = corpus.companions(ids, same_style=True)
    for row in np.flatnonzero(corpus.rng.random(len(ids)) < _OTHER_MANNER):
        alike = corpus.rng.integers(len(corpus), size=12)
        alike = alike[corpus.styles[alike] == corpus.styles[ids[row]]]
        if len(alike):
            manner[row] = alike[0]
    latents = gpt.speaker_latents(*_pieces(corpus, voice), isolate_padding=True)
    vector = gpt.emotion_vector(*_pieces(corpus, manner), isolate_padding=True)
    return gpt.conditioning(latents, vector)


def _pieces(corpus: CodedCorpus, ids: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Features (B, T, width) of random pieces and their lengths (B,); T changes from call to call."""
    longest = int(corpus.rng.choice([75, 125, 175, 250, 400], p=[0.15, 0.25, 0.3, 0.22, 0.08]))
    lengths = np.minimum(corpus.tokens[ids], longest)
    features = corpus.features(ids, corpus.offsets(ids, longest), int(lengths.max()))
    return features, torch.from_numpy(lengths).to(corpus.device)


def sequence_losses(
    gpt: UnifiedVoice, conditioning: Tensor, batch: GPTBatch, generation_share: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropies of text and codes, and the share of codes guessed right.

    Each row is laid out without a gap, as it is alone: conditioning, text, codes, and padding only at the end, which causal attention
    cannot see.
    """
    config = gpt.config
    text = gpt._framed(batch.text, batch.text_lengths, config.start_text_token, config.stop_text_token)
    codes = gpt._framed(batch.codes, batch.code_lengths, config.start_mel_token, config.stop_mel_token)
    rows, device = text.shape[0], text.device
    count = torch.arange(codes.shape[1], device=device)
    generating = torch.rand(rows, 1, device=device) < generation_share
    positions = count + (generating & (count > 0))
    embedded = gpt.mel_embedding(codes) + gpt.mel_pos_embedding.emb(positions)
    spelled = gpt.text_embedding(text) + gpt.text_pos_embedding(0, text.shape[1])
    everything = torch.cat([conditioning.to(embedded.dtype), spelled, embedded], dim=1)

    before = conditioning.shape[1]
    code_start = before + batch.text_lengths[:, None] + 2
    longest = int((batch.text_lengths + batch.code_lengths).max()) + before + 4
    place = torch.arange(longest, device=device)[None].expand(rows, -1)
    place = place + (place >= code_start) * (batch.text.shape[1] - batch.text_lengths[:, None])
    place = place.clamp(max=everything.shape[1] - 1)
    hidden = gpt.final_norm(gpt.gpt(everything.gather(1, place[..., None].expand(-1, -1, everything.shape[-1]))))

    text_index = (before + torch.arange(text.shape[1] - 1, device=device))[None].expand(rows, -1)
    code_index = (code_start + count[None, :-1]).clamp(max=hidden.shape[1] - 1)
    text_loss = _masked_loss(gpt.text_head(_at(hidden, text_index)), text[:, 1:], batch.text_lengths)[0]
    code_loss, right = _masked_loss(gpt.mel_head(_at(hidden, code_index)), codes[:, 1:], batch.code_lengths)
    return text_loss, code_loss, right


def _at(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


def _masked_loss(logits: Tensor, targets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy over the first ``lengths + 1`` targets (the stop included), and the share guessed right."""
    counted = torch.arange(targets.shape[1], device=targets.device) <= lengths[:, None]
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    total = counted.sum()
    return (losses * counted).sum() / total, ((logits.argmax(-1) == targets) & counted).sum() / total
