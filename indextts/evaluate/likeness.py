"""Whose voice it is, by resemblyzer's speaker embedding, and how clean it sounds, by DNSMOS (arXiv 2110.01763).

The embedding hardly cares for words, and DNSMOS cares for level and noise only: read both beside the word error rate.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts.evaluate.needed import needed
from indextts.evaluate.sound import floats
from indextts.evaluate.words import RATE, prepared

Embedding = npt.NDArray[np.float32]
_LOCK = threading.Lock()


def embed(samples: npt.NDArray[Any], rate: int) -> Embedding:
    """Unit vector (256,) of a voice; samples (n,) or (n, 1), int16 or float. A second or more is wanted."""
    module = needed("resemblyzer")
    with _LOCK, _quiet():
        sound = module.preprocess_wav(_floats(samples, rate), RATE)
        if sound.size < RATE // 2:  # its voice detector left nothing: judge all there is
            sound = _floats(samples, rate)
        vector: Embedding = _encoder().embed_utterance(sound).astype(np.float32)
    return _unit(vector)


def average(vectors: list[Embedding]) -> Embedding:
    """The unit vector between several."""
    return _unit(np.mean(vectors, axis=0))


def similarity(one: Embedding, other: Embedding) -> float:
    """Cosine: within a voice 0.84 to 0.91, between people 0.42 to 0.85."""
    return float(one @ other)


def nearest(vector: Embedding, voices: Mapping[str, Embedding]) -> str:
    """Name of the most similar of ``voices``."""
    return max(voices, key=lambda name: similarity(vector, voices[name]))


def dnsmos(samples: npt.NDArray[Any], rate: int) -> float:
    """Overall quality from 1 to 5 as DNSMOS predicts it, at one peak level; synthesisers' voices get 2.3 to 3.3."""
    module = needed("speechmos.dnsmos", "speechmos")
    with _LOCK, _quiet():
        return float(module.run(_floats(samples, rate), RATE)["ovrl_mos"])


def _unit(vector: Embedding) -> Embedding:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9), np.float32)


def _floats(samples: npt.NDArray[Any], rate: int) -> npt.NDArray[np.float32]:
    return floats(prepared(samples, rate))


@functools.cache
def _encoder() -> Any:
    return needed("resemblyzer").VoiceEncoder("cpu", verbose=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
