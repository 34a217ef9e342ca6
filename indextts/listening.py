"""Comparing by ear, honestly: equal loudness, hidden and shuffled names, votes, and how likely the tally is by chance. No widgets here.

>>> test = PreferenceTest(("bf16", "fp32"), seed=1)
>>> test.order                       # what A and B stand for in this trial; not to be shown before the vote
(1, 0)
>>> test.vote("A")
>>> test.tally()["votes"], round(test.tally()["p_value"], 3)
(1, 1.0)
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2
    from indextts.runs import RunHistory, RunRecord

Samples = npt.NDArray[np.float32]
HEADROOM_DB = 1.0  # below full scale; players resample, and the peaks between samples can be higher than the samples
TARGET_LUFS = -20.0  # comfortable, and most speech can be brought there without clipping
SHORTEST_METERED_S = 0.4  # one block of ITU-R BS.1770; shorter sounds are matched by RMS
CODE_LETTERS = ("A", "B")


def binomial_p(successes: int, trials: int, *, two_sided: bool = True) -> float:
    """Probability of a tally at least as far from chance as this one, if every vote were the toss of a coin (exact binomial test).

    One-sided: of at least that many successes. 1.0 without trials. Errors: ``ValueError`` unless ``0 <= successes <= trials``.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be between 0 and {trials}, got {successes}")
    fewest = max(successes, trials - successes) if two_sided else successes
    tail = sum(math.comb(trials, k) for k in range(fewest, trials + 1)) / 2**trials
    return min(1.0, 2 * tail if two_sided else tail)


# ------------------------------------------------------------------------------------------------------------------- tests


@dataclass(frozen=True)
class Vote:
    """One answer. ``order``: the sounds (0, 1) behind A and B; ``choice``: the sound preferred or named, None for "the same"."""

    trial: int
    order: tuple[int, int]
    answer: str
    choice: int | None
    right: bool | None = None  # of an ABX trial


class _Test:
    """Trials in which A and B are shuffled anew each time."""

    answers: tuple[str, ...] = ()

    def __init__(self, names: tuple[str, str], seed: int | None = None) -> None:
        first, second = names
        self.names = (str(first), str(second))
        self._draw = random.Random(seed)
        self.votes: list[Vote] = []
        self.revealed = False
        self._next_trial()

    @property
    def trial(self) -> int:
        """Number of the present trial, from 1."""
        return len(self.votes) + 1

    def _next_trial(self) -> None:
        self.order: tuple[int, int] = (0, 1) if self._draw.random() < 0.5 else (1, 0)

    def _check(self, answer: str) -> None:
        if answer not in self.answers:
            raise ValueError(f"the answer is {answer!r}; give one of {', '.join(self.answers)}")
        if self.revealed:
            raise RuntimeError("the names have been revealed, so a vote would not be blind any more; start a new test")

    def reveal(self) -> dict[str, str]:
        """End the test; what A and B stand for in the present trial."""
        self.revealed = True
        return dict(zip(CODE_LETTERS, (self.names[i] for i in self.order), strict=True))

    def tally(self) -> dict[str, Any]:
        """Counts and their p-value; see the subclass."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Votes and tally, JSON-safe."""
        return {"kind": type(self).__name__, "names": list(self.names), "votes": [asdict(v) for v in self.votes], "tally": self.tally()}


class PreferenceTest(_Test):
    """Which of two is better? Each trial hides the two behind A and B; an answer is ``"A"``, ``"same"`` or ``"B"``."""

    answers = ("A", "same", "B")

    def vote(self, answer: str) -> None:
        """Take an answer and shuffle for the next trial. Errors: ``ValueError``; ``RuntimeError`` after :meth:`reveal`."""
        self._check(answer)
        choice = None if answer == "same" else self.order[CODE_LETTERS.index(answer)]
        self.votes.append(Vote(self.trial, self.order, answer, choice))
        self._next_trial()

    def tally(self) -> dict[str, Any]:
        """``votes, preferred`` (by name), ``same``, and the two-sided ``p_value`` of the votes that preferred one."""
        wins = [sum(vote.choice == i for vote in self.votes) for i in (0, 1)]
        return {
            "votes": len(self.votes),
            "preferred": [{"name": name, "votes": count} for name, count in zip(self.names, wins, strict=True)],
            "same": len(self.votes) - sum(wins),
            "p_value": binomial_p(wins[0], sum(wins)),
        }


