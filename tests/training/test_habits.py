"""Speakers who pause where nothing is written: their speech has the pauses, its transcript has not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from indextts.training.make_data import Studio
from indextts.training.speakers import Speaker, all_speakers
from indextts.training.synthesisers import Speech
from indextts.training.text_corpus import phrased

TEXT = "The new socket of the machine is closed, and nobody will open it before the end of the year."


def test_pauses_come_before_phrases_of_three_words() -> None:
    spoken = phrased(TEXT, random.Random(0), chance=1.0)
    assert spoken == "The new socket, of the machine is closed, and nobody will open it, before the end, of the year."
    assert phrased(TEXT, random.Random(0), chance=0.0) == TEXT
    assert phrased("Yes.", random.Random(0)) == "Yes."
    assert phrased("Give it to me in and out of order.", random.Random(0), chance=1.0) == "Give it to me, in and out, of order."


def test_one_speaker_in_five_pauses_but_no_plain_voice() -> None:
    speakers = [speaker for speaker in all_speakers() if speaker.engine != "recorded"]
    pausing = [speaker for speaker in speakers if speaker.pauses]
    assert 0.15 < len(pausing) / len(speakers) < 0.25
    assert not any((speaker.warp, speaker.pitch) == (1.0, 50) for speaker in pausing)
    assert {speaker.voice for speaker in pausing if speaker.engine == "flite"} == {"slt", "rms", "awb", "kal16"}
    assert not any(speaker.pauses for speaker in all_speakers() if speaker.engine == "recorded")


@pytest.mark.parametrize("pauses", [True, False])
def test_the_transcript_stays_as_written(pauses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker(2 if pauses else 3, "flite", "slt", 0.9)
    studio = Studio.__new__(Studio)
    studio._rng = random.Random(1)
    monkeypatch.setattr(studio, "_casting", type("", (), {"next": lambda self: (speaker, 4)})(), raising=False)
    monkeypatch.setattr(studio, "_texts", type("", (), {"next": lambda self: TEXT})(), raising=False)
    heard: list[str] = []

    def speak(speaker: Speaker, style: int, text: str) -> Speech:
        heard.append(text)
        return Speech((8000 * np.sin(np.arange(32000))).astype(np.int16), 16000)

    monkeypatch.setattr(studio, "_speak", speak)
    utterance = studio.record()
    assert utterance is not None
    assert utterance.text == TEXT
    assert (heard[0].count(",") > TEXT.count(",")) is pauses
