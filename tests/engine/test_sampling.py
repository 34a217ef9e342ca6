"""If these fail, the sampling arguments of ``infer`` no longer mean what they say, or a typing mistake in one goes unnoticed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from indextts.config import InferenceConfig
from indextts.engine.sampling import SamplingParams, process_scores, repetition_penalty, score_stages, top_k, top_p, typical

quick = settings(max_examples=60, deadline=None)


@st.composite
def rows_of_scores(draw: st.DrawFn) -> Tensor:
    """Two rows of 2 to 40 scores, some with ties and removed entries, at least two entries left."""
    width, seed = draw(st.integers(2, 40)), draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, width, generator=generator) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    if draw(st.booleans()):
        scores = scores.round()
    if draw(st.booleans()):
        gone = torch.rand(2, width, generator=generator) < 0.3
        gone[:, :2] = False
        scores = scores.masked_fill(gone, -torch.inf)
    return scores


def kept_of(scores: Tensor, processed: Tensor) -> Tensor:
    """Which entries survive; the survivors' scores must be unchanged."""
    kept = processed > -torch.inf
    torch.testing.assert_close(processed[kept], scores[kept], rtol=0, atol=0)
    return kept


@quick
@given(rows_of_scores(), st.integers(1, 50), st.sampled_from([1, 2]))
def test_top_k_keeps_the_k_highest_and_their_equals(scores: Tensor, k: int, min_keep: int) -> None:
    kept = kept_of(scores, top_k(scores, k, min_keep))
    wanted = min(max(k, min_keep), scores.shape[1])
    for row, keep in zip(scores, kept, strict=True):
        finite = int((row > -torch.inf).sum())
        assert int(keep.sum()) >= min(wanted, finite)
        if wanted < finite:
            lowest = row.sort(descending=True).values[wanted - 1]
            assert torch.equal(keep, row >= lowest)


@quick
@given(rows_of_scores(), st.floats(0.0, 0.999), st.sampled_from([1, 2]))
def test_top_p_keeps_the_smallest_set_that_holds_p(scores: Tensor, p: float, min_keep: int) -> None:
    kept = kept_of(scores, top_p(scores, p, min_keep))
    probabilities = scores.double().softmax(dim=1)
    for row, keep, probability in zip(scores, kept, probabilities, strict=True):
        assert int(keep.sum()) >= min(min_keep, int((row > -torch.inf).sum()))
        assert float(probability[keep].sum()) >= p - 1e-5
        if not keep.all():
            assert row[keep].min() >= row[~keep].max()
        if int(keep.sum()) > min_keep:
            assert float(probability[keep].sum() - probability[keep].min()) <= p + 1e-5


@quick
@given(rows_of_scores(), st.floats(0.01, 0.9999999), st.sampled_from([1, 2]))
def test_typical_keeps_what_is_nearest_to_the_entropy(scores: Tensor, mass: float, min_keep: int) -> None:
    kept = kept_of(scores, typical(scores, mass, min_keep))
    logs = scores.double().log_softmax(dim=1)
    information = torch.where(logs.isfinite(), -logs, 0.0)
    distance = (-logs - (logs.exp() * information).sum(dim=1, keepdim=True)).abs()
    for keep, far, log in zip(kept, distance, logs, strict=True):
        assert int(keep.sum()) >= min(min_keep, int(log.isfinite().sum()))
        assert float(log.exp()[keep].sum()) >= mass - 1e-4
        gone = ~keep & log.isfinite()
        if gone.any():
            assert far[keep].max() <= far[gone].min() + 1e-4


@quick
@given(rows_of_scores(), st.floats(1.01, 20.0), st.data())
def test_repetition_penalty_counts_each_seen_id_once(scores: Tensor, penalty: float, data: st.DataObject) -> None:
    seen = data.draw(st.lists(st.integers(0, scores.shape[1] - 1), min_size=1, max_size=8))
    once = repetition_penalty(scores, torch.tensor([seen] * 2), penalty)
    repeated = repetition_penalty(scores, torch.tensor([seen * 3] * 2), penalty)
    torch.testing.assert_close(once, repeated, rtol=0, atol=0)
    unseen = [code for code in range(scores.shape[1]) if code not in seen]
    torch.testing.assert_close(once[:, unseen], scores[:, unseen], rtol=0, atol=0)
    assert (once[:, seen] <= scores[:, seen]).all()


