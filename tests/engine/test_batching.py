"""Batches of similar length: without them padding eats the gain, and a lost index would lose a sentence of the text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts.engine.batching import group_sentences_by_length


def of_lengths(*lengths: int) -> list[list[int]]:
    return [[0] * length for length in lengths]


def test_the_guides_example() -> None:
    sentences = [["hello", "world"], ["a"], ["test", "sentence", "here"]]
    assert group_sentences_by_length(sentences, tolerance=0.2, max_batch_size=4) == [[1], [0], [2]]


def test_importable_where_the_guide_says() -> None:
    from indextts.infer_v2_modded import group_sentences_by_length as guides

    assert guides is group_sentences_by_length


@pytest.mark.parametrize(
    ("lengths", "tolerance", "size", "batches"),
    [
        ([], 0.2, 4, []),
        ([10, 12, 11], 0.2, 4, [[0, 2, 1]]),
        ([10, 13, 12], 0.2, 4, [[0, 2], [1]]),  # measured from the shortest of the batch, not from the one before
        ([10, 11, 12, 13], 0.2, 4, [[0, 1, 2], [3]]),
        ([5, 5, 5, 5, 5], 0.2, 2, [[0, 1], [2, 3], [4]]),
        ([7, 7], 0.0, 4, [[0, 1]]),
        ([0, 1, 0], 0.2, 4, [[0, 2], [1]]),
        ([100, 115], 0.15, 4, [[0, 1]]),  # 1.15 * 100 is 114.99999999999999 in binary fractions
        ([3, 30, 300], 1000.0, 4, [[0, 1, 2]]),
    ],
)
def test_groups(lengths: list[int], tolerance: float, size: int, batches: list[list[int]]) -> None:
    assert group_sentences_by_length(of_lengths(*lengths), tolerance, size) == batches


@given(st.lists(st.integers(0, 60), max_size=40), st.floats(0, 3), st.integers(1, 6))
def test_every_sentence_once_in_small_batches_of_similar_length(lengths: list[int], tolerance: float, size: int) -> None:
    batches = group_sentences_by_length(of_lengths(*lengths), tolerance, size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(order)
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert lengths[batch[-1]] <= lengths[batch[0]] * (1 + tolerance) + 1e-6


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_bad_tolerance_is_named(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        group_sentences_by_length(of_lengths(1), tolerance)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_bad_batch_size_is_named(size: int) -> None:
    with pytest.raises(ValueError, match="max_batch_size"):
        group_sentences_by_length(of_lengths(1), max_batch_size=size)


def test_one_string_is_not_a_list_of_sentences() -> None:
    with pytest.raises(ValueError, match="one string"):
        group_sentences_by_length("hello world")
