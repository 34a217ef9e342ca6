"""Stage 2: the semantic codec. Codes must keep the phone and the melody and need not keep the speaker.

The quantiser is trained straight through, with a decoder that exists only here; what the decoder restores is read by the encoder's own
frozen heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.models.semantic_codec import SemanticCodec, VocosBackbone
from indextts.training.corpus import IGNORED, Corpus
from indextts.training.encoder import labelled_pieces, load_encoder, phone_loss
from indextts.training.features import pitch_bins, semantic_inputs, to_16k
from indextts.training.loop import StageSettings, Trainer
from indextts.training.parts import load_part, restore
from indextts.training.sizes import SIZES

_TOKENS = 150
_BATCH = 192
_COMMIT, _FEATURE, _PHONE, _PITCH = 0.25, 0.3, 1.0, 0.2
_RESTART_EVERY = 25  # steps between looks for codes that nobody uses


class Restorer(nn.Module):
    """Quantised features (B, T, width) back to features: the training-only decoder."""

    def __init__(self, size: str) -> None:
        super().__init__()
        config = SIZES[size]().config.semantic_codec
        self.backbone = VocosBackbone(config)
        self.out = nn.Linear(config.vocos_dim, config.hidden_size)

    def forward(self, quantised: Tensor) -> Tensor:
        """(B, T, width) to (B, T, width)."""
        restored: Tensor = self.out(self.backbone(quantised.transpose(1, 2)))
        return restored


def load_codec(settings: StageSettings) -> SemanticCodec:
    """The trained codec, frozen, on the device."""
    codec = SemanticCodec(SIZES[settings.size]().config.semantic_codec)
    restore({"codec": codec}, {k: v for k, v in load_part(settings.parts, "codec")[0].items() if k.startswith("codec.")})
    return codec.to(settings.device).requires_grad_(False).eval()


def train_codec(corpus: Corpus, settings: StageSettings) -> None:
    """Train for the time given and write the part."""
    torch.manual_seed(settings.seed)
    encoder, heads = load_encoder(settings)
    codec, restorer = SemanticCodec(SIZES[settings.size]().config.semantic_codec), Restorer(settings.size)
    with torch.no_grad():
        codec.quantizer.first.codebook.weight.copy_(F.normalize(torch.randn_like(codec.quantizer.first.codebook.weight), dim=-1))
    trainer = Trainer("codec", {"codec": codec, "restorer": restorer}, settings, peak=1e-3, weight_decay=0.0)
    entries = codec.quantizer.first.codebook.weight
    usage = torch.ones(entries.shape[0], device=entries.device)
    deviation = encoder.var.sqrt()
    count = max(2, int(_BATCH * settings.batch))
    latest = torch.zeros(count * _TOKENS, entries.shape[1], device=entries.device)  # latents of the newest batch

    def losses(inputs: Tensor, mask: Tensor, phones: Tensor, pitch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            features = encoder(inputs, mask).float()
        quantised, codes, latents, commitment = quantise(codec, features)
        restored = restorer(quantised).float()
        raw = restored * deviation + encoder.mean
        logits = heads.phone(raw).float()
        parts = {
            "feature": F.mse_loss(restored, features),
            "phone": phone_loss(logits, phones),
            "pitch": F.cross_entropy(heads.pitch(raw).float().transpose(1, 2), pitch),
            "commit": commitment,
        }
        loss = _FEATURE * parts["feature"] + _PHONE * parts["phone"] + _PITCH * parts["pitch"] + _COMMIT * parts["commit"]
        with torch.no_grad():
            latest.copy_(latents.flatten(0, 1))
            usage.mul_(0.95).index_add_(0, codes.flatten(), torch.full_like(latest[:, 0], 0.05))
            share = usage / usage.sum()
            perplexity = (-(share * (share + 1e-9).log()).sum()).exp()
            right = (logits.argmax(-1) == phones).sum() / (phones != IGNORED).sum().clamp(min=1)
        return loss, {**parts, "perplexity": perplexity, "phone_accuracy": right}

    step = trainer.replayed(losses)
    while trainer.running:
        corpus.refresh(1)
        waves, phones = labelled_pieces(corpus, count, _TOKENS)
        waves_16k = to_16k(waves)
        step(*semantic_inputs(waves_16k), phones, pitch_bins(waves_16k, _TOKENS, settings.absolute_pitch))
        if trainer.steps % _RESTART_EVERY == 0 and trainer.progress < 0.7:
            _restart_unused(entries, usage, latest)
    del trainer.averaged["restorer"]  # has done its work
    trainer.save()


def quantise(codec: SemanticCodec, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Straight-through version of ``codec.quantize``: quantised (B, T, width), codes (B, T), directions (B, T, dim), commitment loss.

    Codes are compared by direction, so latents and codebook rows meet on the unit sphere; the codebook learns from the decoder too,
    because the raw row is what is projected out.
    """
    backbone, projection = codec.encoder
    quantizer = codec.quantizer.first
    hidden = projection(backbone(features.transpose(1, 2)))
    directions = F.normalize(quantizer.in_project(hidden.transpose(1, 2)).transpose(1, 2).float(), dim=-1)
    rows = F.normalize(quantizer.codebook.weight, dim=-1)
    with torch.autocast(features.device.type, enabled=False):  # which row is nearest must not depend on 16 bits
        codes = (directions @ rows.T).argmax(-1)
    chosen = F.embedding(codes, rows)
    commitment = (chosen - directions.detach()).square().sum(-1).mean() + (chosen.detach() - directions).square().sum(-1).mean()
    raw = F.embedding(codes, quantizer.codebook.weight)
    through = raw + (directions - directions.detach())
    quantised = quantizer.out_project(through.transpose(1, 2)).transpose(1, 2)
    return quantised, codes, directions.detach(), commitment


@torch.no_grad()
def _restart_unused(entries: Tensor, usage: Tensor, latents: Tensor) -> None:
    """Move codes that are hardly used to where features are."""
    unused = (usage < 0.03 * usage.mean()).nonzero()[:, 0]
    if len(unused):
        entries[unused] = latents[torch.randint(len(latents), (len(unused),), device=latents.device)].to(entries.dtype)
        usage[unused] = usage.mean()
