"""If this fails, long text is cut elsewhere than in the release, loses words, or overflows the GPT's position table."""

import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts.text import split_segments
from indextts.text.segment import shorten_first

PIECES = st.lists(st.sampled_from(["▁A", "▁B", "C", ".", "!", "?", "▁.", "▁...", ",", "▁,", "-", "'", "▁'"]), max_size=200)
PLAIN = st.lists(st.sampled_from(["▁A", "▁B", "C", ".", "?", ",", "-"]), max_size=200)


@given(pieces=PLAIN, limit=st.integers(1, 60), quick=st.integers(0, 60))
def test_without_quotes_nothing_is_lost_added_or_too_long(pieces: list[str], limit: int, quick: int) -> None:
    segments = split_segments(pieces, limit, quick)
    assert [piece for segment in segments for piece in segment] == pieces
    assert all(0 < len(segment) <= limit for segment in segments)


@given(pieces=PIECES, limit=st.integers(1, 60), quick=st.integers(0, 60))
def test_only_a_quote_after_a_cut_is_repeated(pieces: list[str], limit: int, quick: int) -> None:
    segments = split_segments(pieces, limit, quick)
    spoken = [piece for segment in segments for piece in segment]
    i = 0
    for piece in pieces:
        while spoken[i] != piece:
            assert spoken[i] in ("'", "▁'"), "a piece other than a quote was added"
            assert spoken[i] == spoken[i - 1]
            i += 1
        i += 1
    assert all(piece in ("'", "▁'") for piece in spoken[i:])
    assert all(0 < len(segment) <= limit + 1 for segment in segments)


def test_the_quote_after_a_cut_closes_one_segment_and_opens_the_next() -> None:
    pieces = ["▁A", "▁B", ".", "'", "▁C", "▁D", "!"]
    assert split_segments(pieces, 5) == [["▁A", "▁B", ".", "'"], ["'", "▁C", "▁D", "!"]]


def test_text_without_punctuation_is_cut_hard_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        segments = split_segments(["▁A"] * 335, 120)
    assert [len(segment) for segment in segments] == [120, 1, 120, 94]
    assert len(caplog.records) == 1
    assert "2 cuts" in caplog.text


def test_quick_streaming_keeps_the_first_segments_short() -> None:
    pieces = ["▁A", "▁B", "▁C", "."] * 20
    assert len(split_segments(pieces, 40, 30)[0]) < len(split_segments(pieces, 40, 0)[0])


@pytest.mark.parametrize(
    ("most", "lengths"),
    [
        (0, [15, 2]),  # off
        (20, [15, 2]),  # short enough
        (14, [9, 6, 2]),
        (9, [9, 6, 2]),
        (8, [4, 11, 2]),
        (1, [4, 11, 2]),  # not at the very start, where hardly anything would be said
    ],
)
def test_the_first_segment_is_cut_at_a_mark_for_an_early_sound(most: int, lengths: list[int]) -> None:
    long = ["▁A", ",", "▁B", ",", "▁C", "▁D", "▁E", "▁F", ".", "▁G", "▁H", "'", ",", "'", "."]
    segments = shorten_first([long, ["▁A", "."]], most)
    assert [len(segment) for segment in segments] == lengths
    assert [piece for segment in segments for piece in segment] == [*long, "▁A", "."]


def test_a_first_segment_without_marks_stays_whole() -> None:
    assert shorten_first([["▁A"] * 30], 5) == [["▁A"] * 30]
    assert shorten_first([], 5) == []


@pytest.mark.parametrize(("limit", "quick"), [(0, 0), (-1, 0), (120, -1), (1.5, 0), (True, 0), (120, "3")])
def test_limits_out_of_range_are_refused(limit: int, quick: int) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        split_segments(["▁A"], limit, quick)


def test_a_book_takes_linear_time() -> None:
    start = time.perf_counter()
    split_segments(["▁A", "-", "▁B", ",", "'"] * 40_000, 120)
    assert time.perf_counter() - start < 5
