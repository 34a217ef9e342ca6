"""A GPT small enough to search exhaustively, with random weights, for tests of models and engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from indextts.config import ConformerConfig, GPTConfig
from indextts.models.gpt import UnifiedVoice

CONDITIONER = ConformerConfig(output_size=16, linear_units=24, attention_heads=2, num_blocks=2)
CONFIG = GPTConfig(
    model_dim=32,
    layers=2,
    heads=4,
    max_mel_tokens=30,
    max_text_tokens=12,
    number_text_tokens=20,
    number_mel_codes=24,
    start_mel_token=22,
    stop_mel_token=23,
    condition_module=CONDITIONER,
    emo_condition_module=dataclasses.replace(CONDITIONER, output_size=12),
    feature_dim=10,
    condition_num_latent=4,
    emo_latent_dim=14,
    perceiver_dim_head=8,
)


def tiny_gpt(seed: int = 0, *, spread: float = 12.0, dropout: float = 0.0, **config: Any) -> UnifiedVoice:
    """The model in eval mode; ``spread`` scales the code logits' weights, so that choices are clear."""
    torch.manual_seed(seed)
    model = UnifiedVoice(dataclasses.replace(CONFIG, **config), dropout).eval()
    with torch.no_grad():
        model.mel_head.weight.mul_(spread)
    return model


def tiny_conditioning(model: UnifiedVoice, seed: int = 0) -> Tensor:
    """Conditioning of one random prompt, ``(1, C, D)``."""
    features = torch.randn(1, 15, model.config.feature_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.conditioning(model.speaker_latents(features), model.emotion_vector(features))