class AbxTest(_Test):
    """Can they be told apart? X is one of A and B, drawn anew each trial; an answer names it."""

    answers = CODE_LETTERS

    def _next_trial(self) -> None:
        super()._next_trial()
        self._x = self._draw.randrange(2)

    @property
    def sounds(self) -> tuple[int, int, int]:
        """The sounds (0, 1) behind A, B and X; not to be shown before the vote."""
        return (*self.order, self.order[self._x])

    def vote(self, answer: str) -> bool:
        """Take an answer, tell whether it was right, and shuffle for the next trial. Errors: as :meth:`PreferenceTest.vote`."""
        self._check(answer)
        named = CODE_LETTERS.index(answer)
        right = named == self._x
        self.votes.append(Vote(self.trial, self.order, answer, self.order[named], right))
        self._next_trial()
        return right

    def tally(self) -> dict[str, Any]:
        """``votes, right``, and the one-sided ``p_value``: the chance of guessing at least that many right."""
        right = sum(bool(vote.right) for vote in self.votes)
        return {"votes": len(self.votes), "right": right, "p_value": binomial_p(right, len(self.votes), two_sided=False)}


def say_tally(test: PreferenceTest | AbxTest) -> str:
    """The tally as a sentence."""
    tally = test.tally()
    votes, p = tally["votes"], tally["p_value"]
    if not votes:
        return "No votes yet."
    chance = f"p = {p:.3g}"
    if isinstance(test, AbxTest):
        verdict = "guessing hardly does that" if p < 0.05 else "guessing would do as well often enough"
        return f"{tally['right']} of {votes} right ({chance}): {verdict}."
    if tally["same"] == votes:
        return f"{votes} of {votes} votes say that they sound the same."
    counts = ", ".join(f"{entry['votes']} for \u201c{entry['name']}\u201d" for entry in tally["preferred"])
    verdict = "chance hardly explains that" if p < 0.05 else "chance would do that often enough"
    return f"{votes} vote{'s' * (votes != 1)}: {counts}, {tally['same']} for no difference (two-sided {chance}): {verdict}."


# ------------------------------------------------------------------------------------------------------------------- sound


def as_float(samples: Any) -> Samples:
    """Mono samples, int16 or float in [-1, 1], as float32 (n,)."""
    array = np.asarray(samples)
    scale = 32768.0 if array.dtype == np.int16 else 1.0
    return (array.reshape(-1).astype(np.float32) / np.float32(scale)).astype(np.float32)


def loudness_lufs(samples: Any, sample_rate: int, *, by_rms: bool = False) -> float:
    """Integrated loudness (ITU-R BS.1770-4) of mono samples, or RMS in dB with ``by_rms`` and below 0.4 s.

    ``-inf`` for silence.

    Errors: ``ImportError`` without pyloudnorm (extra ``lab``).
    """
    sound = as_float(samples)
    if by_rms or len(sound) < SHORTEST_METERED_S * sample_rate:
        power = float(np.mean(np.square(sound, dtype=np.float64))) if sound.size else 0.0
        return 10 * math.log10(power) if power > 0 else -math.inf
    try:
        import pyloudnorm
    except ImportError as error:
        raise ImportError("matching loudness needs pyloudnorm: pip install 'indextts2-lab[lab]'") from error
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(sample_rate).integrated_loudness(sound.astype(np.float64)))


def match_loudness(sounds: Sequence[Any], sample_rate: int) -> list[Samples]:
    """The sounds at one loudness, float32 (n,), by gain alone: -20 LUFS, or as much below it as the peaks of any of them require.

    No peak comes nearer to full scale than 1 dB. Silence stays as it is. Lengths need not be equal.
    """
    floats = [as_float(sound) for sound in sounds]
    short = any(len(sound) < SHORTEST_METERED_S * sample_rate for sound in floats)  # then one measure for all of them
    levels = [loudness_lufs(sound, sample_rate, by_rms=short) for sound in floats]
    heard = [(level, float(np.abs(sound).max())) for level, sound in zip(levels, floats, strict=True) if math.isfinite(level)]
    if not heard:
        return floats
    # Each sound bears a gain up to its own headroom; the target is what all of them bear.
    target = min(TARGET_LUFS, *(level - 20 * math.log10(peak) - HEADROOM_DB for level, peak in heard))
    gains = [10 ** ((target - level) / 20) if math.isfinite(level) else 1.0 for level in levels]
    return [(sound * np.float32(gain)).astype(np.float32) for sound, gain in zip(floats, gains, strict=True)]


