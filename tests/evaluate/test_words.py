"""If this fails, the word judge is not to be trusted: good speech would be called bad, or noise good."""

from __future__ import annotations

import numpy as np
import pytest

from indextts.evaluate.needed import needed
from indextts.evaluate.words import Recogniser, edits, error_rate, prepared, recogniser, spoken_words, wer
from tests.evaluate.conftest import RATE, SENTENCES, shuffled


@pytest.mark.parametrize(
    ("wanted", "heard", "count"),
    [("", "", 0), ("a b c", "a b c", 0), ("a b c", "", 3), ("", "a", 1), ("a b c", "a x c", 1), ("a b c", "b c d", 2), ("a b", "b a", 2)],
)
def test_edits(wanted: str, heard: str, count: int) -> None:
    assert edits(wanted.split(), heard.split()) == count


def test_words_are_compared_without_marks_and_case() -> None:
    assert spoken_words("It’s a well-known “Fact”!") == ["it's", "a", "well", "known", "fact"]
    assert error_rate([("One, two.", "one two"), ("Three four", "three for")]) == 0.25
    with pytest.raises(ValueError, match="no words"):
        error_rate([("...", "a")])


def test_sound_is_brought_to_one_form() -> None:
    tone = np.sin(np.arange(4410) / 5).astype(np.float32)
    forms = [tone, tone * 0.1, (tone * 30000).astype(np.int16)[:, None]]
    levels = [int(np.abs(prepared(form, 22050)).max()) for form in forms]
    assert max(levels) - min(levels) < 60
    assert len(prepared(tone, 22050)) == pytest.approx(3200 + 6400, abs=2)
    assert not prepared(np.zeros(0, np.int16), 22050).any()
    with pytest.raises(ValueError, match="mono"):
        prepared(np.zeros((10, 2)), 22050)


def test_a_missing_judge_names_the_command_that_installs_it() -> None:
    with pytest.raises(ImportError, match=r"needs no_such_judge: pip install 'indextts2-lab\[train\]'"):
        needed("no_such_judge")


@pytest.fixture(scope="module")
def judge() -> Recogniser:
    pytest.importorskip("pocketsphinx")
    return recogniser()


def test_a_good_voice_is_understood_and_shuffled_speech_is_not(speech: list[np.ndarray], judge: Recogniser) -> None:
    heard = [(sentence, judge.transcribe(sound, RATE)) for sentence, sound in zip(SENTENCES, speech, strict=True)]
    assert error_rate(heard) < 0.25
    assert wer(speech[0], RATE, SENTENCES[0]) == error_rate(heard[:1]), "the same sound, the same words"
    noise = [(sentence, judge.transcribe(shuffled(sound), RATE)) for sentence, sound in zip(SENTENCES[:2], speech, strict=False)]
    assert error_rate(noise) > 0.8


def test_grammars_choose_among_sentences_and_find_the_ending(speech: list[np.ndarray], judge: Recogniser) -> None:
    assert [judge.choose(sound, RATE, SENTENCES) for sound in speech] == [" ".join(spoken_words(sentence)) for sentence in SENTENCES]
    text, sound = SENTENCES[0], speech[0]
    assert judge.ending(sound, RATE, text) == 0
    assert judge.ending(sound[: int(0.6 * len(sound))], RATE, text) < 0
    assert judge.ending(np.concatenate([sound, sound[-len(sound) // 4 :]]), RATE, text) > 0


@pytest.mark.parametrize(
    ("heard", "count"),
    [
        ("the sun is up", 0),
        ("the sun is up sun", 0),  # one word more, where the sound ended: a breath
        ("the sun is up sun is", 2),
        ("the sun is up sun is up", 3),
        ("the sun is", -1),
        ("the", -3),
        ("", -4),
        ("a moon", -4),
    ],
)
def test_an_ending_that_fits_no_choice_counts_its_missing_words(monkeypatch: pytest.MonkeyPatch, heard: str, count: int) -> None:
    judge = object.__new__(Recogniser)
    monkeypatch.setattr(judge, "_heard", lambda *_: heard, raising=False)
    assert judge.ending(np.zeros(4, np.float32), RATE, "The sun is up.") == count


def test_silence_is_heard_as_nothing(judge: Recogniser) -> None:
    assert spoken_words(judge.transcribe(np.zeros(RATE, np.int16), RATE)) == []


def test_words_it_cannot_hear_are_named(judge: Recogniser) -> None:
    assert judge.knows("The zorpish bicycle") == ["zorpish"]
