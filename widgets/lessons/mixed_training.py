"""Lesson 14: a miniature of the voice's language model, trained for seconds in float32 and in mixed precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.models.gpt import UnifiedVoice
from indextts.training.loop import LossScale
from indextts.training.sizes import SIZES

SMALLEST = {"fp16": 2.0**-24, "bf16": 2.0**-133}  # the smallest number above zero, subnormals included


@dataclass(frozen=True)
class Curve:
    """Loss of every step, in nats a code."""

    precision: str
    losses: list[float]

    @property
    def last(self) -> float:
        """Mean of the last ten steps."""
        return float(np.mean(self.losses[-10:]))


def toy_batch(step: int, rows: int = 8, letters: int = 6) -> tuple[Tensor, Tensor]:
    """A made-up language: each letter (0 to 19) is spoken as two codes that depend on it. Text (B, L), codes (B, 2 L)."""
    draws = torch.Generator().manual_seed(step)
    text = torch.randint(2, 22, (rows, letters), generator=draws)
    codes = torch.stack([2 * text - 3, 2 * text - 2], dim=2).flatten(1)
    return text, codes


def miniature(seed: int = 0) -> UnifiedVoice:
    """The language model of the training recipe's miniature, freshly initialised."""
    torch.manual_seed(seed)
    return UnifiedVoice(SIZES["miniature"]().config.gpt).train()


def code_loss(gpt: UnifiedVoice, text: Tensor, codes: Tensor) -> Tensor:
    """Cross entropy of the codes, teacher forced, nats a code."""
    conditioning = torch.zeros(len(text), 2, gpt.config.model_dim)
    logits = gpt(conditioning, text, None, codes, None)[1]
    return F.cross_entropy(logits[:, : codes.shape[1]].flatten(0, 1).float(), codes.flatten())


def train(precision: str, steps: int = 80, rate: float = 3e-3) -> Curve:
    """Train on the made-up language with Adam; ``bf16`` runs the products in 16 bits, weights and optimiser stay in float32."""
    gpt = miniature()
    optimiser = torch.optim.AdamW(gpt.parameters(), rate)
    losses = []
    for step in range(steps):
        text, codes = toy_batch(step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = code_loss(gpt, text, codes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return Curve(precision, losses)


def gradient_sizes(steps: int = 60) -> Tensor:
    """Sizes of all gradients that are not zero, after some training, in float32, (n,)."""
    gpt = miniature()
    optimiser = torch.optim.AdamW(gpt.parameters(), 3e-3)
    for step in range(steps):
        loss = code_loss(gpt, *toy_batch(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    sizes = torch.cat([weight.grad.abs().flatten() for weight in gpt.parameters() if weight.grad is not None])
    return sizes[sizes > 0]


def lost_percent(sizes: Tensor, scale: float = 1.0, batch: float = 1.0) -> float:
    """Percent of gradients that fp16 rounds to zero when the loss is multiplied by ``scale``.

    ``batch`` divides them first: the mean over so many times as much data makes each piece's share smaller.
    """
    kept = (sizes * scale / batch).to(torch.float16) > 0
    return 100 * (1 - float(kept.float().mean()))


def scale_history(overflow_at: list[int], steps: int = 60, start: float = 2.0**14, patience: int = 10) -> list[float]:
    """The dynamic loss scale over a run in which the gradients overflow at the given steps (the training loop's own class)."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([weight], 0.1)
    scale = LossScale(torch.device("cpu"), True, start, patience)
    history = []
    for step in range(steps):
        weight.grad = torch.full((1,), float("inf") if step in overflow_at else 1.0)
        scale.unscale([weight], optimiser)
        history.append(float(scale.value))
    return history
