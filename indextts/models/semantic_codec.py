"""Semantic codec: continuous semantic features to one code of a codebook every 20 ms, and back.

MaskGCT's codec (arXiv 2409.00750; model id ``amphion/MaskGCT``): a Vocos backbone (arXiv 2306.00814) and one codebook with
factorised, normalised look-up (arXiv 2306.06546). Its decoder is not used by IndexTTS2 and not built here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indextts.config import SemanticCodecConfig

KERNEL = 7
NORM_EPSILON = 1e-6


class SemanticCodec(nn.Module):
    """Encoder and quantiser; features are (B, T, hidden), codes (B, T) int64."""

    UNUSED: tuple[str, ...] = (r"decoder\..*",)
    WEIGHT_NORMED: tuple[str, ...] = ("quantizer.quantizers.0.in_project", "quantizer.quantizers.0.out_project")

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([VocosBackbone(config), nn.Linear(config.vocos_dim, config.hidden_size)])
        self.quantizer = ResidualQuantizer(config)

    def quantize(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes (B, T) and quantised features (B, T, hidden) of normalised semantic features (B, T, hidden).

        ``lengths`` (B,) counts the real frames of each row of a batch padded on the right; frames within it come out as if the
        row were alone, those beyond it mean nothing. Without it all frames are real.
        """
        mask = None
        if lengths is not None:
            steps = torch.arange(features.shape[1], device=features.device)
            mask = (steps < lengths.to(features.device).unsqueeze(1)).unsqueeze(1)
        backbone, projection = self.encoder
        latents = projection(backbone(features.transpose(1, 2), mask))
        codes, quantised = self.quantizer.first(latents.transpose(1, 2))
        return codes, quantised.transpose(1, 2)

    def vq2emb(self, codes: Tensor) -> Tensor:
        """Embed codes (B, N), each below ``codebook_size``: (B, hidden, N). Start and stop codes must be removed before."""
        return self.quantizer.first.embed(codes)


class VocosBackbone(nn.Module):
    """ConvNeXt blocks between a convolution and a norm."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        dim = config.vocos_dim
        self.embed = nn.Conv1d(config.hidden_size, dim, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.convnext = nn.ModuleList(ConvNeXtBlock(dim, config.vocos_intermediate_dim) for _ in range(config.vocos_num_layers))
        self.final_layer_norm = nn.LayerNorm(dim, eps=NORM_EPSILON)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, hidden, T) to (B, T, vocos_dim); ``mask`` (B, 1, T) is true for real frames."""
        x = self.embed(zero_padding(x, mask))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x, mask)
        y: Tensor = self.final_layer_norm(x.transpose(1, 2))
        return y


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution and a pointwise MLP beside a shortcut."""

    def __init__(self, dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.pwconv1 = nn.Linear(dim, intermediate_dim)
        self.pwconv2 = nn.Linear(intermediate_dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, dim, T) to (B, dim, T); ``mask`` (B, 1, T) is true for real frames."""
        y = self.norm(self.dwconv(zero_padding(x, mask)).transpose(1, 2))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.transpose(1, 2)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padded frames of (B, C, T), so that a convolution sees what it sees at the end of a single clip."""
    return x if mask is None else x.masked_fill(~mask, 0.0)


class ResidualQuantizer(nn.Module):
    """The file's container of quantisers, of which there is one."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList([FactorizedQuantizer(config)])

    @property
    def first(self) -> FactorizedQuantizer:
        """The only quantiser."""
        quantizer = self.quantizers[0]
        assert isinstance(quantizer, FactorizedQuantizer)
        return quantizer


class FactorizedQuantizer(nn.Module):
    """Nearest code by direction, in a space of few dimensions."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.in_project = nn.Conv1d(config.hidden_size, config.codebook_dim, 1)
        self.out_project = nn.Conv1d(config.codebook_dim, config.hidden_size, 1)
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, hidden, T) to codes (B, T) int64, the lowest index among equals, and their embedding (B, hidden, T)."""
        projected = self.in_project(latents)
        codes = self.nearest(projected)
        rows = self.codebook(codes).transpose(1, 2)
        # The value is that of the row; the sum lets gradients pass in training and rounds as the released model does.
        return codes, self.out_project(projected + (rows - projected).detach())

    def nearest(self, projected: Tensor) -> Tensor:
        """Codes (B, T) of projected latents (B, codebook_dim, T)."""
        z = F.normalize(projected.transpose(1, 2), dim=-1)
        directions = F.normalize(self.codebook.weight, dim=-1)
        distance = z.square().sum(-1, keepdim=True) - 2 * z @ directions.T + directions.square().sum(-1)
        return distance.argmin(dim=-1)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (B, N) to (B, hidden, N). The raw codebook row counts, not its direction."""
        embedded: Tensor = self.out_project(self.codebook(codes).transpose(1, 2))
        return embedded