def test_repetition_penalty_by_hand() -> None:
    processed = repetition_penalty(torch.tensor([[2.0, -2.0, 0.0, 1.0]]), torch.tensor([[0, 1, 1, 2]]), 4.0)
    assert processed.tolist() == [[0.5, -8.0, 0.0, 1.0]]


def test_stages_run_in_the_order_of_the_release() -> None:
    names = [name for name, _ in score_stages(SamplingParams(typical_sampling=True))]
    assert names == ["repetition_penalty", "typical", "temperature", "top_k", "top_p"]
    assert [name for name, _ in score_stages(SamplingParams(do_sample=False))] == ["repetition_penalty"]


@pytest.mark.parametrize("top", [0, None])
def test_neutral_values_switch_every_stage_off(top: int | None) -> None:
    params = SamplingParams(top_k=top, top_p=1.0, temperature=1.0, repetition_penalty=1.0)
    scores = torch.randn(2, 9)
    assert process_scores(scores, torch.zeros(2, 1, dtype=torch.long), params) is scores


def test_with_beams_two_codes_survive_the_narrowest_settings() -> None:
    scores, ids = torch.randn(3, 30), torch.zeros(3, 1, dtype=torch.long)
    for beams, survivors in ((1, 1), (3, 2)):
        processed = process_scores(scores, ids, SamplingParams(top_k=1, top_p=0.0, num_beams=beams))
        assert (processed > -torch.inf).sum(dim=1).tolist() == [survivors] * 3


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("do_sample", 1, TypeError),
        ("do_sample", "yes", TypeError),
        ("typical_sampling", None, TypeError),
        ("top_p", -0.1, ValueError),
        ("top_p", 1.1, ValueError),
        ("top_p", float("nan"), ValueError),
        ("top_p", "0.8", TypeError),
        ("top_k", -1, ValueError),
        ("top_k", 5.0, TypeError),
        ("temperature", 0.0, ValueError),
        ("temperature", -1.0, ValueError),
        ("temperature", None, TypeError),
        ("num_beams", 0, ValueError),
        ("num_beams", 2.5, TypeError),
        ("num_beams", True, TypeError),
        ("repetition_penalty", 0.0, ValueError),
        ("repetition_penalty", float("inf"), ValueError),
        ("length_penalty", float("nan"), ValueError),
        ("max_mel_tokens", 0, ValueError),
        ("typical_mass", 0.0, ValueError),
        ("typical_mass", 1.0, ValueError),
        ("early_stopping", "always", ValueError),
    ],
)
def test_a_bad_argument_is_named(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name} "):
        SamplingParams(**{name: value})


def test_whole_numbers_do_for_numbers() -> None:
    params = SamplingParams(repetition_penalty=10, temperature=1, top_p=1, length_penalty=-1)
    assert (params.repetition_penalty, params.temperature, params.top_p, params.length_penalty) == (10.0, 1.0, 1.0, -1.0)


def test_defaults_come_from_the_configuration_and_are_the_release_s() -> None:
    assert SamplingParams.from_kwargs(InferenceConfig(), {}) == SamplingParams()
    voice = dataclasses.replace(InferenceConfig(), num_beams=1, repetition_penalty=1.1, max_mel_tokens=400)
    params = SamplingParams.from_kwargs(voice, {"top_k": 5, "early_stopping": "never"})
    expected = SamplingParams(num_beams=1, repetition_penalty=1.1, max_mel_tokens=400, top_k=5, early_stopping="never")
    assert params == expected


def test_an_unknown_keyword_is_a_type_error_that_lists_the_valid_ones() -> None:
    with pytest.raises(TypeError, match=r"'temprature'.*temperature.*early_stopping"):
        SamplingParams.from_kwargs(InferenceConfig(), {"temprature": 0.7})


def test_one_sequence_is_returned() -> None:
    assert SamplingParams.from_kwargs(InferenceConfig(), {"num_return_sequences": 1}) == SamplingParams()
    with pytest.raises(ValueError, match="num_return_sequences"):
        SamplingParams.from_kwargs(InferenceConfig(), {"num_return_sequences": 2})
