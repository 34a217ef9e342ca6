"""The speakers of the training data: a synthesiser's or a recorded voice, shifted in pitch and formants; and nine ways of speaking.

The list is a constant: a speaker's number is its class in the speaker encoder's training, also when training goes on another day.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

WARPS = (1.0, 0.86, 0.9, 0.94, 0.97, 1.03, 1.07, 1.11, 1.16)
# Warp and pitch against each other: heads and voices that no synthesiser has, so that an unknown voice has neighbours on all sides.
_CROSSED = ((0.86, 60), (0.9, 43), (0.94, 58), (1.0, 42), (1.0, 59), (1.05, 43), (1.1, 57), (1.16, 41))
HELD_OUT_TIMBRES = ("f4", "m6", "steph2", "edward", "grandma", "michel", "john", "linda")  # never trained on, for judging
_TIMBRES = """
    Alex Alicia Andrea Andy Annie AnxiousAndy Denis Diogo Gene Gene2 Henrique Hugo
    Jacky Lee Marco Mario Michael Mike RicishayMax RicishayMax2 RicishayMax3 adam anika announcer antonio aunty belinda benjamin
    boris caleb david ed edward2 f1 f2 f3 f5 grandpa gustave iven iven2 iven3 iven4 klatt klatt2 klatt3 klatt4 klatt5 klatt6 m1 m2
    m3 m4 m5 m7 m8 marcelo max miguel norbert pablo paul pedro quincy rob robert sandro shelby steph steph3 travis victor zac
"""

# People who speak other languages, as recordings in the bundle (festival's and RHVoice's free voices). Nothing learns words from them,
# but what a voice is: the English synthesisers have half a dozen people, too few to meet an unknown one.
RECORDED = (
    "aleksandr", "anatol", "anna", "azamat", "dita", "elena", "hindi", "irina", "krb", "lj", "lp", "machac", "marathi", "mv", "natalia",
    "nazgul", "nsh", "ona", "pc", "ph", "spomenka", "telugu",
)  # fmt: skip

# Flite's mean pitch in Hz and its spread; rms has a pitch model that does not listen.
_FLITE_PITCH = {"slt": (171.0, 15.0), "awb": (132.0, 12.0), "kal16": (95.0, 11.0), "rms": None}
_HOURS = {"flite": 0.42, "rhvoice": 0.17, "espeak": 0.25, "kal16": 0.04, "recorded": 0.12}  # share of the speaking time

RATES = (0.82, 1.0, 1.2)
LIVELINESS = (0.45, 1.0, 1.9)  # spread of the pitch
PITCH_SHIFT = (0.92, 1.0, 1.1)  # lively speech is also higher
_STYLE_WEIGHTS = (1.0, 2.0, 1.0)


@dataclass(frozen=True)
class Speaker:
    """``warp`` above 1: smaller head, higher voice. ``pitch`` is espeak's 0 to 100; of recorded voices 50 is their own, 25 half of it."""

    index: int
    engine: str
    voice: str
    warp: float
    pitch: int = 50

    @property
    def group(self) -> str:
        """Key of the share of speaking time."""
        return "kal16" if self.voice == "kal16" else self.engine

    @property
    def pauses(self) -> bool:
        """Pauses also where the text has no comma. So does about one in five, but no voice as its program has it."""
        return self.index % 4 == 2 and self.engine != "recorded" and (self.warp, self.pitch) != (1.0, 50)


def all_speakers() -> list[Speaker]:
    """Every speaker, in the order of their numbers."""
    recorded = [("flite", voice) for voice in ("slt", "rms", "awb", "kal16")] + [("rhvoice", voice) for voice in ("bdl", "slt", "alan")]
    made = [(engine, voice, warp, 50) for engine, voice in recorded for warp in WARPS]
    rng = random.Random(20)
    for timbre in _TIMBRES.split():
        for pitch, warp in ((50, 1.0), (rng.randint(20, 45), rng.choice(WARPS)), (rng.randint(55, 85), rng.choice(WARPS))):
            made.append(("espeak", f"en-us+{timbre}", warp, pitch))
    made += [(engine, voice, warp, pitch) for engine, voice in recorded if voice != "rms" for warp, pitch in _CROSSED]
    made += [("recorded", voice, warp, 50) for voice in RECORDED for warp in WARPS]
    return [Speaker(i, *fields) for i, fields in enumerate(made)]


def style_of(rate: int, liveliness: int) -> int:
    """Number of a way of speaking from the indices into :data:`RATES` and :data:`LIVELINESS`."""
    return rate * len(LIVELINESS) + liveliness


class Casting:
    """Draws who speaks next and how; ``available`` are the voices of the bundle, by engine.

    ``shares`` replaces shares of the speaking time by group (flite, rhvoice, espeak, kal16, recorded).

    Error: ``ValueError`` for another group.
    """

    def __init__(self, available: dict[str, list[str]], seed: int, shares: Mapping[str, float] | None = None) -> None:
        unknown = set(shares or ()) - set(_HOURS)
        if unknown:
            raise ValueError(f"no group of voices is called {', '.join(sorted(unknown))}; there are {', '.join(_HOURS)}")
        hours = {**_HOURS, **(shares or {})}
        self._rng = random.Random(seed)
        self._groups: dict[str, list[Speaker]] = {}
        for speaker in all_speakers():
            if speaker.voice.removeprefix("en-us+") in available.get(speaker.engine, []):
                self._groups.setdefault(speaker.group, []).append(speaker)
        # Espeak's utterances cost nothing but are the least human: the shares are of time, not of computing.
        self._weights = [hours[group] for group in self._groups]

    def next(self) -> tuple[Speaker, int]:
        """A speaker and a style; a recorded voice is unshifted in two of five cases."""
        rng = self._rng
        group = self._groups[rng.choices(list(self._groups), self._weights)[0]]
        speaker = rng.choice(group)
        if speaker.engine != "espeak" and rng.random() < 0.4:
            speaker = next(s for s in group if s.voice == speaker.voice and s.warp == 1.0 and s.pitch == 50)
        rate = rng.choices(range(len(RATES)), _STYLE_WEIGHTS)[0]
        liveliness = rng.choices(range(len(LIVELINESS)), _STYLE_WEIGHTS)[0]
        if speaker.voice == "rms":
            liveliness = 1
        if speaker.engine == "recorded":
            rate = liveliness = 1
        return speaker, style_of(rate, liveliness)


def flite_pitch(voice: str, liveliness: int, jitter: float) -> tuple[float, float] | None:
    """Mean and spread of the pitch in Hz for flite, or None where the voice has its own."""
    base = _FLITE_PITCH[voice]
    if base is None:
        return None
    return base[0] * PITCH_SHIFT[liveliness] * jitter, base[1] * LIVELINESS[liveliness]
