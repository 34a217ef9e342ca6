"""Synthetic speech in shards, made on all cores while training already reads the first ones.

A shard is an uncompressed ``.npz``: 22 050 Hz samples, and per utterance its place, speaker, style, text, and one phone label per
semantic token. It appears under its name when it is complete.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indextts.training.phones import semantic_tokens, token_labels
from indextts.training.speakers import LIVELINESS, PITCH_SHIFT, RATES, Casting, Speaker, flite_pitch
from indextts.training.synthesisers import Espeak, Flite, Recordings, RHVoice, Speech
from indextts.training.text_corpus import SentenceSource, phrased

logger = logging.getLogger(__name__)

SAMPLE_RATE = 22050
SHORTEST_S, LONGEST_S = 0.6, 11.0
_PIECE_S = (2.5, 9.0)  # of a recording
_FIRST_SHARD_S, _SHARD_S = 100.0, 480.0
_TEMPO_SPREAD = 0.09  # of the log: the three rates touch, so that no tempo is missing
_LEVEL = 0.07  # root mean square of an average utterance
STOP_FILE = "stop"  # its presence in the shards' folder ends the work


@dataclass
class Utterance:
    """One spoken text (empty: not known): int16 samples at 22 050 Hz, labels per semantic token."""

    samples: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    speaker: int
    style: int
    text: str


class Studio:
    """All synthesisers of one process."""

    def __init__(self, synth: Path, corpus: Path | None, seed: int, shares: Mapping[str, float] | None = None) -> None:
        self._engines: dict[str, Espeak | Flite | RHVoice | Recordings] = {}
        for name, make in (("espeak", Espeak), ("flite", Flite), ("rhvoice", RHVoice), ("recorded", Recordings)):
            try:
                self._engines[name] = make(synth)
            except (OSError, RuntimeError, ImportError) as error:
                logger.warning("no speech from %s: %s", name, error)
        if not self._engines:
            raise RuntimeError(f"no synthesiser of {synth} runs on this machine")
        self._casting = Casting({name: engine.voices() for name, engine in self._engines.items()}, seed, shares)
        self._texts = SentenceSource(corpus, seed)
        self._rng = random.Random(seed)

    def record(self) -> Utterance | None:
        """The next utterance; None if it came out too short or too long."""
        speaker, style = self._casting.next()
        text = self._texts.next() if speaker.engine != "recorded" else ""
        speech = self._speak(speaker, style, phrased(text, self._rng) if speaker.pauses else text)
        peak = int(np.abs(speech.samples.astype(np.int32)).max()) if speech.samples.size else 0
        seconds = speech.samples.size / speech.rate / speaker.warp
        if not SHORTEST_S <= seconds <= LONGEST_S or peak < 500:
            return None
        samples = self._finish(speech, speaker.warp)
        tokens = semantic_tokens(-(-samples.size * 320 // 441))
        return Utterance(samples, token_labels(speech, tokens, speaker.warp), speaker.index, style, text)

    def _speak(self, speaker: Speaker, style: int, text: str) -> Speech:
        """Speech before the warp, at a tempo that the warp will correct."""
        rng, (rate, lively) = self._rng, divmod(style, len(LIVELINESS))
        tempo = RATES[rate] * math.exp(rng.uniform(-_TEMPO_SPREAD, _TEMPO_SPREAD)) / speaker.warp
        if speaker.engine == "espeak":
            pitch = min(99, max(0, speaker.pitch + round(60 * (PITCH_SHIFT[lively] - 1)) + rng.randint(-3, 3)))
            spread = round(min(99, 50 * LIVELINESS[lively]))
            engine = self._engines["espeak"]
            assert isinstance(engine, Espeak)
            return engine.speak(text, speaker.voice, round(165 * tempo), pitch, spread)
        if speaker.engine == "flite":
            engine = self._engines["flite"]
            assert isinstance(engine, Flite)
            return engine.speak(
                text, speaker.voice, 1 / tempo, flite_pitch(speaker.voice, lively, rng.uniform(0.97, 1.03) * speaker.pitch / 50)
            )
        if speaker.engine == "recorded":
            engine = self._engines["recorded"]
            assert isinstance(engine, Recordings)
            return engine.speak(speaker.voice, rng.random(), rng.uniform(*_PIECE_S) * speaker.warp)
        engine = self._engines["rhvoice"]
        assert isinstance(engine, RHVoice)
        return engine.speak(text, speaker.voice, tempo, PITCH_SHIFT[lively] * speaker.pitch / 50)

    def _finish(self, speech: Speech, warp: float) -> npt.NDArray[np.int16]:
        """Resample to 22 050 Hz, ``warp`` times faster, at a random level."""
        import torch
        from torchaudio.functional import resample

        ratio = Fraction(SAMPLE_RATE / (speech.rate * warp)).limit_denominator(320)
        wave = torch.from_numpy(speech.samples.astype(np.float32) / 32768)
        wave = resample(wave, ratio.denominator, ratio.numerator)
        level = _LEVEL * 10 ** (self._rng.uniform(-5, 4) / 20)
        gain = min(level / max(float(wave.square().mean().sqrt()), 1e-4), 0.95 / max(float(wave.abs().max()), 1e-4))
        return (wave * (gain * 32767)).round().to(torch.int16).numpy()


def save_shard(utterances: list[Utterance], path: Path) -> None:
    """Write a shard; it appears complete or not at all."""
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.savez(
            file,
            samples=np.concatenate([u.samples for u in utterances]),
            lengths=np.array([u.samples.size for u in utterances], np.int64),
            labels=np.concatenate([u.labels for u in utterances]),
            tokens=np.array([u.labels.size for u in utterances], np.int64),
            speakers=np.array([u.speaker for u in utterances], np.int16),
            styles=np.array([u.style for u in utterances], np.int8),
            texts=np.frombuffer("\n".join(u.text for u in utterances).encode(), np.uint8),
        )
    unfinished.replace(path)


def make_shards(
    folder: Path,
    synth: Path,
    corpus: Path | None,
    *,
    seed: int,
    workers: int,
    hours: float,
    seconds: float,
    shard_s: float = _SHARD_S,
    shares: Mapping[str, float] | None = None,
) -> None:
    """Fill ``folder`` with about ``hours`` of speech, for at most ``seconds``, on ``workers`` processes; returns when they are done.

    A stop file that lies there afterwards says that no more will come; put there while this runs, it ends the work.

    ``shares``: as for :class:`indextts.training.speakers.Casting`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP_FILE).unlink(missing_ok=True)
    deadline = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(
            target=_work,
            args=(folder, synth, corpus, seed * 1000 + i, hours * 3600 / workers, deadline, shard_s, shares),
            daemon=True,
            name=f"studio-{i}",
        )
        for i in range(workers)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(max(1.0, deadline + 60 - time.monotonic()))
        if job.is_alive():
            job.terminate()
    (folder / STOP_FILE).touch()  # the coding stage may end when it has seen all
    logger.info("%d shards in %s", len(list(folder.glob("*.npz"))), folder)


def _work(
    folder: Path,
    synth: Path,
    corpus: Path | None,
    seed: int,
    audio_s: float,
    deadline: float,
    shard_s: float,
    shares: Mapping[str, float] | None,
) -> None:
    import torch

    torch.set_num_threads(1)
    os.nice(5)  # the trainers' launches go first
    studio = Studio(synth, corpus, seed, shares)
    made, number = 0.0, 0
    while made < audio_s and time.monotonic() < deadline and not (folder / STOP_FILE).exists():
        target = min(shard_s, _FIRST_SHARD_S if number == 0 else shard_s, audio_s - made)
        batch: list[Utterance] = []
        filled = 0.0
        while filled < target and time.monotonic() < deadline:
            utterance = studio.record()
            if utterance is not None:
                batch.append(utterance)
                filled += utterance.samples.size / SAMPLE_RATE
        if batch:
            save_shard(batch, folder / f"{number:04d}-{seed:08d}.npz")
        made += filled
        number += 1
