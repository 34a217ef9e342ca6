"""Speech-like sound that needs no synthesiser: buzzes with one resonance a letter, and shards of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from indextts.training.make_data import SAMPLE_RATE, Utterance, save_shard
from indextts.training.phones import semantic_tokens

LETTERS = "AEIOSM"
_RESONANCES = (700.0, 500.0, 300.0, 900.0, 4000.0, 250.0)
_PHONES = (1, 12, 17, 4, 29, 22)


def utterance(rng: np.random.Generator, speaker: int) -> Utterance:
    """Six to twelve letters of 0.16 s each; the speaker sets the pitch."""
    spelled = rng.integers(len(LETTERS), size=int(rng.integers(6, 13)))
    each = int(0.16 * SAMPLE_RATE)
    count = each * len(spelled)
    time = np.arange(count) / SAMPLE_RATE
    pitch = (90 + 25 * speaker) * (1 + 0.1 * np.sin(2 * np.pi * time))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    resonance = np.repeat([_RESONANCES[i] for i in spelled], each)
    harmonics = np.arange(1, 40)[:, None]
    weights = np.exp(-(((harmonics * pitch - resonance) / 250) ** 2)) + 0.02 / harmonics
    wave = (weights * np.sin(harmonics * phase)).sum(0)
    wave = wave / np.abs(wave).max() + 0.003 * rng.standard_normal(count)
    tokens = semantic_tokens(-(-count * 320 // 441))
    letter = np.minimum(((np.arange(tokens) * 0.02 + 0.0175) / 0.16).astype(int), len(spelled) - 1)
    labels = np.array(_PHONES, np.uint8)[spelled[letter]]
    return Utterance((9000 * wave).astype(np.int16), labels, speaker, int(rng.integers(9)), "".join(LETTERS[i] for i in spelled))


def write_shards(folder: Path, shards: int = 2, utterances: int = 24) -> Path:
    """Fill ``folder`` with shards of four speakers."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        save_shard([utterance(rng, int(rng.integers(4))) for _ in range(utterances)], folder / f"{number}.npz")
    return folder
