"""Diffusion transformer that estimates the flow-matching velocity of the mel (Seed-VC, arXiv 2411.09943).

DiT (arXiv 2212.09748) with adaptive RMSNorm, rotary positions (arXiv 2104.09864) and U-ViT skips (arXiv 2209.12152), followed by
a WaveNet head. ``conv1`` is a linear layer in the release; the name is kept for its weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.config import S2MelConfig
from indextts.models.wavenet import WaveNet

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, head_dim / 2) float32


class DiT(nn.Module):
    """One evaluation of the velocity field; all widths from the configuration, release values in the comments."""

    def __init__(self, s2mel: S2MelConfig) -> None:
        super().__init__()
        config = s2mel.DiT
        mel, dim, head = config.in_channels, config.hidden_dim, s2mel.wavenet.hidden_dim  # 80, 512, 512
        self.t_embedder = TimeEmbedding(dim)
        self.t_embedder2 = TimeEmbedding(head)
        self.cond_projection = nn.Linear(config.content_dim, dim)
        self.cond_x_merge_linear = nn.Linear(2 * mel + dim + s2mel.style_encoder.dim, dim)  # 864 -> 512
        self.transformer = Transformer(dim, config.num_heads, config.depth)
        self.skip_linear = nn.Linear(dim + mel, dim)
        self.conv1 = nn.Linear(dim, head)
        self.wavenet = WaveNet(s2mel.wavenet)
        self.res_projection = nn.Linear(dim, head)
        self.final_layer = FinalLayer(dim, head)
        self.conv2 = nn.Conv1d(head, mel, 1)

    def forward(self, x: Tensor, prompt_x: Tensor, t: Tensor, style: Tensor, mu: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Velocity (B, mel, T) of the state ``x`` (B, mel, T) at time ``t`` (B,) in [0, 1].

        ``prompt_x`` (B, mel, T) holds the prompt mel and zeros after it, ``style`` (B, style) the style vector, ``mu`` (B, T, content)
        the conditions. With ``lengths`` (B,) int64 each sample of a right-padded batch comes out as it does alone, zero beyond its
        length; without, every frame is valid. T must be at least 3 (the WaveNet reflects two frames at each end).
        """
        frames = x.shape[-1]
        valid = None if lengths is None else torch.arange(frames, device=x.device) < lengths[:, None]
        t1, t2 = self.t_embedder(t), self.t_embedder2(t)
        x_frames = x.transpose(1, 2)
        merged = [x_frames, prompt_x.transpose(1, 2), self.cond_projection(mu), style[:, None].expand(-1, frames, -1)]
        h = self.transformer(self.cond_x_merge_linear(torch.cat(merged, dim=-1)), t1, valid)
        h = self.skip_linear(torch.cat([h, x_frames], dim=-1))
        z = self.wavenet(self.conv1(h).transpose(1, 2), t2, lengths)
        h = self.final_layer(z.transpose(1, 2) + self.res_projection(h), t1)
        velocity: Tensor = self.conv2(h.transpose(1, 2))
        return velocity if valid is None else velocity.masked_fill(~valid[:, None], 0)


