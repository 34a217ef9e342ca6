"""Reading clips as CUDA graphs: what their networks make of them, in a few launches and in buckets of length that change nothing.

A voice of 5 s and its emotion take 2,400 eager launches, which last several times as long as the work that they start. A clip is filled
up on the right, where every network gives it what it gets alone. Front ends, mel and length regulator, 150 launches, stay eager.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from indextts.engine.graphs import GraphedCall
from indextts.models.campplus import CAMPPlus
from indextts.models.gpt import UnifiedVoice
from indextts.models.semantic_codec import SemanticCodec
from indextts.models.semantic_encoder import STACK, SemanticEncoder

# Semantic tokens, 1.28 s: twelve buckets up to the 15 s that are heard, and at most 1.28 s of work in vain.
TOKENS_BUCKET = 64
FRAMES_BUCKET = STACK * TOKENS_BUCKET  # of 10 ms: a clip has the same bucket in both
WARMUP_STEPS = 1  # a bucket's first clip, read by eager launches, has warmed up nearly everything


class Passes(NamedTuple):
    """:func:`emotion_pass`, :func:`speaker_pass` and :class:`CAMPPlus`, whose inputs are tensors alone."""

    emotion: Callable[..., Any]
    speaker: Callable[..., Any]
    style: Callable[..., Any]


class VoiceParts(NamedTuple):
    """What networks make of the speaker's clip beside its features."""

    quantised: Tensor  # (1, T, 1024)
    latents: Tensor  # (1, n_latents, D)
    style: Tensor  # (1, 192)


@dataclass
class Heard:
    """What networks make of one or two clips."""

    features: list[Tensor]  # (1, T, 1024) each
    emotions: Tensor  # (B, D) float32, e(features)
    voice: VoiceParts | None  # of the first clip, if it is the speaker's


class ReferencePass:
    """Reads clips; ``dtype``: of the GPT's linear weights (None: float32).

    ``call(function, warmup_steps)`` makes a replayed function of one; by default graphs that share their memory, since they take turns.
    The first clip of a bucket is read by eager launches of the same: a capture takes several times as long.
    """

    def __init__(
        self,
        encoder: SemanticEncoder,
        codec: SemanticCodec,
        campplus: CAMPPlus,
        gpt: UnifiedVoice,
        dtype: torch.dtype | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        self._call = call
        self._eager = Passes(partial(emotion_pass, encoder, gpt, dtype), partial(speaker_pass, encoder, gpt, codec, dtype), campplus)
        self._start()

    def _start(self) -> None:
        call = self._call or partial(GraphedCall, pool=torch.cuda.graph_pool_handle())  # a pool ends with its last graph
        self._replayed = Passes(*(call(function, WARMUP_STEPS) for function in self._eager))
        self._seen: set[tuple[int, int, bool]] = set()

    @property
    def memory_mb(self) -> float:
        """Megabytes of the graphs' pool."""
        return float(sum(call.memory_mb for call in self._replayed))  # type: ignore[attr-defined]

    def clear(self) -> None:
        """Drop the graphs; they are captured again when needed."""
        for call in self._replayed:
            call.clear()  # type: ignore[attr-defined]
        self._start()

    def __call__(self, clips: Sequence[tuple[Tensor, Tensor]], fbank: Tensor | None = None) -> Heard:
        """Read clips, features (1, T, 160) and mask (1, T) each; the first is the speaker's if ``fbank`` (1, F, 80) is given."""
        tokens = [features.shape[1] for features, _ in clips]
        size = -(-max(tokens) // TOKENS_BUCKET) * TOKENS_BUCKET
        bucket = (len(clips), size, fbank is None)
        run = self._replayed if bucket in self._seen else self._eager
        self._seen.add(bucket)
        features, mask = (_padded([clip[part][0] for clip in clips], size) for part in (0, 1))
        if fbank is None:
            hidden, emotions = run.emotion(features, mask, torch.tensor(tokens, device=features.device))
            voice = None
        else:
            frames = fbank.shape[1]
            lengths = torch.tensor([*tokens, frames], device=features.device)  # one copy, before the device is busy
            fbank = _padded([fbank[0]], frames + -frames % FRAMES_BUCKET)
            hidden, emotions, quantised, latents = run.speaker(features, mask, lengths[:-1])
            voice = VoiceParts(quantised[:, : tokens[0]], latents, run.style(fbank, lengths[-1:]))
        return Heard([row[None, :count] for row, count in zip(hidden, tokens, strict=True)], emotions, voice)


def emotion_pass(
    encoder: SemanticEncoder, gpt: UnifiedVoice, dtype: torch.dtype | None, features: Tensor, mask: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Semantic features (B, T, 1024) of encoder inputs with lengths (B,), zero beyond them, and emotion vectors (B, D).

    ``mask`` may end a token before a length: the last one of an odd number of frames is seen by none, and counts in all that follows.
    """
    beyond = torch.arange(features.shape[1], device=lengths.device) >= lengths[:, None]
    hidden = encoder(features, mask).masked_fill(beyond[..., None], 0)
    with _autocast(features, dtype):
        return hidden, gpt.emotion_vector(hidden, lengths, isolate_padding=True).float()


def speaker_pass(
    encoder: SemanticEncoder,
    gpt: UnifiedVoice,
    codec: SemanticCodec,
    dtype: torch.dtype | None,
    features: Tensor,
    mask: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`emotion_pass`, and of the first row the quantised features (1, T, 1024) and the speaker latents (1, n_latents, D)."""
    hidden, emotions = emotion_pass(encoder, gpt, dtype, features, mask, lengths)
    voice, length = hidden[:1], lengths[:1]
    _, quantised = codec.quantize(voice, length)
    with _autocast(features, dtype):
        return hidden, emotions, quantised, gpt.speaker_latents(voice, length, isolate_padding=True)


def _autocast(like: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """As around every use of the GPT; a graph must not record the address of a weight that only a cache holds."""
    return torch.autocast(like.device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


def _padded(rows: Sequence[Tensor], size: int) -> Tensor:
    """Rows (n, ...) as one tensor (B, size, ...), zero beyond each row's end."""
    padded = rows[0].new_zeros(len(rows), size, *rows[0].shape[1:])
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
