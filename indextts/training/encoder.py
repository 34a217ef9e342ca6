"""Stage 1: the semantic encoder, taught the phone and the relative pitch of every 20 ms.

Self-supervised encoders of the release's size find phones by themselves; a small one is told: the synthesisers know what they say when.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.models.semantic_encoder import SemanticEncoder
from indextts.training.corpus import IGNORED, Corpus
from indextts.training.features import PITCH_BINS, piece_samples, pitch_bins, semantic_inputs, to_16k
from indextts.training.loop import StageSettings, Trainer
from indextts.training.parts import load_part, restore
from indextts.training.phones import PHONES
from indextts.training.sizes import SIZES

logger = logging.getLogger(__name__)

_PIECES = (60, 100, 150)  # semantic tokens of a training piece
_BATCH_TOKENS = 20_000
_PITCH_WEIGHT = 0.25
_STATISTICS_BATCHES = 40


class Heads(nn.Module):
    """Linear readers of the raw hidden state: phone and pitch class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.phone = nn.Linear(width, len(PHONES))
        self.pitch = nn.Linear(width, PITCH_BINS)


def build_encoder(size: str) -> tuple[SemanticEncoder, Heads]:
    """Fresh networks of the named size."""
    sizes = SIZES[size]()
    encoder = SemanticEncoder(sizes.w2v_bert_config(), sizes.config.semantic_encoder.hidden_state)
    return encoder, Heads(sizes.config.semantic_codec.hidden_size)


def load_encoder(settings: StageSettings) -> tuple[SemanticEncoder, Heads]:
    """The trained encoder and its heads, frozen, on the device."""
    encoder, heads = build_encoder(settings.size)
    tensors, _ = load_part(settings.parts, "encoder")
    restore({"encoder": encoder, "heads": heads}, tensors)
    for module in (encoder, heads):
        module.to(settings.device).requires_grad_(False).eval()
    return encoder, heads


def train_encoder(corpus: Corpus, settings: StageSettings) -> None:
    """Train for the time given, then measure the features' mean and variance, and write the part."""
    torch.manual_seed(settings.seed)
    encoder, heads = build_encoder(settings.size)
    trainer = Trainer("encoder", {"encoder": encoder, "heads": heads}, settings, peak=2e-3, betas=(0.9, 0.95))

    def losses(inputs: Tensor, mask: Tensor, phones: Tensor, pitch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = encoder(mask_bands(inputs), mask)
        logits, pitch_logits = heads.phone(hidden).float(), heads.pitch(hidden).float()
        spoken = phone_loss(logits, phones)
        intoned = F.cross_entropy(pitch_logits.transpose(1, 2), pitch)
        right = (logits.argmax(-1) == phones).sum() / (phones != IGNORED).sum().clamp(min=1)
        return spoken + _PITCH_WEIGHT * intoned, {"phone": spoken, "pitch": intoned, "phone_accuracy": right}

    step = trainer.replayed(losses)
    while trainer.running:
        corpus.refresh(1)
        tokens = _PIECES[int(corpus.rng.integers(len(_PIECES)))]
        count = max(2, int(_BATCH_TOKENS * settings.batch / tokens))
        waves, phones = labelled_pieces(corpus, count, tokens)
        waves_16k = to_16k(waves)
        pitch = pitch_bins(waves_16k, tokens, settings.absolute_pitch)
        step(*semantic_inputs(add_noise(waves_16k)), phones, pitch)
    _measure(trainer, corpus, settings)
    trainer.save()


def labelled_pieces(corpus: Corpus, count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Random pieces with phone labels: waves (B, n) at 22 050 Hz, phones (B, tokens)."""
    among = corpus.labelled if corpus.labelled.any() else None
    ids = corpus.draw(count, tokens, among)
    offsets = corpus.offsets(ids, tokens)
    return corpus.waves(ids, offsets, piece_samples(tokens)), corpus.labels(ids, offsets, tokens)


def phone_loss(logits: Tensor, phones: Tensor) -> Tensor:
    """Mean cross entropy over the labelled tokens."""
    return F.cross_entropy(logits.transpose(1, 2), phones, ignore_index=IGNORED, reduction="sum") / (phones != IGNORED).sum().clamp(min=1)


def add_noise(waves: Tensor) -> Tensor:
    """Noise of random colour at 12 to 50 dB below the speech, in most rows."""
    level = waves.square().mean(1, keepdim=True).sqrt()
    decibels = torch.empty_like(level).uniform_(12, 50)
    white = torch.randn_like(waves)
    brown = F.avg_pool1d(white[:, None], 5, 1, 2)[:, 0] * 2.2
    colour = torch.rand_like(level)
    noise = colour * white + (1 - colour) * brown
    return waves + noise * level * 10 ** (-decibels / 20) * (torch.rand_like(level) < 0.8)


def mask_bands(inputs: Tensor) -> Tensor:
    """Hide a random group of up to 12 of the 80 bands, (B, T, 160)."""
    bands = torch.arange(80, device=inputs.device)
    first = torch.randint(0, 80, (inputs.shape[0], 1), device=inputs.device)
    width = torch.randint(0, 13, (inputs.shape[0], 1), device=inputs.device)
    hidden = (bands >= first) & (bands < first + width)
    return inputs.masked_fill(hidden.repeat(1, 2)[:, None], 0.0)


@torch.no_grad()
def _measure(trainer: Trainer, corpus: Corpus, settings: StageSettings) -> None:
    """Mean and variance of the hidden states over many pieces, into the encoder that is saved."""
    encoder = trainer.averaged["encoder"]
    assert isinstance(encoder, SemanticEncoder)
    total, squares, count = 0.0, 0.0, 0
    tokens = 100
    for _ in range(_STATISTICS_BATCHES if settings.device.type == "cuda" else 2):
        ids = corpus.draw(max(2, int(64 * settings.batch)), tokens)
        inputs, mask = semantic_inputs(to_16k(corpus.waves(ids, corpus.offsets(ids, tokens), piece_samples(tokens))))
        hidden = encoder(inputs, mask).double().flatten(0, 1)
        total, squares, count = total + hidden.sum(0), squares + hidden.square().sum(0), count + hidden.shape[0]
    mean = torch.as_tensor(total) / count
    encoder.mean.copy_(mean)
    encoder.var.copy_((torch.as_tensor(squares) / count - mean.square()).clamp(min=1e-4))
