"""Layers of w2v-BERT 2.0 (arXiv 2312.05187): a Conformer (arXiv 2005.08100) that tells near distances between tokens apart.

Parameters carry the key names of the published file. Nothing here is random, so training mode computes the same as evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swish": F.silu, "silu": F.silu, "gelu": F.gelu, "relu": F.relu}
INITIAL_DEVIATION = 0.02  # of fresh matrices inside the layers
KEY_MULTIPLE = 16  # fused attention kernels want rows of a bias to start at multiples of this


class FeatureProjection(nn.Module):
    """Front-end features (B, T, 160) to the encoder's width (B, T, d)."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        features = sizes["feature_projection_input_dim"]
        self.layer_norm = nn.LayerNorm(features, eps=sizes["layer_norm_eps"])
        self.projection = nn.Linear(features, sizes["hidden_size"])

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, 160) to (B, T, d)."""
        projected: Tensor = self.projection(self.layer_norm(features))
        return projected


class Encoder(nn.Module):
    """Projected features to the hidden state after the last of ``num_hidden_layers`` layers.

    ``sizes`` holds fields of the published ``config.json``. Errors: ``ValueError`` for an activation or a number of heads that
    does not fit.
    """

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.left, self.right = sizes["left_max_position_embeddings"], sizes["right_max_position_embeddings"]
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes["num_hidden_layers"]))
        self.apply(_initialise)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Inputs (B, T, d) and mask (B, T), 0 = padding, to (B, T, d); padding may hold anything."""
        tokens = hidden.shape[1]
        hidden_keys = F.pad(mask == 0, (0, -tokens % KEY_MULTIPLE), value=True)
        # Rows of the distance tables for the distances 1 - T to K, K being the padded number of keys.
        distances = torch.arange(1 - tokens, hidden_keys.shape[1] + 1, device=hidden.device).clamp(-self.left, self.right) + self.left
        hidden = hidden.masked_fill(hidden_keys[:, :tokens, None], 0)
        for layer in self.layers:
            hidden = layer(hidden, hidden_keys, distances)
        return hidden


class EncoderLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each with a residual; then a LayerNorm."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = sizes["hidden_size"], sizes["layer_norm_eps"]
        self.ffn1_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn1 = FeedForward(sizes)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.self_attn = DistanceAttention(sizes)
        self.conv_module = ConvolutionModule(sizes)
        self.ffn2_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn2 = FeedForward(sizes)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, hidden_keys: Tensor, distances: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d); ``hidden_keys`` (B, K), true for padding, and ``distances`` (T + K,) as in :class:`Encoder`."""
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x))
        x = x + self.self_attn(self.self_attn_layer_norm(x), hidden_keys, distances)
        x = x + self.conv_module(x, hidden_keys[:, : x.shape[1]])
        x = x + 0.5 * self.ffn2(self.ffn2_layer_norm(x))
        out: Tensor = self.final_layer_norm(x)
        return out


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(sizes["hidden_size"], sizes["intermediate_size"])
        self.output_dense = nn.Linear(sizes["intermediate_size"], sizes["hidden_size"])
        self.activation = _activation(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        out: Tensor = self.output_dense(self.activation(self.intermediate_dense(x)))
        return out


class DistanceAttention(nn.Module):
    """``score(i, j) = q_i . (k_j + e(j - i)) / sqrt(d_k)``; the table ``e`` is shared by the heads and ends at a distance each side."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, self.heads = sizes["hidden_size"], sizes["num_attention_heads"]
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"a width of {width} cannot be split into {self.heads} attention heads")
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        rows = sizes["left_max_position_embeddings"] + sizes["right_max_position_embeddings"] + 1
        self.distance_embedding = nn.Embedding(rows, width // self.heads)

    def forward(self, x: Tensor, hidden_keys: Tensor, distances: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d); the others as in :class:`EncoderLayer`."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.linear_q, self.linear_k, self.linear_v))
        bias = self._bias(q, hidden_keys, distances)
        if bias.requires_grad:  # not every fused kernel has a derivative by the bias
            mixed = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return out

    def _bias(self, q: Tensor, hidden_keys: Tensor, distances: Tensor) -> Tensor:
        """What is added to the scores of queries (B, heads, T, d_k) and keys: (B, heads, T, T)."""
        tokens, keys = q.shape[2], hidden_keys.shape[1]
        table = self.distance_embedding(distances) / math.sqrt(q.shape[-1])
        scores = q @ table.transpose(0, 1)  # (B, heads, T, T + K), column c for the distance c + 1 - T
        # Row i needs the K columns from T - 1 - i. Read as rows of T + K - 1 from place T - 1 on, these are the first columns.
        by_key = scores.flatten(2)[..., tokens - 1 : -1].unflatten(-1, (tokens, tokens + keys - 1))[..., :keys]
        # Half the lowest number: kernels that compute powers of 2 multiply it by log2(e), and it must stay finite.
        return by_key.masked_fill(hidden_keys[:, None, None], torch.finfo(scores.dtype).min / 2)[..., :tokens]


class ConvolutionModule(nn.Module):
    """Gated pointwise convolution, causal depthwise convolution with LayerNorm, pointwise convolution; no biases."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = sizes["hidden_size"], sizes["layer_norm_eps"]
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.pointwise_conv1 = Pointwise(width, 2 * width, 1, bias=False)
        self.depthwise_conv = CausalDepthwise(width, width, sizes["conv_depthwise_kernel_size"], groups=width, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(width, eps=eps)
        self.pointwise_conv2 = Pointwise(width, width, 1, bias=False)
        self.activation = _activation(sizes)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d); ``padding`` (B, T) is true where tokens must not be seen."""
        x = self.layer_norm(x).masked_fill(padding[..., None], 0)
        x = self.depthwise_conv(F.glu(self.pointwise_conv1(x), dim=-1))
        out: Tensor = self.pointwise_conv2(self.activation(self.depthwise_layer_norm(x)))
        return out


class Pointwise(nn.Conv1d):
    """A convolution of kernel 1, computed as a linear layer on channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in) to (B, T, out)."""
        return F.linear(x, self.weight.squeeze(-1))


class CausalDepthwise(nn.Conv1d):
    """A convolution of each channel with its own kernel, which ends at the present token."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        past = F.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        return F.conv1d(past, self.weight, groups=self.groups).transpose(1, 2)


def _activation(sizes: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    name = sizes["hidden_act"]
    if name not in ACTIVATIONS:
        raise ValueError(f"w2v-BERT activation {name!r} is not supported; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _initialise(module: nn.Module) -> None:
    """Start values for training from nothing."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
    elif isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)
