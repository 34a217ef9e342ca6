"""Conformer encoder of the speaker and emotion prompts (arXiv 2005.08100), as the release has it.

It differs from the paper: one feed-forward layer a block (factor 1), LayerNorm instead of batch norm in the convolution, and
position scores (arXiv 1901.02860) **without the relative shift**, so a position term belongs to the key's absolute index.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.config import ConformerConfig

POSITIONS = 5000  # rows of the position table
KERNEL = 15  # of the depthwise convolution
PIECE = 64  # frames, of all rows, that the subsampling holds at once in a padded batch: at the release's size 1 MB each, three times


class ConformerEncoder(nn.Module):
    """Semantic features at 50 per second to encoded frames at 25 per second."""

    def __init__(self, config: ConformerConfig, input_dim: int) -> None:
        super().__init__()
        self.embed = Subsampling(input_dim, config.output_size)
        self.encoders = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, features: Tensor, lengths: Tensor | None = None, *, isolate_padding: bool = False) -> tuple[Tensor, Tensor | None]:
        """Features ``(B, T, input_dim)``, lengths ``(B,)`` in frames (None: all T) to ``(B, T2, d)`` and its mask ``(B, 1, T2)``.

        ``T2 = (T - 1) // 2``. The mask is true for real frames, and None without lengths.
        In the release padded frames are not zero when they enter the depthwise convolution, so a padded row differs from the
        same row alone. ``isolate_padding=True`` zeroes them there as well: every row then gets its own result.
        Errors: ``ValueError`` if T < 3 or T2 exceeds the position table.
        """
        if features.shape[1] < 3:
            raise ValueError(f"the conditioning encoder needs at least 3 frames of features (60 ms), got {features.shape[1]}")
        mask = None if lengths is None else frame_mask(lengths, features.shape[1])[:, :, 2::2]
        whole = lengths is None or torch.is_grad_enabled()
        x: Tensor = self.embed(features) if whole else self.embed.in_pieces(features)
        positions = self.embed.pos_enc(x.shape[1])
        x = x * math.sqrt(x.shape[-1])
        for block in self.encoders:
            x = block(x, positions, mask, isolate_padding)
        return self.after_norm(x), mask


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Lengths ``(B,)`` to a mask ``(B, 1, frames)``, true before each row's length."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None])[:, None, :]


class Subsampling(nn.Module):
    """One strided convolution over the features as an image, then a linear layer: half the frames."""

    def __init__(self, input_dim: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, kernel_size=3, stride=2), nn.ReLU())
        self.out = nn.Sequential(nn.Linear(width * ((input_dim - 1) // 2), width))
        self.pos_enc = PositionTable(width)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, T, input_dim)`` to ``(B, (T - 1) // 2, width)``."""
        image = self.conv(features[:, None])  # (B, width, T2, frequencies)
        out: Tensor = self.out(image.transpose(1, 2).flatten(2))  # channel outer, frequency inner
        return out

    def in_pieces(self, features: Tensor) -> Tensor:
        """The same with little memory, which a CUDA graph would hold for good."""
        frames, step = (features.shape[1] - 1) // 2, max(1, PIECE // features.shape[0])
        pieces = [self(features[:, 2 * first : 2 * min(first + step, frames) + 1]) for first in range(0, frames, step)]
        return torch.cat(pieces, dim=1)


class PositionTable(nn.Module):
    """Position vectors. The release stores the table (rounded), so it is loaded like a weight; the sinusoid is the start value."""

    pe: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoid(POSITIONS, width))

    def forward(self, frames: int) -> Tensor:
        """The first rows, ``(1, frames, width)``."""
        if frames > self.pe.shape[1]:
            raise ValueError(f"{frames} frames exceed the {self.pe.shape[1]} rows of the position table")
        return self.pe[:, :frames]


def sinusoid(rows: int, width: int) -> Tensor:
    """Sine at even and cosine at odd places, wavelengths from 2 pi to 20000 pi (arXiv 1706.03762): ``(1, rows, width)``."""
    table = torch.zeros(1, rows, width)
    if table.is_meta:
        return table
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(rows)[:, None] * rates
    table[0, :, 0::2] = angles.sin()
    table[0, :, 1::2] = angles[:, : width // 2].cos()
    return table


class ConformerBlock(nn.Module):
    """Attention, convolution, feed-forward; each pre-norm with a residual; then a LayerNorm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width = config.output_size
        self.self_attn = PositionedAttention(width, config.attention_heads)
        self.conv_module = ConvolutionModule(width)
        self.feed_forward = FeedForward(width, config.linear_units)
        self.norm_mha = nn.LayerNorm(width)
        self.norm_conv = nn.LayerNorm(width)
        self.norm_ff = nn.LayerNorm(width)
        self.norm_final = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, isolate_padding: bool) -> Tensor:
        """``(B, T, d)``, positions ``(1, T, d)``, mask ``(B, 1, T)`` to ``(B, T, d)``."""
        x = x + self.self_attn(self.norm_mha(x), positions, mask)
        x = x + self.conv_module(self.norm_conv(x), mask, isolate_padding)
        x = x + self.feed_forward(self.norm_ff(x))
        out: Tensor = self.norm_final(x)
        return out


class PositionedAttention(nn.Module):
    """``score(i, j) = ((q_i + u) . k_j + (q_i + v) . p_j) / sqrt(d_k)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """``(B, T, d)``, positions ``(1, T, d)``, mask ``(B, 1, T)`` of visible keys to ``(B, T, d)``."""
        q, k, v, p = (self._split(y) for y in (self.linear_q(x), self.linear_k(x), self.linear_v(x), self.linear_pos(positions)))
        content = (q + self.pos_bias_u[:, None]) @ k.transpose(-2, -1)
        position = (q + self.pos_bias_v[:, None]) @ p.transpose(-2, -1)
        scores = (content + position) / math.sqrt(q.shape[-1])
        if mask is None:
            weights = scores.softmax(dim=-1)
        else:
            hidden = ~mask[:, None]
            # Zeroing after the softmax turns the NaN of a row without any visible key into zeros.
            weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1).masked_fill(hidden, 0.0)
        out: Tensor = self.linear_out((weights @ v).transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d_k)


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise, LayerNorm, SiLU, pointwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor | None, isolate_padding: bool) -> Tensor:
        """``(B, T, d)``, mask ``(B, 1, T)`` to ``(B, T, d)``; see :meth:`ConformerEncoder.forward` for ``isolate_padding``."""
        x = _zero_padding(x.transpose(1, 2), mask)
        x = F.glu(self.pointwise_conv1(x), dim=1)
        if isolate_padding:
            x = _zero_padding(x, mask)
        x = self.norm(self.depthwise_conv(x).transpose(1, 2))
        x = self.pointwise_conv2(F.silu(x).transpose(1, 2))
        return _zero_padding(x, mask).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, d)`` to ``(B, T, d)``."""
        out: Tensor = self.w_2(F.silu(self.w_1(x)))
        return out


def _zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask, 0.0)