def difference(first: Any, second: Any) -> tuple[Samples, float]:
    """``first - second`` over their common length, and its level in dB below ``first`` (``-inf``: identical)."""
    a, b = as_float(first), as_float(second)
    n = min(len(a), len(b))
    rest = a[:n] - b[:n]
    reference, power = (float(np.mean(np.square(x, dtype=np.float64))) if n else 0.0 for x in (a[:n], rest))
    if power == 0:
        return rest, -math.inf
    return rest, 10 * math.log10(power / reference) if reference else math.inf


def log_mel_db(samples: Any, sample_rate: int) -> npt.NDArray[np.float32]:
    """Mel spectrogram in dB, (80, frames), of 256 samples a frame: the acoustic prompt's, so what the vocoder works from."""
    import torch

    from indextts.config import SpectConfig
    from indextts.models.mel import mel_spectrogram

    sound = as_float(samples)
    config = SpectConfig()
    shortest = config.n_fft
    if len(sound) < shortest:
        sound = np.pad(sound, (0, shortest - len(sound)))
    with torch.inference_mode():
        mel = mel_spectrogram(torch.from_numpy(np.ascontiguousarray(sound))[None], config, sample_rate)[0]
    return np.asarray(mel.numpy() * np.float32(20 / math.log(10)), dtype=np.float32)


def log_mel_distance_db(first: Any, second: Any, sample_rate: int) -> float:
    """Mean absolute difference of the two mel spectrograms in dB over their common frames; 0 for equal sounds, no alignment in time."""
    a, b = log_mel_db(first, sample_rate), log_mel_db(second, sample_rate)
    n = min(a.shape[1], b.shape[1])
    return float(np.abs(a[:, :n] - b[:, :n]).mean()) if n else 0.0


# ---------------------------------------------------------------------------------------------------------------- rendering


def render_pair(
    tts: IndexTTS2,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    history: RunHistory | None = None,
    progress: Callable[[float, str], None] | None = None,
    **infer_arguments: Any,
) -> tuple[RunRecord, RunRecord]:
    """Speak the same text with the same seed in two settings of one engine; it is left in the settings it had.

    ``first``, ``second``: names of switches (``precision``, ``use_accel``, ``num_beams``, ...; see :mod:`indextts.switches`) or keywords of
    ``infer``, and their values. Errors: ``ValueError`` for settings this engine cannot take, before anything is rendered; those of
    ``infer``.
    """
    from indextts.runs import RunHistory, render
    from indextts.switches import available_switches, set_switch

    state = {switch.name: switch for switch in available_switches(tts)}
    engine_names = {name for name, switch in state.items() if not switch.default}
    for settings in (first, second):
        for name, value in settings.items():
            if name in engine_names and state[name].choices and value not in [c.value for c in state[name].choices if c.usable]:
                raise ValueError(f"{state[name].label} cannot be {value!r} here. {state[name].reason}".strip())
    target = history if history is not None else RunHistory()
    seed = infer_arguments.pop("seed", None)
    arguments = {**infer_arguments, "seed": secrets.randbits(32) if seed is None else seed}
    before = {name: state[name].value for name in (first.keys() | second.keys()) & engine_names}

    def put(settings: Mapping[str, Any]) -> None:
        now = {switch.name: switch.value for switch in available_switches(tts)}
        for name in settings.keys() & engine_names:
            if now[name] != settings[name]:
                set_switch(tts, name, settings[name])

    records = []
    try:
        for place, settings in enumerate((first, second)):
            put({**before, **settings})
            call = {**arguments, **{name: value for name, value in settings.items() if name not in engine_names}}
            report = None if progress is None else _half(progress, place)
            label = ", ".join(f"{name} {settings[name]}" for name in settings if first.get(name) != second.get(name)) or "as it is"
            records.append(render(tts, target, label, report, **call))
    finally:
        put(before)
    return records[0], records[1]


def _half(progress: Callable[[float, str], None], place: int) -> Callable[[float, str], None]:
    return lambda fraction, message: progress((place + fraction) / 2, f"{'first' if place == 0 else 'second'}: {message}")
