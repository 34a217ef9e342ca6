"""Stage 4: UnifiedVoice on codes. Conditioned on other utterances of the same speaker, one for the voice and one for the manner.

Half of the sequences count code positions as generation does (0, 2, 3, ..), half as the latent pass does (0, 1, 2, ..): the released
system uses both, and a small model cannot be expected to shrug off the difference.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import GPT2Attention
from indextts.training.alignment import NOWHERE, Watch
from indextts.training.batches import GPTBatch, TextIds, endless_batches, recorded_room
from indextts.training.coding import CodedCorpus
from indextts.training.conditioning import ConditioningHeads, conditioning_truth, listening_share, with_gradient_share
from indextts.training.emotions import emotion_rows
from indextts.training.loop import StageSettings, Trainer, autocast
from indextts.training.parts import load_part, restore
from indextts.training.sizes import SIZES

logger = logging.getLogger(__name__)

_BATCH_TOKENS = 28_000
_TEXT_WEIGHT = 0.01
_DROPOUT = 0.05
_OTHER_MANNER = 0.25  # share of rows whose manner comes from another speaker
_CANDIDATES = 6  # for a manner of one's own; twice as many of others
_WATCHED_HEADS = 2  # of each watched layer; the others look where they like
_ALIGNMENT_WEIGHT = 0.1
_PIECES = (75, 75, 125, 125, 125, 175, 175, 175, 250, 250, 400)  # tokens of the speech that conditions
_FEW_PIECES = (100, 300)  # the same for recorded steps, which want few shapes
_LONG, _LONGEST_OF = 200, 3  # longer pieces are sought among so many utterances, for most are shorter
_NO_IDS = np.zeros(0, np.int64)


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


def _watched(gpt: UnifiedVoice) -> list[GPT2Attention]:
    blocks: list[Any] = list(gpt.gpt.h)
    return [blocks[i].attn for i in watched_layers(len(blocks))]


def train_gpt(corpus: CodedCorpus, settings: StageSettings, lexicon: Path | None = None, guided: bool = True) -> None:
    """Train for the time given; the part also holds the emotion tables.

    ``lexicon``: the ``lexicon.txt.gz`` that the voice will come with. ``guided``: some attention heads are shown which piece each code
    speaks, so that the alignment is there after a few hundred steps; needs speech with phone times.
    """
    torch.manual_seed(settings.seed)
    config = SIZES[settings.size]().config
    gpt = UnifiedVoice(config.gpt, dropout=_DROPOUT)
    heads = ConditioningHeads(config.gpt.model_dim)
    trainer = Trainer("gpt", {"gpt": gpt, "heads": heads}, settings, peak=1.2e-3, betas=(0.9, 0.96), weight_decay=0.03)
    texts = TextIds(lexicon, settings.seed)
    watch = Watch(_watched(gpt), _WATCHED_HEADS) if guided else None
    recorded = settings.replay and settings.device.type == "cuda"
    known = load_part(settings.parts, "gpt")[0] if trainer.resumed else {}
    known = {key: value for key, value in known.items() if key.startswith("matrix.")}  # between the ends, an earlier run's are kept

    def tables() -> dict[str, Tensor]:
        averaged: Any = trainer.averaged["gpt"]
        return emotion_rows(averaged, corpus, config.emo_num)

    def losses(
        voice: Tensor, voice_lengths: Tensor, manner: Tensor, manner_lengths: Tensor, truth: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = GPTBatch(_NO_IDS, *tensors)
        if recorded:
            batch.room = recorded_room(batch.codes.shape[1])
        latents = gpt.speaker_latents(voice, voice_lengths, isolate_padding=True)
        emotion = gpt.emotion_vector(manner, manner_lengths, isolate_padding=True)
        conditioning = gpt.conditioning(latents, emotion)
        text_loss, code_loss, right = sequence_losses(gpt, with_gradient_share(conditioning, listening), batch)
        told, heard = heads.losses(latents, emotion, truth)
        loss = code_loss + _TEXT_WEIGHT * text_loss + told
        values = {"codes": code_loss, "text": text_loss, "code_accuracy": right, **heard}
        if watch is not None:
            values["attention"] = attention_loss(watch, batch, conditioning.shape[1])
            loss = loss + _ALIGNMENT_WEIGHT * values["attention"]
        return loss, values

    listening = torch.tensor(1.0, device=settings.device)  # a tensor, so that a recorded step reads today's value
    step = trainer.replayed(losses)
    most = config.gpt.max_text_tokens, config.gpt.max_mel_tokens
    batches = endless_batches(corpus, texts, int(_BATCH_TOKENS * settings.batch), most, guided, recorded)
    gpt.train()
    while trainer.running:
        batch = next(batches)
        listening.fill_(1.0 if trainer.resumed else listening_share(trainer.steps))
        longest = int(corpus.rng.choice(_FEW_PIECES if recorded else _PIECES))
        voice, manner = _companions(corpus, batch.ids, _LONGEST_OF if longest > _LONG else 1)
        conditions = (*_pieces(corpus, voice, longest, recorded), *_pieces(corpus, manner, longest, recorded))
        step(*conditions, conditioning_truth(corpus, batch.ids), *batch.tensors())
        trainer.save_if_due(lambda: known or tables())
    trainer.save(tables())


def attention_loss(watch: Watch, batch: GPTBatch, before: int) -> Tensor:
    """How little the watched heads look at the piece that the next code speaks, in the last pass; ``before`` positions precede text."""
    assert batch.positions is not None
    known = (batch.positions != NOWHERE) & (torch.arange(batch.positions.shape[1], device=batch.codes.device) < batch.code_lengths[:, None])
    queries = before + batch.text_lengths[:, None] + 2 + torch.arange(batch.positions.shape[1], device=batch.codes.device)
    return watch.loss(queries.clamp(max=batch.width(before) - 1), before + 1 + batch.positions.clamp(min=0), known)


def warm_up(settings: StageSettings) -> None:
    """A few steps on random numbers: compiles, and fills the libraries' caches, while earlier stages are still busy."""
    config = SIZES[settings.size]().config.gpt
    gpt = UnifiedVoice(config, dropout=_DROPOUT).to(settings.device)
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


