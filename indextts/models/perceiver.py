"""Perceiver resampler: any number of frames to a fixed number of latents.

Perceiver (arXiv 2103.03206) with GEGLU feed-forward layers (arXiv 2002.05202) and a final RMSNorm (arXiv 1910.07467). There is
no normalisation between the layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerceiverResampler(nn.Module):
    """Learned latents that attend to themselves and to a context.

    ``dim``: width of the latents; ``dim_context``: width of the context; ``mult``: the feed-forward layer's inner width is
    ``floor(dim * mult * 2 / 3)``.
    """

    def __init__(
        self, dim: int, dim_context: int, *, num_latents: int, heads: int, depth: int = 2, dim_head: int = 64, mult: int = 2
    ) -> None:
        super().__init__()
        self.proj_context = nn.Linear(dim_context, dim) if dim_context != dim else nn.Identity()
        self.latents = nn.Parameter(torch.empty(num_latents, dim))
        nn.init.normal_(self.latents, std=0.02)
        inner = dim * mult * 2 // 3
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [PerceiverAttention(dim, heads, dim_head), nn.Sequential(nn.Linear(dim, 2 * inner), GEGLU(), nn.Linear(inner, dim))]
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(dim)

    def forward(self, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Context ``(B, T, dim_context)``, mask ``(B, T)`` true for real frames (None: all) to latents ``(B, num_latents, dim)``."""
        context = self.proj_context(context)
        latents = self.latents.expand(context.shape[0], -1, -1)
        if mask is not None:
            mask = F.pad(mask, (latents.shape[1], 0), value=True)  # latents come first and are always visible
        for attention, feed_forward in cast("Iterable[tuple[nn.Module, nn.Module]]", self.layers):
            latents = latents + attention(latents, context, mask)
            latents = latents + feed_forward(latents)
        normed: Tensor = self.norm(latents)
        return normed


class PerceiverAttention(nn.Module):
    """Queries from the latents; keys and values from the latents followed by the context."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Latents ``(B, N, dim)``, context ``(B, T, dim)``, mask ``(B, N + T)`` to ``(B, N, dim)``, before the residual is added."""
        keys, values = self.to_kv(torch.cat([latents, context], dim=1)).chunk(2, dim=-1)
        query, keys, values = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(latents), keys, values))
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=None if mask is None else mask[:, None, None, :])
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class GEGLU(nn.Module):
    """First half of the last dimension times the exact GELU of the second half."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., 2 D)`` to ``(..., D)``."""
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class RMSNorm(nn.Module):
    """``x / ||x|| * sqrt(dim) * gamma``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to the same shape."""
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * self.gamma
