"""If these fail, the fast decoder keeps other hypotheses than beam search should, or ends a search too early or too late."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from indextts.engine.beam_search import BeamState, Candidates
from indextts.engine.device_beams import BeamSearch
from indextts.engine.sampling import SamplingParams
from tests.tiny_gpt import tiny_gpt

CASES = json.loads((Path(__file__).parents[1] / "golden" / "sampling_beam_scorer.json").read_text(encoding="utf-8"))["cases"]
STOP = 11


def search_of(rows: int, beams: int) -> BeamSearch:
    model = tiny_gpt(number_mel_codes=STOP + 1, start_mel_token=STOP - 1, stop_mel_token=STOP)
    return BeamSearch(model, rows, beams, torch.device("cpu"))


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['batch']}x{case['num_beams']}-{case['length_penalty']}-{case['early_stopping']}"
)
def test_recorded_candidates_give_the_recorded_search(case: dict[str, Any]) -> None:
    limit = case["max_length"] - case["prompt_len"]
    params = SamplingParams(
        num_beams=case["num_beams"], length_penalty=case["length_penalty"], early_stopping=case["early_stopping"], max_mel_tokens=limit
    )
    search = search_of(case["batch"], case["num_beams"])
    search.begin(torch.zeros(case["batch"], STOP + 1), limit)
    for number, step in enumerate(case["steps"], start=1):
        candidates = Candidates(*(torch.tensor(_finite(step[f"cand_{name}"])) for name in ("scores", "tokens", "beams")))
        alive = [row for row in range(case["batch"]) if not search.done[row]]
        codes, parents = search.take(candidates, params)
        assert codes.flatten().tolist() == step["next_tokens"]
        for row in alive:
            own = slice(row * case["num_beams"], (row + 1) * case["num_beams"])
            assert (parents[row] + row * case["num_beams"]).tolist() == step["next_beams"][own]
        torch.testing.assert_close(search.scores.flatten(), torch.tensor(_finite(step["next_scores"])))
        assert search.done.tolist() == step["done"]
        for row, expected in enumerate(step["hypotheses"]):
            filled = search.found_step[row] > 0
            assert sorted((search.found_step[row] - 1)[filled].tolist()) == sorted(len(codes) for _, codes in expected)
            assert search.found_score[row][filled].tolist() == pytest.approx(sorted(_finite(score) for score, _ in expected))
        assert search.ask_end()() == (number if all(step["done"]) else 0)
    result = search.result(len(case["steps"]), params, limit)
    assert result.codes.tolist() == case["final_sequences"]
    assert result.scores == pytest.approx(_finite(case["final_scores"]))


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.5])
def test_any_candidates_give_the_search_of_the_oracle(early_stopping: bool | Literal["never"], length_penalty: float) -> None:
    """Scores on a grid, so that equals are common; stops at all ranks."""
    rows, beams, limit = 3, 3, 8
    params = SamplingParams(num_beams=beams, length_penalty=length_penalty, early_stopping=early_stopping, max_mel_tokens=limit)
    search = search_of(rows, beams)
    for seed in range(25):
        random = torch.Generator().manual_seed(seed)
        state = BeamState(rows, beams, STOP, limit, length_penalty=length_penalty, early_stopping=early_stopping)
        search.begin(torch.zeros(rows, STOP + 1), limit)
        steps = 0
        while steps < limit and not all(state.done):
            # Six different continuations a row, among them up to one stop a beam.
            scores = (-4 * torch.rand(rows, beams, STOP + 1, generator=random)).round()
            scores[..., STOP] = scores[..., STOP].clamp(min=-1.0)
            best, index = scores.flatten(1).topk(2 * beams)
            candidates = Candidates(best, index % (STOP + 1), index // (STOP + 1))
            state.advance(candidates)
            search.take(candidates, params)
            steps += 1
            assert search.done.tolist() == state.done
        expected = state.finish()
        result = search.result(steps, params, limit)
        assert result.hypotheses == expected
        assert torch.equal(result.codes, state.best_codes(expected))
        assert search.ask_end()() == (steps if all(state.done) else 0)


def _finite(values: Any) -> Any:
    """None (JSON has no infinity) to -inf, at any depth."""
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return -math.inf if values is None else values
