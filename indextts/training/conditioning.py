"""What the language model's conditioning has to say of a clip, asked directly: who speaks, in which manner, how slowly.

The codes alone ask for it too, but faintly, and late: in a run's first hundred steps what the clips have in common is the better part of
the conditioning to learn, and a perceiver that has learnt to say the same of all clips has no gradient left to say more. One run ended like
that in voice and manner, the next in the manner alone, both with the best code accuracies so far: a model can go on in the voice and tempo
that it began in, whoever's they are. Batches of one tempo had driven them there (:mod:`indextts.training.batches` mixes them now).

So at first the heads alone teach the conditioning, and the codes join in. What the clips have in common is taken away before the heads
listen, and what tells them apart is made equally loud (arXiv 1502.03167): there is nothing to gain from saying the same of all. And too
little of what tells clips apart costs something by itself (after arXiv 2105.04906), since the heads do not mind how faint it is, but the
language model does. The heads are training's alone; no release has them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.training.coding import CodedCorpus
from indextts.training.speakers import LIVELINESS, RATES, all_speakers

_VOICE_WEIGHT, _MANNER_WEIGHT, _TEMPO_WEIGHT = 0.05, 0.2, 0.2
# Steps: up to the first the codes teach the conditioning nothing, from the second on all that they can.
_HEADS_ALONE, _ALL_TOGETHER = 400, 800
_LEAST_SPREAD, _SPREAD_WEIGHT = 0.5, 0.3
_FAINTEST = 1e-3  # variance
_TEMPO, _TEMPO_SPREAD = 1.4, 0.2  # usual log tokens per phone, and the unit of its errors


class ConditioningHeads(nn.Module):
    """One linear layer each, from what the language model is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.voice = nn.Linear(width, len(all_speakers()))
        self.manner = nn.Linear(width, len(RATES) * len(LIVELINESS))
        self.tempo = nn.Linear(width, 1)

    def losses(self, latents: Tensor, emotion: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the loss, and its parts.

        ``latents`` (B, N, D) of a voice; ``emotion`` (B, D) of a manner; ``truth`` (B, 3) from :func:`conditioning_truth`.
        """
        voice, manner, tempo = truth.unbind(1)
        spreads = torch.stack([spread_of(latents.flatten(1)), spread_of(emotion)])
        spoken, emotion, both = (apart(x) for x in (latents.mean(1), emotion, latents.mean(1) + emotion))
        foretold = _TEMPO + _TEMPO_SPREAD * self.tempo(both).squeeze(-1)
        parts = {
            "voice": F.cross_entropy(self.voice(spoken).float(), voice.long()),
            "manner": F.cross_entropy(self.manner(emotion).float(), manner.long()),
            "tempo": tempo_loss(foretold, tempo),
            "spread": spreads.amin(),
        }
        missing = (_LEAST_SPREAD - spreads).relu().sum()
        told = _VOICE_WEIGHT * parts["voice"] + _MANNER_WEIGHT * parts["manner"] + _TEMPO_WEIGHT * parts["tempo"]
        return told + _SPREAD_WEIGHT * missing, parts


def apart(x: Tensor) -> Tensor:
    """What tells the rows of ``x`` (B, D) apart: each column without its mean, in units of its spread."""
    x = x.float() - x.float().mean(0)
    return x / x.square().mean(0).add(_FAINTEST).sqrt()


def spread_of(x: Tensor) -> Tensor:
    """How much of the size of ``x`` (B, D) tells its rows apart, (): 0 if all are the same, 1 if they have nothing in common."""
    x = x.float()
    return (x.var(0, correction=0).mean() / x.square().mean().clamp(min=1e-20) + 1e-12).sqrt()


def conditioning_truth(corpus: CodedCorpus, ids: npt.NDArray[np.int64]) -> Tensor:
    """Number of the speaker, number of the manner, and log tokens per phone (NaN if not known) of utterances: (B, 3)."""
    columns = np.stack([corpus.speakers[ids], corpus.styles[ids], corpus.tempo[ids]], axis=1)
    return torch.from_numpy(columns.astype(np.float32)).to(corpus.device)


def tempo_loss(foretold: Tensor, tempo: Tensor) -> Tensor:
    """Mean square of the errors, in units of the usual spread; both (B,) in log tokens per phone. Rows with NaN do not count."""
    known = tempo.isfinite()
    errors = torch.where(known, (foretold.float() - tempo.nan_to_num()) / _TEMPO_SPREAD, 0.0)
    return errors.square().sum() / known.sum().clamp(min=1)


def listening_share(step: int) -> float:
    """Share of the codes' gradient that the conditioning gets at a step of a fresh run: 0, then rising, then 1."""
    return min(1.0, max(0.0, (step - _HEADS_ALONE) / (_ALL_TOGETHER - _HEADS_ALONE)))


def with_gradient_share(x: Tensor, share: Tensor) -> Tensor:
    """``x``, whose gradient is multiplied by ``share``."""
    return x.detach() + share * (x - x.detach())
