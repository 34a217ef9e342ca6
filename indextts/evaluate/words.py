"""What a speech recogniser hears: pocketsphinx with its own US English model, free or held to a grammar.

>>> wer(samples, 22050, "The train leaves at seven.")  # share of words wrong; may pass 1  # doctest: +SKIP

Free decoding is the fine scale; the grammars are the robust one: they answer whatever they hear with something that fits, so chance is
not nothing (2.5 % for one of 40 sentences, about 84 % of the digits wrong). It hears recordings and voices made of recordings well, and
formant synthesis badly: always judge the source voice beside.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from indextts.evaluate.needed import needed

RATE = 16000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PEAK = 0.8
_SILENCE = 1e-3  # peak
_PAUSE = np.zeros(RATE // 5, np.int16)  # the recogniser wants some silence around


def wer(samples: npt.NDArray[Any], rate: int, text: str) -> float:
    """Word error rate of free decoding: edits by the number of words of ``text``. Samples (n,) or (n, 1), int16 or float in [-1, 1]."""
    return error_rate([(text, recogniser().transcribe(samples, rate))])


def error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Word error rate of (text, heard) pairs together. ``ValueError`` if the texts hold no words."""
    words = sum(len(spoken_words(text)) for text, _ in pairs)
    if not words:
        raise ValueError("no words to compare with")
    return sum(edits(spoken_words(text), spoken_words(heard)) for text, heard in pairs) / words


def spoken_words(text: str) -> list[str]:
    """Lower-case words; hyphens part words, other marks fall away."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("\u2019", "'"))


def edits(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest substitutions, insertions and deletions (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        before, row = row, [i]
        for j, other in enumerate(heard, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
    return row[-1]


class Recogniser:
    """A free decoder and one for grammars, made on first use. Calls from several threads wait for each other."""

    def __init__(self) -> None:
        self._module = needed("pocketsphinx")
        self._decoders: dict[str, Any] = {}
        self._grammar = ""
        self._lock = threading.Lock()

    def transcribe(self, samples: npt.NDArray[Any], rate: int) -> str:
        """Free decoding: lower-case words, empty if nothing was heard."""
        return self._heard(samples, rate, "")

    def digits(self, samples: npt.NDArray[Any], rate: int) -> str:
        """Any number of :data:`DIGITS`."""
        return self._heard(samples, rate, _grammar(f"({' | '.join(DIGITS)})+"))

    def choose(self, samples: npt.NDArray[Any], rate: int, sentences: Sequence[str]) -> str:
        """The one of ``sentences`` that it sounds most like, as lower-case words."""
        return self._heard(samples, rate, _grammar(" | ".join(" ".join(spoken_words(sentence)) for sentence in sentences)))

    def ending(self, samples: npt.NDArray[Any], rate: int, text: str) -> int:
        """Words too few (below 0) or too many at the end of a spoken ``text``, as far as the last three words tell."""
        words = spoken_words(text)
        most = min(3, len(words) - 1)
        # All of it; without its last words; or with some said again.
        choices = {0: words} | {-n: words[:-n] for n in range(1, most + 1)} | {n: words + words[-n:] for n in range(1, most + 1)}
        heard = self._heard(samples, rate, _grammar(" | ".join(map(" ".join, choices.values())))).split()
        for n, choice in choices.items():
            if choice == heard:
                return n
        # The sound ended in the middle of a choice. One word more than the text has may be a breath; more are words.
        agreed = next((i for i, (word, other) in enumerate(zip(words, heard, strict=False)) if word != other), min(len(words), len(heard)))
        more = len(heard) - len(words)
        return agreed - len(words) if agreed < len(words) else more * (more > 1)

    def knows(self, text: str) -> list[str]:
        """Words of ``text`` that are not in its dictionary: no grammar may hold them, and free decoding cannot hear them."""
        with self._lock:
            decoder = self._decoder("")
            return [word for word in spoken_words(text) if decoder.lookup_word(word) is None]

    def _heard(self, samples: npt.NDArray[Any], rate: int, grammar: str) -> str:
        sound = prepared(samples, rate)
        if not sound.any():
            return ""  # of nothing, it hears "I'm"
        with self._lock:
            decoder = self._decoder(grammar)
            decoder.start_utt()
            decoder.process_raw(sound.tobytes(), no_search=False, full_utt=True)  # whole: its level and channel are known at once
            decoder.end_utt()
            hypothesis = decoder.hyp()
        return "" if hypothesis is None else re.sub(r"\(\d+\)", "", hypothesis.hypstr)

    def _decoder(self, grammar: str) -> Any:
        """The free decoder, or the other one with its search set to ``grammar``."""
        kind = "grammar" if grammar else "free"
        if kind not in self._decoders:
            self._decoders[kind] = self._module.Decoder(loglevel="FATAL", **({"lm": None} if grammar else {}))
        decoder = self._decoders[kind]
        if grammar and grammar != self._grammar:
            decoder.add_jsgf_string("own", grammar)  # takes the place of the last one
            decoder.activate_search("own")
            self._grammar = grammar
        return decoder


@functools.cache
def recogniser() -> Recogniser:
    """The recogniser that all callers share."""
    return Recogniser()


def prepared(samples: npt.NDArray[Any], rate: int) -> npt.NDArray[np.int16]:
    """Mono int16 at 16 kHz, at one peak level, with a little silence around; of samples (n,) or (n, 1)."""
    import soxr

    sound = np.asarray(samples)
    if sound.ndim == 2 and 1 in sound.shape:
        sound = sound.reshape(-1)
    if sound.ndim != 1:
        raise ValueError(f"samples must be mono, (n,) or (n, 1); got shape {sound.shape}")
    sound = sound.astype(np.float32) / (32768 if np.issubdtype(sound.dtype, np.integer) else 1)
    if rate != RATE and sound.size:
        sound = soxr.resample(sound, rate, RATE, quality="HQ")
    peak = float(np.abs(sound).max(initial=0.0))
    scaled = sound * (_PEAK * 32767 / peak if peak > _SILENCE else 0)
    return np.concatenate([_PAUSE, scaled.astype(np.int16), _PAUSE])


def _grammar(rule: str) -> str:
    return f"#JSGF V1.0; grammar own; public <own> = {rule};"
