"""Lesson 15: what a step does to a vocoder's first layer, and how a vocoder buzzes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.nn.functional import avg_pool1d

from indextts.audio import load_audio
from indextts.config import SpectConfig
from indextts.evaluate.copies import vocoded
from indextts.evaluate.sound import buzz
from indextts.models.mel import mel_spectrogram

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

_FRAMES = 7  # that the first layer reads


def moved_outputs(tts: IndexTTS2, step: float = 3e-4) -> dict[str, float]:
    """By how much, on average, a vocoder's first layer answers the default voice's clip differently when each weight is ``step`` larger.

    ``plain``: inputs as they are, log-mels; ``centred``: without each band's mean over the clip. It depends on no weight.
    """
    import torch

    samples, rate = load_audio(tts.default_voice(), role="voice")
    wave = torch.from_numpy(np.asarray(samples, np.float32))[None]
    mel = mel_spectrogram(wave, SpectConfig(), rate)[0]
    taps = mel.shape[0] * _FRAMES
    return {
        name: float((step * taps * avg_pool1d(inputs.mean(0, keepdim=True), _FRAMES, 1)).abs().mean())
        for name, inputs in (("plain", mel), ("centred", mel - mel.mean(1, keepdim=True)))
    }


def vocoder_buzz(tts: IndexTTS2) -> tuple[float, float]:
    """:func:`indextts.evaluate.sound.buzz` of the default voice's clip, and of its mel after the vocoder of ``tts``."""
    samples, rate = load_audio(tts.default_voice(), role="voice")
    return buzz(samples, rate), buzz(*vocoded(tts, (samples, rate)).sound)
