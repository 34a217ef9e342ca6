"""If this fails, numbers, readings or names are spoken wrongly, or a strange text stops synthesis."""

import json
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts.text import TextNormalizer, patterns
from indextts.text.grammar import make_grammar

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text(encoding="utf-8"))
ODD = st.text(st.sampled_from("aB1 5.$,-~<>|H%#'\"\\@/:…，。·n_你好ü\n\t()&=+*ni3<H>"), max_size=40)


@pytest.fixture(scope="module")
def wetext() -> TextNormalizer:
    return TextNormalizer()


def refuse(text: str, language: str) -> str:
    raise AssertionError("no reading")


@pytest.mark.parametrize("text", ["我有3个GPT-4，读ju4，安娜·卡里娜", "It's 3 wi-fi boxes: <a|b>"])
def test_a_failing_grammar_costs_one_warning_and_no_text(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        spoken = TextNormalizer(grammar=refuse).normalize(text)
    assert spoken == TextNormalizer(grammar="identity").normalize(text)
    assert len(caplog.records) == 1


@given(text=st.text(max_size=80) | ODD)
@settings(deadline=None)
def test_any_text_passes_the_whole_normaliser(text: str) -> None:
    assert isinstance(WETEXT.normalize(text), str)


WETEXT = TextNormalizer()


@given(text=ODD)
@settings(deadline=None)
def test_no_placeholder_is_left_behind(text: str) -> None:
    spoken = TextNormalizer(grammar="identity").normalize(text)
    assert "PLACEHOLDER" not in spoken
    assert "<pinyin_" not in spoken
    assert "<n_" not in spoken or "<n_" in text


@pytest.mark.parametrize("unit", ["<", "a-", "1,", "你", "'", "a1", "ni3", "安·", "<H> ", "<a|", "#", "~5 ", "好5。"])
def test_long_odd_text_takes_bounded_time(unit: str) -> None:
    start = time.perf_counter()
    WETEXT.normalize(unit * (1200 // len(unit)) + " end")
    assert time.perf_counter() - start < 10


def test_more_than_26_readings_come_back() -> None:
    syllables = [f"{onset}{final}{tone}" for onset in "bdm" for final in ("a", "ai", "ao") for tone in range(1, 5)]
    text = "读" + "，读".join(syllables)
    assert TextNormalizer(grammar="identity").normalize(text) == text.replace("，", ",")


def test_a_reading_inside_another_is_not_cut() -> None:
    assert TextNormalizer(grammar="identity").normalize("读an1和xuan1") == "读an1和XVAN1"


def test_annotations_come_back_unchanged_and_in_order() -> None:
    text = " ".join(f"<w{i}|R{i}.>" for i in range(40)) + " end"
    assert TextNormalizer(grammar="identity").normalize(text) == text
    assert WETEXT.normalize(text) == text


@pytest.mark.parametrize(("text", "mapped"), [("，，，", ",,,"), (",,,", "…"), ("$...$", ".….")])
def test_punctuation_is_mapped_in_one_pass(text: str, mapped: str) -> None:
    assert patterns.map_punctuation(text, chinese=True) == mapped


def test_the_glossary_may_be_a_plain_dict() -> None:
    assert TextNormalizer({"tts": "T T S"}, "identity").normalize("TTS now") == "T T S now"


def test_an_unknown_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown text grammar 'wetxt'"):
        TextNormalizer(grammar="wetxt")
    assert make_grammar("identity")("5", "en") == "5"


def test_agreement_with_the_reference_grammar_does_not_fall(wetext: TextNormalizer) -> None:
    def alike(column: str) -> int:
        return sum(
            "".join(s.split()) == "".join(case["normalized"][column].split()) for s, case in zip(spoken, GOLDEN["cases"], strict=True)
        )

    spoken = [wetext.normalize(case["text"]) for case in GOLDEN["cases"]]
    assert alike("linux") >= 125
    assert alike("wetextprocessing_1.2.0") >= 129


def test_works_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "socket", blocked)
    monkeypatch.setattr(socket, "create_connection", blocked)
    assert TextNormalizer().normalize("5 apples") == "five apples"


def test_importing_the_front_end_loads_nothing_heavy() -> None:
    code = "import sys, indextts.text; print([m for m in ('torch', 'wetext', 'sentencepiece', 'tn', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
