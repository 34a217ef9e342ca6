"""If these fail, training hears fewer people than it could, or words where there are none."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from indextts.training import recordings
from indextts.training.speakers import RECORDED, Casting, all_speakers
from indextts.training.synthesisers import Recordings, Speech


def test_every_recorded_speaker_of_the_list_can_be_made() -> None:
    assert sorted({**recordings.FESTIVAL, **recordings.RHVOICE}) == sorted(RECORDED)


@pytest.mark.parametrize("script", ["latin", "cyrillic", "devanagari", "telugu"])
def test_gibberish_is_a_sentence_of_its_script(script: str) -> None:
    sentence = recordings.gibberish(random.Random(1), script)
    assert 6 <= len(sentence.split()) <= 11
    assert sentence[-1] in ".?!"
    assert sentence == recordings.gibberish(random.Random(1), script)


def test_recordings_are_trimmed_levelled_and_as_long_as_asked() -> None:
    tone = (3000 * np.sin(np.arange(16000) * 0.1)).astype(np.int16)
    quiet = np.zeros(8000, np.int16)
    said: list[str] = []

    def speak(text: str) -> Speech:
        said.append(text)
        return Speech(np.concatenate([quiet, tone, quiet]) if len(said) % 3 else quiet[:100], 16000)

    samples = recordings._recorded(speak, random.Random(0), "latin", 5.0)
    assert samples.size == 5 * 22050
    assert 0.07 < np.sqrt(np.mean((samples / 32768.0) ** 2)) < 0.09
    assert len(set(said)) == len(said) >= 5


def test_pieces_of_recordings_come_from_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "recordings/anna.flac", np.arange(20000, dtype=np.int16), 10000, subtype="PCM_16")
    voices = Recordings(tmp_path)
    assert voices.voices() == ["anna"]
    first, last = voices.speak("anna", 0.0, 0.5), voices.speak("anna", 1.0, 0.5)
    assert (first.samples[0], last.samples[-1], first.samples.size, first.rate) == (0, 19999, 5000, 10000)
    assert voices.speak("anna", 0.5, 9.0).samples.size == 20000
    with pytest.raises(RuntimeError, match="no recordings"):
        Recordings(tmp_path / "recordings")


def test_recorded_people_speak_in_one_manner() -> None:
    casting = Casting({"recorded": ["anna", "elena"]}, seed=0)
    drawn = [casting.next() for _ in range(50)]
    assert {speaker.voice for speaker, _ in drawn} == {"anna", "elena"}
    assert {style for _, style in drawn} == {4}
    assert len(all_speakers()) == len({speaker.index for speaker in all_speakers()})
