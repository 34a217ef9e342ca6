"""If this fails, text is dropped in silence, garbage is spoken for text that cannot be, or a text stops synthesis."""

import logging
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from indextts.text import Segment, TextFrontend, TextNormalizer, Tokenizer

FRONTEND = TextFrontend(Tokenizer(Path(__file__).parents[1] / "golden" / "bpe_small.model"), TextNormalizer())
ANY_TEXT = st.text(st.characters(), max_size=100) | st.text(st.sampled_from("Hi ab,.!?-'\"’ 你好。5😀\n"), max_size=200)


@given(text=ANY_TEXT, limit=st.integers(5, 120))
@settings(deadline=None)
def test_any_text_is_spoken_whole_or_refused_clearly(text: str, limit: int) -> None:
    assume(len(text.strip()) != 1)
    pieces = FRONTEND.pieces(text)
    if not FRONTEND.pronounceable(pieces):
        with pytest.raises(ValueError, match="nothing"):
            FRONTEND.segments(text, limit)
        return
    segments = FRONTEND.segments(text, limit, on_unknown="ignore")
    spoken = [piece for segment in segments for piece in segment.pieces]
    assert sum(piece not in ("'", "▁'") for piece in spoken) == sum(piece not in ("'", "▁'") for piece in pieces)
    assert len(spoken) >= len(pieces)
    for segment in segments:
        assert 0 < len(segment) <= limit + 1
        assert len(segment.pieces) == len(segment.ids)
        assert segment.unknown == tuple(FRONTEND.tokenizer.unknown(segment.pieces))


@given(character=st.characters())
@settings(deadline=None)
def test_any_single_character_is_spoken_or_refused(character: str) -> None:
    try:
        segments = FRONTEND.segments(character, on_unknown="ignore")
    except ValueError:
        segments = []
    assert len(segments) <= 1


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "...", "。", "?!", "😀", "“”", "-"])
def test_text_without_anything_to_say_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nothing"):
        FRONTEND.segments(text)


def test_text_must_be_text() -> None:
    with pytest.raises(TypeError, match="must be str, got int"):
        FRONTEND.segments(5)  # type: ignore[arg-type]


def test_single_characters_are_spoken() -> None:
    assert FRONTEND.segments("a") == [Segment(("▁A",), tuple(FRONTEND.tokenizer.ids(["▁A"])))]
    assert FRONTEND.pieces("a") == ["▁", "a"], "the release's pieces, which are unknown"
    assert FRONTEND.segments("好")[0].pieces == ("▁好",)


def test_unknown_pieces_are_kept_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    text = "hello 😀 there. hello 😀 again, and 🎉 more."
    with caplog.at_level(logging.WARNING):
        segments = FRONTEND.segments(text, 8)
    assert len(segments) > 1
    assert [piece for segment in segments for piece in segment.unknown] == ["😀", "😀", "🎉"]
    assert len(caplog.records) == 1
    assert "3 text tokens" in caplog.text
    assert caplog.text.count("😀") == 1
    with pytest.warns(UserWarning, match="3 text tokens"):
        FRONTEND.segments(text, on_unknown="warn")


def test_nothing_is_reported_when_asked_not_to(caplog: pytest.LogCaptureFixture) -> None:
    FRONTEND.segments("hello 😀", on_unknown="ignore")
    assert not caplog.records
    with pytest.raises(ValueError, match="on_unknown"):
        FRONTEND.segments("hello", on_unknown="shout")


def test_a_segment_reads_as_text() -> None:
    assert FRONTEND.segments("Hello 5 goats!")[0].text == "HELLO FIVE GOATS!"


def test_limits_are_passed_on() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten eleven twelve."
    assert len(FRONTEND.segments(text, 12)) > len(FRONTEND.segments(text, 120)) == 1
    assert len(FRONTEND.segments(text, 20, 12)) > len(FRONTEND.segments(text, 20)) == 1
