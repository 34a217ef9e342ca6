"""Codes and GPT latents to the content that the length regulator stretches, in two matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.engine.solver_weights import compose
from indextts.models.s2mel import S2Mel
from indextts.models.semantic_codec import SemanticCodec


class ContentProjection:
    """``S2Mel.content`` with ``SemanticCodec.vq2emb``, folded; float32.

    The latents pass three linear layers without an activation, so the first two are one map of low rank. The last one and the codec's
    output projection are both linear and are added up: one product over low-rank latents and codebook rows side by side.
    """

    def __init__(self, s2mel: S2Mel, codec: SemanticCodec, device: torch.device) -> None:
        layers: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in s2mel.gpt_layer if isinstance(layer, nn.Linear)]
        inner = layers[0]
        for layer in layers[1:-1]:
            inner = compose(layer, inner)
        quantizer = codec.quantizer.first
        out_weight, out_bias = quantizer.out_project.parameters()
        self._inner = tuple(t.detach().to(device, torch.float32) for t in inner)
        self._codebook = quantizer.codebook.weight.detach().to(device)
        self._outer = torch.cat([layers[-1][0], out_weight[..., 0]], dim=1).detach().to(device)
        self._bias = (layers[-1][1] + out_bias).detach().to(device)

    def __call__(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Codes (B, N), each below the codebook's size also in padding, and latents (B, N, D) to content (B, N, in_channels)."""
        low_rank = F.linear(latents, *self._inner)
        return F.linear(torch.cat([low_rank, F.embedding(codes, self._codebook)], dim=-1), self._outer, self._bias)
