"""GPT-2's transformer stack without its own embeddings, and a plain KV cache.

Layout and names as in Hugging Face's ``GPT2Model``: linear weights are stored ``(in, out)``.

With 16-bit weights the linear layers and attention run in 16 bits; the residual stream and the norms stay in float32, as in the
release's half-precision mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KVCache:
    """Keys and values of every layer, ``(B, heads, T, head_width)``; grows by concatenation."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    @property
    def length(self) -> int:
        """Positions held."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new positions to ``layer``; returns all that the layer holds."""
        if layer == len(self.layers):
            self.layers.append((keys, values))
        else:
            past_keys, past_values = self.layers[layer]
            self.layers[layer] = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
        return self.layers[layer]

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row ``rows[i]`` was; rows may repeat, so this also makes one row into several beams."""
        self.layers = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.layers]


class GPT2Stack(nn.Module):
    """Decoder blocks and a final LayerNorm, from embeddings to hidden states."""

    def __init__(self, width: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(GPT2Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Embeddings ``(B, S, D)`` of the newest S positions to hidden states ``(B, S, D)``.

        ``mask``: ``(B, T)``, true for real positions, over the T positions of the cache after this call (None: all real).
        ``cache``: holds the T - S positions before and is extended in place (None: there are none).
        """
        x = self.drop(_at_least_float32(x))
        past = cache.length if cache else 0
        visible = _visible(mask, x.shape[1], past, x.device)
        for layer, block in enumerate(self.h):
            x = block(x, visible, layer, cache)
        out: Tensor = self.ln_f(x)
        return out


def _visible(mask: Tensor | None, new: int, past: int, device: torch.device) -> Tensor | None:
    """Which keys each new position sees: ``(B or 1, 1, new, past + new)``; None stands for plain causal attention."""
    if mask is None and (new == 1 or not past):
        return None
    if mask is not None and new == 1:
        return mask[:, None, None, :]
    causal = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    if mask is None:
        return causal
    # A padded position sees itself: a row of attention without any key would be NaN and spread through its value.
    return (causal & mask[:, None, None, :]) | causal.triu(past)


class GPT2Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = GPT2Attention(width, heads, dropout)
        self.ln_2 = LayerNorm(width)
        self.mlp = GPT2MLP(width, dropout)

    def forward(self, x: Tensor, visible: Tensor | None, layer: int, cache: KVCache | None) -> Tensor:
        """``(B, S, D)`` to ``(B, S, D)``."""
        x = x + self.attn(self.ln_1(x), visible, layer, cache)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT2Attention(nn.Module):
    """Causal self-attention; ``c_attn`` gives query, key and value as three consecutive blocks."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None, layer: int, cache: KVCache | None) -> Tensor:
        """``(B, S, D)`` to ``(B, S, D)``; with a cache the keys and values are those of all positions so far."""
        query, keys, values = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.c_attn(x).chunk(3, dim=-1))
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        mixed = F.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visible is None and query.shape[2] > 1,
        )
        out: Tensor = self.drop(self.c_proj(mixed.transpose(1, 2).flatten(2)))
        return out


class GPT2MLP(nn.Module):
    """Two linear layers with the tanh form of GELU between them; inner width 4 D."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = Conv1D(width, 4 * width)
        self.c_proj = Conv1D(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, S, D)`` to ``(B, S, D)``."""
        out: Tensor = self.drop(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))
        return out


class Conv1D(nn.Module):
    """A linear layer whose weight is stored ``(in, out)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``; float16 results saturate instead of becoming infinite."""
        y = F.linear(x.to(self.weight.dtype), self.weight.t(), self.bias)
        return y.clamp(-65504, 65504) if y.dtype == torch.float16 else y


class LayerNorm(nn.LayerNorm):
    """In float32 whatever the weights' type."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to the same shape."""
        if x.dtype == self.weight.dtype == torch.float32:  # nothing to convert, and a decode step comes here often
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        x, weight, bias = (_at_least_float32(y) for y in (x, self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
