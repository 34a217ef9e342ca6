"""If this fails, the emotion that a user sets is not the emotion that is heard, or a wrong setting passes unnoticed."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indextts.models.emotion import EMOTIONS, EmotionMatrices, check_emo_vector, normalize_emo_vec, scale_emotion

COUNTS = (3, 4, 2, 5, 1, 2, 3, 4)
VALUES = st.lists(st.floats(0, 1.5), min_size=8, max_size=8)


@pytest.fixture
def matrices() -> EmotionMatrices:
    generator = torch.Generator().manual_seed(3)
    rows = sum(COUNTS)
    return EmotionMatrices(torch.randn(rows, 192, generator=generator), torch.randn(rows, 16, generator=generator), COUNTS)


def test_the_voice_most_like_the_prompt_is_chosen_whatever_its_loudness(matrices: EmotionMatrices) -> None:
    wanted = [2, 0, 1, 4, 0, 1, 2, 3]
    starts = [sum(COUNTS[:i]) for i in range(8)]
    speaker = -torch.ones(sum(COUNTS), 192)
    for start, row in zip(starts, wanted, strict=True):
        speaker[start + row] = torch.linspace(0.1, 1, 192) * (start + 1)
    chosen = EmotionMatrices(speaker, matrices.emotion, COUNTS).choose_rows(torch.linspace(0.1, 1, 192).unsqueeze(0) * 0.01)
    assert chosen == wanted


def test_the_first_of_equal_voices_is_chosen(matrices: EmotionMatrices) -> None:
    assert EmotionMatrices(torch.ones(sum(COUNTS), 192), matrices.emotion, COUNTS).choose_rows(torch.ones(1, 192)) == [0] * 8
    assert EmotionMatrices(torch.zeros(sum(COUNTS), 192), matrices.emotion, COUNTS).choose_rows(torch.ones(1, 192)) == [0] * 8


def test_one_emotion_at_full_strength_is_its_row_alone(matrices: EmotionMatrices) -> None:
    rows = [1] * 4 + [0] + [1] * 3
    weights = [0.0, 1.0] + [0.0] * 6
    assert torch.equal(matrices.mix(weights, rows), matrices.emotion[3 + 1].unsqueeze(0))
    assert torch.allclose(matrices.final_vector(torch.full((1, 16), 5.0), weights, rows), matrices.emotion[4].unsqueeze(0))


def test_no_emotion_is_the_prompts_own(matrices: EmotionMatrices) -> None:
    merged = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(matrices.final_vector(merged, [0.0] * 8, [0] * 8), merged)


def test_weights_above_one_subtract_the_prompts_own(matrices: EmotionMatrices) -> None:
    merged = torch.ones(1, 16)
    weights = [2.0] + [0.0] * 7
    assert torch.allclose(matrices.final_vector(merged, weights, [0] * 8), 2 * matrices.emotion[:1] - merged)


def test_random_rows_follow_pythons_generator(matrices: EmotionMatrices) -> None:
    random.seed(5)
    expected = [random.randint(0, count - 1) for count in COUNTS]
    random.seed(5)
    assert matrices.random_rows() == expected
    assert matrices.random_rows(random.Random(5)) == expected


def test_saved_gradients_do_not_follow_the_matrices() -> None:
    speaker = torch.ones(sum(COUNTS), 192, requires_grad=True)
    assert not EmotionMatrices(speaker, torch.ones(sum(COUNTS), 16), COUNTS).speaker.requires_grad


def test_matrices_that_do_not_belong_together_are_refused(matrices: EmotionMatrices) -> None:
    with pytest.raises(ValueError, match="emotion matrix must have 24 rows"):
        EmotionMatrices(matrices.speaker, matrices.emotion[:-1], COUNTS)
    with pytest.raises(ValueError, match="8 counts"):
        EmotionMatrices(matrices.speaker, matrices.emotion, COUNTS[:-1])
    with pytest.raises(ValueError, match="8 emotion weights"):
        matrices.mix([1.0], [0] * 8)


@pytest.mark.parametrize(
    "vector", [[0] * 7, [0] * 9, [-0.1] + [0] * 7, [math.nan] + [0] * 7, [math.inf] + [0] * 7, ["1"] * 8, "12345678", None, 3, [[0]] * 8]
)
def test_a_wrong_vector_is_refused_with_the_order(vector: list[float]) -> None:
    with pytest.raises(ValueError, match="happy, angry, sad, afraid, disgusted, melancholic, surprised, calm"):
        check_emo_vector(vector)


def test_a_tensor_is_a_vector() -> None:
    assert check_emo_vector(torch.full((8,), 0.5)) == [0.5] * 8
    assert len(EMOTIONS) == 8


@given(vector=VALUES, alpha=st.floats(-2, 3))
def test_scaling_never_strengthens(vector: list[float], alpha: float) -> None:
    scaled = scale_emotion(vector, alpha)
    assert all(0 <= after <= before for before, after in zip(vector, scaled, strict=True))
    assert alpha < 1 or scaled == vector
    assert alpha > 0 or scaled == [0.0] * 8


def test_scaling_cuts_to_four_decimals() -> None:
    assert scale_emotion([0.45, *[0.0] * 7], 0.333)[0] == 0.1498
    with pytest.raises(ValueError, match="emo_alpha"):
        scale_emotion([0.0] * 8, math.nan)


@given(vector=VALUES, bias=st.booleans())
def test_normalised_values_stay_below_the_cap(vector: list[float], bias: bool) -> None:
    values = normalize_emo_vec(vector, apply_bias=bias)
    assert sum(values) <= 0.8 + 1e-9
    if sum(vector) <= 0.8 and not bias:
        assert values == vector
