"""If these fail, the fast decoder understands a sampling argument differently from the plain one, or draws other codes from a seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from indextts.engine.beam_search import UNBORN, choose_candidates
from indextts.engine.device_sampling import draw_candidates, draw_codes, shape_scores, top_k_then_top_p
from indextts.engine.sampling import SamplingParams, process_scores, top_k, top_p

WIDTH = 60


def spread_scores(seed: int, rows: int = 4, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"do_sample": False},
        {"do_sample": False, "typical_sampling": True, "typical_mass": 0.5},
        {"typical_sampling": True},
        {"typical_sampling": True, "typical_mass": 0.999999},
        {"top_k": 0},
        {"top_k": 1},
        {"top_k": WIDTH + 5},
        {"top_p": 0.0},
        {"top_p": 1.0},
        {"top_k": 0, "top_p": 1.0, "temperature": 1.0},
        {"repetition_penalty": 1.0},
        {"repetition_penalty": 0.5, "temperature": 2.0},
    ],
    ids=str,
)
def test_every_argument_means_what_it_means_to_the_plain_path(arguments: dict[str, object], beams: int) -> None:
    params = SamplingParams(num_beams=beams, **arguments)  # type: ignore[arg-type]
    for seed in range(20):
        scores = spread_scores(seed)
        scores = scores if beams == 1 else scores.log_softmax(dim=-1)
        ids = torch.randint(WIDTH, (4, 9), generator=torch.Generator().manual_seed(seed))
        seen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, ids, True)
        torch.testing.assert_close(shape_scores(scores, seen, params), process_scores(scores, ids, params), rtol=0, atol=0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 50), st.floats(0.0, 0.99), st.integers(1, 2), st.sampled_from([None, 4.0, 1.0]), st.booleans()
)
def test_top_p_after_top_k_with_equal_scores(seed: int, k: int, p: float, min_keep: int, grid: float | None, holes: bool) -> None:
    """16-bit logits are full of equals: the k-th may have many, and which of them top-p removes must not change how many stay."""
    scores = spread_scores(seed, rows=3)
    scores = scores if grid is None else (scores * grid).round() / grid
    if holes:
        scores = scores.masked_fill(torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.8, -torch.inf)
        scores[:, :2] = 0.25
    expected = top_p(top_k(scores, k, min_keep), p, min_keep)
    found = top_k_then_top_p(scores, k, p, min_keep)
    kept = found > -torch.inf
    torch.testing.assert_close(found[kept], scores[kept], rtol=0, atol=0)
    torch.testing.assert_close(found.sort(dim=-1).values, expected.sort(dim=-1).values, rtol=0, atol=0)


def test_a_seed_draws_what_multinomial_draws() -> None:
    for seed in range(100):
        scores = shape_scores(spread_scores(seed), torch.zeros(4, WIDTH, dtype=torch.bool), SamplingParams(num_beams=1))
        plain, fast = (torch.Generator().manual_seed(seed) for _ in range(2))
        expected = torch.multinomial(scores.softmax(dim=-1), 1, generator=plain)[:, 0]
        assert torch.equal(draw_codes(scores, True, fast), expected)
        assert torch.equal(plain.get_state(), fast.get_state())
    assert draw_codes(torch.tensor([[1.0, 3.0, 3.0]]), False, None).tolist() == [1]


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("living", [3, 1])
def test_a_seed_draws_the_same_candidates(do_sample: bool, living: int) -> None:
    """With one living beam and top-k 2 only 2 of 6 candidates can be drawn: the others fill up, and never with stop."""
    params = SamplingParams(num_beams=3, top_k=2 if living == 1 else 30)
    for seed in range(100):
        scores = spread_scores(seed, rows=6).log_softmax(dim=-1)
        scores = shape_scores(scores, torch.zeros_like(scores, dtype=torch.bool), params).unflatten(0, (2, 3)).clone()
        scores[:, living:] += UNBORN
        plain, fast = (torch.Generator().manual_seed(seed) for _ in range(2))
        expected = choose_candidates(scores, 7, do_sample=do_sample, generator=plain)
        found = draw_candidates(scores, 7, do_sample, fast)
        assert torch.equal(found.scores, expected.scores)
        live = expected.scores > UNBORN / 2
        assert torch.equal(found.codes[live], expected.codes[live])
        assert torch.equal(found.beams[live], expected.beams[live])
        if do_sample:
            assert not (found.codes[~live] == 7).any()


def test_codes_of_probability_0_fill_up_by_score() -> None:
    scores = torch.full((1, 2, 8), -torch.inf)
    scores[0, 0, 7], scores[0, 0, 3], scores[0, 1, 7], scores[0, 1, 2] = 0.0, -500.0, UNBORN, UNBORN
    found = draw_candidates(scores, 7, True, torch.Generator().manual_seed(0))
    assert found.codes[0, :3].tolist() == [7, 3, 2]
    assert found.scores[0].tolist() == [0.0, -500.0, UNBORN, -torch.inf]
