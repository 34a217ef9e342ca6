"""Emotion control: eight values and the prompt's style vector to the emotion vector of the GPT (IndexTTS2, arXiv 2506.21619).

The release stores 73 example voices in eight groups, one group per emotion: a style vector each (``speaker``) and the emotion
vector that belongs to it (``emotion``). Per group the row is taken whose style is closest to the prompt's; the eight rows are
mixed with the eight values as weights, and what the values leave of 1 is filled with the prompt's own emotion vector.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMOTIONS = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")

# Factors and cap that the release's web page applies to hand-set sliders; the strongest emotions are held back.
_BIAS = (0.9375, 0.875, 1.0, 1.0, 0.9375, 0.9375, 0.6875, 0.5625)
_LARGEST_SUM = 0.8


def check_emo_vector(vector: Sequence[float]) -> list[float]:
    """The eight values as a list of floats.

    Errors: ``ValueError``, naming the order, unless there are eight finite numbers >= 0.
    """
    try:
        values = [] if isinstance(vector, str) else [float(value) for value in vector if not isinstance(value, str)]
    except (TypeError, ValueError):
        values = []
    if len(values) != len(EMOTIONS) or not all(math.isfinite(value) and value >= 0 for value in values):
        order = ", ".join(EMOTIONS)
        raise ValueError(f"emo_vector must be {len(EMOTIONS)} finite numbers >= 0 in the order {order}; got {vector!r}")
    return values


def scale_emotion(vector: Sequence[float], alpha: float) -> list[float]:
    """Scale the eight values by ``alpha``, clamped to [0, 1], and cut them to four decimals; alpha >= 1 leaves them as they are.

    Errors: ``ValueError`` if ``alpha`` is not a number.
    """
    if math.isnan(alpha):
        raise ValueError("emo_alpha must be a number, got nan")
    factor = min(1.0, max(0.0, alpha))
    values = [float(value) for value in vector]
    return values if factor == 1.0 else [int(value * factor * 10000) / 10000 for value in values]


def normalize_emo_vec(vector: Sequence[float], apply_bias: bool = True) -> list[float]:
    """Weaken the emotions that tend to dominate (``apply_bias``), then scale all so that their sum is at most 0.8.

    ``infer`` does not call this; it is for callers whose values come from sliders.
    """
    values = check_emo_vector(vector)
    if apply_bias:
        values = [value * factor for value, factor in zip(values, _BIAS, strict=True)]
    total = sum(values)
    return [value * (_LARGEST_SUM / total) for value in values] if total > _LARGEST_SUM else values


class EmotionMatrices(nn.Module):
    """The release's example voices: ``speaker`` (rows, 192), ``emotion`` (rows, D), ``counts`` rows per emotion (8 numbers).

    Keep it in float32: the release does, and rows are chosen by small differences of similarity.
    Errors: ``ValueError`` if the shapes and counts do not belong together.
    """

    speaker: Tensor
    emotion: Tensor

    def __init__(self, speaker: Tensor, emotion: Tensor, counts: Sequence[int]) -> None:
        super().__init__()
        if len(counts) != len(EMOTIONS) or min(counts) < 1:
            raise ValueError(f"emo_num must hold {len(EMOTIONS)} counts >= 1, got {list(counts)}")
        for name, matrix in (("speaker", speaker), ("emotion", emotion)):
            if matrix.ndim != 2 or matrix.shape[0] != sum(counts):
                raise ValueError(f"the {name} matrix must have {sum(counts)} rows (the sum of emo_num), got shape {tuple(matrix.shape)}")
        self.counts = tuple(counts)
        self.register_buffer("speaker", speaker.detach())
        self.register_buffer("emotion", emotion.detach())

    def choose_rows(self, style: Tensor) -> list[int]:
        """Per emotion the row, counted within its group, whose style is most similar (cosine) to ``style`` (1, 192)."""
        groups = self.speaker.split(self.counts)
        style = style.to(self.speaker).reshape(1, -1)
        return torch.stack([F.cosine_similarity(style, group, dim=1, eps=1e-8).argmax() for group in groups]).tolist()

    def random_rows(self, rng: random.Random | ModuleType = random) -> list[int]:
        """Per emotion a uniform row; ``rng`` is a ``random.Random`` or the module itself, drawn from once a group, in order."""
        return [rng.randint(0, count - 1) for count in self.counts]

    def mix(self, weights: Sequence[float], rows: Sequence[int]) -> Tensor:
        """Weighted sum of the chosen rows of the emotion matrix, (1, D); ``rows`` count within their groups."""
        starts = [sum(self.counts[:group]) for group in range(len(self.counts))]
        chosen = self.emotion[[start + row for start, row in zip(starts, rows, strict=True)]]
        return (self._weights(weights).unsqueeze(1) * chosen).sum(0, keepdim=True)

    def final_vector(self, merged: Tensor, weights: Sequence[float], rows: Sequence[int]) -> Tensor:
        """Emotion vector of the GPT, (1, D): the mix, and ``merged`` (1, D) for what the weights leave of 1 (also below 0)."""
        return self.mix(weights, rows) + (1 - self._weights(weights).sum()) * merged.to(self.emotion.device)

    def _weights(self, weights: Sequence[float]) -> Tensor:
        if len(weights) != len(EMOTIONS):
            raise ValueError(f"{len(EMOTIONS)} emotion weights are needed, got {len(weights)}")
        return torch.tensor([float(weight) for weight in weights], dtype=self.emotion.dtype, device=self.emotion.device)