def _companions(corpus: CodedCorpus, ids: npt.NDArray[np.int64], longest_of: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Utterances that condition each one: of the same speaker for the voice, and spoken alike for the manner.

    Alike is more than one of nine styles: of some candidates the one is taken that comes nearest in tempo and pauses. Otherwise texts and
    chance set clip and sequence apart, and the language model learns to hear no more of the clip than slow, usual or fast. (In four hours
    of speech a sequence's log tempo over its clip's had a slope of 0.53 to 0.58 without this; 0.85 with it, and 1.00 where others spoke.)
    """
    voice = corpus.companions(ids, bool(corpus.rng.random() < 0.5), longest_of)
    own = np.stack([corpus.companions(ids, same_style=True, longest_of=longest_of) for _ in range(_CANDIDATES)])
    others = np.stack([corpus.in_the_manner_of(ids) for _ in range(2 * _CANDIDATES)])
    another = corpus.rng.random(len(ids)) < _OTHER_MANNER
    return voice, np.where(another, corpus.in_pace(ids, others), corpus.in_pace(ids, own))


def _pieces(corpus: CodedCorpus, ids: npt.NDArray[np.int64], longest: int, full: bool) -> tuple[Tensor, Tensor]:
    """Features (B, T, width) of random pieces of at most ``longest`` tokens, and their lengths (B,); ``full``: T is ``longest``."""
    lengths = np.minimum(corpus.tokens[ids], longest)
    features = corpus.features(ids, corpus.offsets(ids, longest), longest if full else int(lengths.max()))
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
    longest = batch.width(before)  # not the longest row's sum: that would ask the device
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
