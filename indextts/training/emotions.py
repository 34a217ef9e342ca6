"""The eight emotions of the small voice: ways of speaking (tempo, pitch, melody), since synthesisers feel nothing.

Each row of the emotion matrix is the emotion encoder's mean vector over utterances of one voice in one manner; the row of the speaker
matrix beside it is that voice's mean style vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from indextts.training.speakers import all_speakers, style_of

if TYPE_CHECKING:
    from indextts.models.gpt import UnifiedVoice
    from indextts.training.coding import CodedCorpus

# In the release's order: happy, angry, sad, afraid, disgusted, melancholic, surprised, calm.
# Tempo from 0, slow, to 2, fast; melody from 0, flat, to 2, lively.
MANNERS = tuple(style_of(*manner) for manner in ((1, 2), (2, 1), (0, 0), (2, 0), (0, 2), (0, 1), (2, 2), (1, 0)))
_UTTERANCES, _TOKENS = 8, 150


@torch.no_grad()
def emotion_rows(gpt: UnifiedVoice, corpus: CodedCorpus, emo_num: tuple[int, ...]) -> dict[str, Tensor]:
    """``matrix.emotion`` (rows, D) and ``matrix.speaker`` (rows, style); rows as ``emo_num`` counts them."""
    rng = np.random.default_rng(7)
    recorded = {s.index for s in all_speakers() if s.engine in ("flite", "rhvoice")}
    present = [number for number in corpus.voices if number in recorded] or list(corpus.voices)
    emotion, speaker = [], []
    for manner, rows in zip(MANNERS, emo_num, strict=True):
        for voice in rng.permutation(np.resize(present, rows)):
            ids = corpus.voices[int(voice)]
            alike = ids[corpus.styles[ids] == manner]
            chosen = rng.choice(alike if len(alike) else ids, _UTTERANCES)
            lengths = torch.from_numpy(np.minimum(corpus.tokens[chosen], _TOKENS)).to(corpus.device)
            features = corpus.features(chosen, np.zeros_like(chosen), int(lengths.max()))
            emotion.append(gpt.emotion_vector(features, lengths, isolate_padding=True).float().mean(0))
            speaker.append(corpus.style_vectors(chosen).mean(0))
    return {"matrix.emotion": torch.stack(emotion), "matrix.speaker": torch.stack(speaker)}
