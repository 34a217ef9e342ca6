"""Prefill and latent pass as CUDA graphs: whole sequences in one launch, in buckets of length that change nothing.

A prefix is filled up on the left, behind its mask, where texts of a batch are padded anyway; codes are filled up on the right, where
no earlier state depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.graphs import GraphedCall
from indextts.engine.static_cache import Layers, OneBlock, in_one_block
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import KVCache

PREFIX_BUCKET = 32  # positions
CODES_BUCKET = 64


class PassGraphs:
    """The two passes of ``gpt``; ``graphed(function, warmup_steps)`` makes a replayed function of one."""

    def __init__(self, gpt: UnifiedVoice, warmup_steps: int, graphed: Callable[..., Any] = GraphedCall) -> None:
        self._prefill = graphed(partial(prefill_pass, gpt), warmup_steps)
        self._latents = graphed(partial(latent_pass, gpt), warmup_steps)

    def prefill(self, embedded: Tensor, mask: Tensor | None) -> tuple[OneBlock, Tensor, Tensor]:
        """Run embeddings ``(B, S, D)`` with mask ``(B, S)``: keys and values of each layer, the mask over them, ``(B, T)`` with T a whole
        number of buckets, and the state at the last position, ``(B, D)``.
        """
        missing = -embedded.shape[1] % PREFIX_BUCKET
        if mask is None:
            mask = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        mask = F.pad(mask, (missing, 0), value=False)
        kv, last = self._prefill(F.pad(embedded, (0, 0, missing, 0)), mask)
        return OneBlock(kv), mask, last

    def latents(self, layers: Layers, mask: Tensor | None, fed: Tensor) -> Tensor:
        """Run embedded codes ``(B, n, D)`` after a prefix: states ``(B, n, D)``."""
        count = fed.shape[1]
        if mask is None:
            mask = torch.ones(len(fed), layers[0][0].shape[2], dtype=torch.bool, device=fed.device)
        states: Tensor = self._latents(in_one_block(layers), mask, F.pad(fed, (0, 0, 0, -count % CODES_BUCKET)))
        return states[:, :count]

    @property
    def memory_mb(self) -> float:
        """Megabytes of the graphs' pools."""
        return float(self._prefill.memory_mb + self._latents.memory_mb)

    def clear(self) -> None:
        """Drop the graphs; they are captured again when needed."""
        self._prefill.clear()
        self._latents.clear()


def prefill_pass(gpt: UnifiedVoice, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``(2, layers, B, heads, T, head_width)`` and the last state ``(B, D)``."""
    cache = KVCache()
    hidden = gpt.gpt(embedded, mask, cache)
    return torch.stack([torch.stack(half) for half in zip(*cache.layers, strict=True)]), hidden[:, -1]


def latent_pass(gpt: UnifiedVoice, kv: Tensor, mask: Tensor, fed: Tensor) -> Tensor:
    """States ``(B, n, D)`` of embedded codes after the prefix with keys and values ``kv``."""
    cache = KVCache()
    cache.layers = list(zip(kv[0], kv[1], strict=True))
    states: Tensor = gpt.gpt(fed, F.pad(mask, (0, fed.shape[1]), value=True), cache)
    return states