class Transformer(nn.Module):
    """Bidirectional blocks; the first half's outputs are fed to the second half, last in, first out."""

    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.middle = depth // 2
        self.layers = nn.ModuleList(Block(dim, heads, takes_skip=i > self.middle) for i in range(depth))
        self.norm = AdaptiveRMSNorm(dim)

    def forward(self, h: Tensor, t1: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, dim) to (B, T, dim), given the time embedding (B, dim) and which frames are real, (B, T) bool."""
        rotation = rotation_table(h.shape[1], self.head_dim, h.device)
        mask = None if valid is None else valid[:, None, None, :]
        skips: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            h = layer(h, t1, rotation, mask, skips.pop() if i > self.middle else None)
            if i < self.middle:
                skips.append(h)
        normed: Tensor = self.norm(h, t1)
        return normed


class Block(nn.Module):
    """Attention and gated feed-forward, each behind an adaptive norm."""

    def __init__(self, dim: int, heads: int, takes_skip: bool) -> None:
        super().__init__()
        if takes_skip:
            self.skip_in_linear = nn.Linear(2 * dim, dim)
        self.attention_norm = AdaptiveRMSNorm(dim)
        self.attention = Attention(dim, heads)
        self.ffn_norm = AdaptiveRMSNorm(dim)
        self.feed_forward = FeedForward(dim)

    def forward(self, h: Tensor, t1: Tensor, rotation: Rotation, mask: Tensor | None, skip: Tensor | None) -> Tensor:
        """(B, T, dim) to (B, T, dim); ``mask`` (B, 1, 1, T) bool marks the keys that count, ``skip`` is the U-ViT partner."""
        if skip is not None:
            h = self.skip_in_linear(torch.cat([h, skip], dim=-1))
        h = h + self.attention(self.attention_norm(h, t1), rotation, mask)
        out: Tensor = h + self.feed_forward(self.ffn_norm(h, t1))
        return out


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; no biases."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        """(B, T, dim) to (B, T, dim)."""
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotation), rotate(k, rotation), v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.wo(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU; the hidden width is 2/3 of 4 dim, rounded up to a multiple of 256."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = math.ceil(8 * dim // 3 / 256) * 256
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) to (B, T, dim)."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class RMSNorm(nn.Module):
    """Root-mean-square norm over channels, computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, h: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        full = h.float()
        return (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)).to(h.dtype) * self.weight


class AdaptiveRMSNorm(nn.Module):
    """RMSNorm whose gain and offset come from the time embedding; the gain is not offset by one, unlike in DiT."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project_layer = nn.Linear(dim, 2 * dim)
        self.norm = RMSNorm(dim)
        # Training starts from a plain RMSNorm.
        nn.init.zeros_(self.project_layer.weight)
        nn.init.ones_(self.project_layer.bias[:dim])
        nn.init.zeros_(self.project_layer.bias[dim:])

    def forward(self, h: Tensor, t1: Tensor) -> Tensor:
        """(B, T, dim) and the time embedding (B, dim) to (B, T, dim)."""
        gain, offset = self.project_layer(t1)[:, None].chunk(2, dim=-1)
        out: Tensor = gain * self.norm(h) + offset
        return out


class FinalLayer(nn.Module):
    """LayerNorm modulated by the time as in DiT (shift first, gain offset by one), then a linear layer."""

    def __init__(self, dim: int, head: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(head, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(head, head)
        modulation = nn.Linear(dim, 2 * head)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, h: Tensor, t1: Tensor) -> Tensor:
        """(B, T, head) and the time embedding (B, dim) to (B, T, head)."""
        shift, scale = self.adaLN_modulation(t1)[:, None].chunk(2, dim=-1)
        out: Tensor = self.linear(self.norm_final(h) * (1 + scale) + shift)
        return out


class TimeEmbedding(nn.Module):
    """Sinusoids of 1000 t, cosines first, through a two-layer perceptron."""

    def __init__(self, dim: int, sinusoids: int = 256) -> None:
        super().__init__()
        self.frequencies = sinusoids // 2
        self.mlp = nn.Sequential(nn.Linear(sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) in [0, 1] to (B, dim); the sinusoids in float32, where 16 bits cannot tell neighbouring times apart."""
        step = torch.arange(self.frequencies, device=t.device, dtype=torch.float32)
        angle = (1000 * t.float())[:, None] * torch.exp(-math.log(10000) * step / self.frequencies)
        sinusoids = torch.cat([angle.cos(), angle.sin()], dim=-1)
        out: Tensor = self.mlp(sinusoids.to(next(self.mlp.parameters()).dtype))
        return out


def rotation_table(frames: int, head_dim: int, device: torch.device) -> Rotation:
    """Cosines and sines for positions 0 .. frames - 1, in float32; position 0 is the first prompt frame."""
    pair = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    angle = torch.outer(torch.arange(frames, device=device, dtype=torch.float32), 1.0 / 10000 ** (pair / head_dim))
    if torch.compiler.is_compiling():  # generated code knows no complex numbers
        return angle.cos(), angle.sin()
    # Through polar, as in the release: on CPUs cos() and sin() of whole tensors differ from it in the last bit.
    cos, sin = torch.view_as_real(torch.polar(torch.ones_like(angle), angle)).unbind(-1)
    return cos, sin


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring pairs of channels of ``x`` (B, T, heads, head_dim) by their angles, in float32."""
    cos, sin = (table[:, None, :] for table in rotation)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
