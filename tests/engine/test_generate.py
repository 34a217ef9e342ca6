"""If these fail, a seed no longer reproduces a sentence, batched sentences differ from single ones, or beams miss the best sequence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.beam_search import UNBORN, BeamState, Candidates, choose_candidates
from indextts.engine.generate import GeneratedCodes, generate, remove_long_silence, trim_codes
from indextts.engine.sampling import SamplingParams
from indextts.models.gpt import UnifiedVoice
from tests.tiny_gpt import CONFIG, tiny_conditioning, tiny_gpt

STOP = CONFIG.stop_mel_token
GREEDY = SamplingParams(do_sample=False, num_beams=1, max_mel_tokens=20)
BEAMS = SamplingParams(do_sample=False, num_beams=3, max_mel_tokens=20)
SAMPLED = SamplingParams(num_beams=1, max_mel_tokens=20)
SAMPLED_BEAMS = SamplingParams(num_beams=3, max_mel_tokens=20)
ALL = pytest.mark.parametrize("params", [GREEDY, BEAMS, SAMPLED, SAMPLED_BEAMS], ids=["greedy", "beams", "sampled", "sampled beams"])


@pytest.fixture(scope="module")
def model() -> UnifiedVoice:
    return tiny_gpt()


def run(model: UnifiedVoice, params: SamplingParams, text: list[list[int]] | None = None, seed: int = 0, **more: object) -> GeneratedCodes:
    prefix, mask = model.prefix(tiny_conditioning(model), torch.tensor(text or [[7, 3, 9, 12, 5]]))
    return generate(model, prefix, mask, params, generator=torch.Generator().manual_seed(seed), **more)  # type: ignore[arg-type]


@ALL
def test_the_same_seed_gives_the_same_codes(model: UnifiedVoice, params: SamplingParams) -> None:
    first, second = run(model, params, seed=5), run(model, params, seed=5)
    assert torch.equal(first.codes, second.codes)
    assert first.scores == second.scores
    others = {str(run(model, params, seed=seed).codes.tolist()) for seed in range(8)}
    assert (len(others) > 1) == params.do_sample


def test_without_a_generator_the_global_seed_counts(model: UnifiedVoice) -> None:
    prefix, mask = model.prefix(tiny_conditioning(model), torch.tensor([[7, 3, 9]]))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(generate(model, prefix, mask, SAMPLED).codes)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("params", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_batch_of_texts_equals_single_texts(model: UnifiedVoice, params: SamplingParams) -> None:
    texts = [[7, 3, 9, 12, 5], [15, 2], [4, 4, 18]]
    padded = [text + [CONFIG.stop_text_token] * (5 - len(text)) for text in texts]
    batch = run(model, params, padded)
    for row, text in enumerate(texts):
        single = run(model, params, [text])
        assert int(batch.lengths[row]) == int(single.lengths[0])
        assert batch.codes[row, : batch.lengths[row]].tolist() == single.codes[0, : single.lengths[0]].tolist()
        assert (batch.codes[row, batch.lengths[row] :] == STOP).all()
        if batch.scores and single.scores:
            assert batch.scores[row] == pytest.approx(single.scores[0], rel=1e-4)


def test_greedy_is_the_best_code_at_every_step(model: UnifiedVoice) -> None:
    result = run(model, SamplingParams(do_sample=False, num_beams=1, repetition_penalty=1.0, max_mel_tokens=8))
    prefix, mask = model.prefix(tiny_conditioning(model), torch.tensor([[7, 3, 9, 12, 5]]))
    logits, cache = model.prefill(prefix, mask)
    for step, code in enumerate(result.codes[0].tolist(), start=1):
        assert code == int(logits.argmax())
        logits, cache = model.decode_step(torch.tensor([code]), step, cache, mask)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beams_find_the_best_of_all_sequences(length_penalty: float) -> None:
    model = tiny_gpt(1, number_mel_codes=5, start_mel_token=3, stop_mel_token=4)
    limit = 3
    prefix, mask = model.prefix(tiny_conditioning(model), torch.tensor([[7, 3]]))
    best = max(_all_sequences(model, prefix, mask, limit, length_penalty))
    params = SamplingParams(
        do_sample=False, num_beams=80, repetition_penalty=1.0, max_mel_tokens=limit, length_penalty=length_penalty, early_stopping=False
    )
    # More beams than sequences: nothing is pruned, so the search is exhaustive.
    found = generate(model, prefix, mask, params).hypotheses[0][0]
    assert found.codes == best[1]
    assert found.score == pytest.approx(best[0], rel=1e-4)


def test_every_hypothesis_has_the_score_of_its_own_codes() -> None:
    model = tiny_gpt(spread=4.0)
    prefix, mask = model.prefix(tiny_conditioning(model), torch.tensor([[7, 3], [15, 2]]))
    params = SamplingParams(num_beams=4, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_mel_tokens=9)
    result = generate(model, prefix, mask, params, generator=torch.Generator().manual_seed(2))
    for row, hypotheses in enumerate(result.hypotheses):
        for found in hypotheses:
            expected = _score(model, prefix[row : row + 1], mask[row : row + 1], found.codes, 9)
            assert found.score == pytest.approx(expected, rel=1e-4)


def _all_sequences(
    model: UnifiedVoice, prefix: Tensor, mask: Tensor, limit: int, penalty: float
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Score and codes of every sequence that stops, or that is as long as the limit allows."""
    for length in range(limit + 1):
        for codes in itertools.product(range(model.config.stop_mel_token), repeat=length):
            yield _score(model, prefix, mask, codes, limit) / min(length + 1, limit) ** penalty, codes


def _score(model: UnifiedVoice, prefix: Tensor, mask: Tensor, codes: tuple[int, ...], limit: int) -> float:
    """Sum of log-probabilities of one sequence, with its stop code if the limit leaves room."""
    logits, cache = model.prefill(prefix, mask)
    total = 0.0
    for step, code in enumerate((*codes, model.config.stop_mel_token)[:limit], start=1):
        total += float(logits.detach().log_softmax(dim=-1)[0, code])
        logits, cache = model.decode_step(torch.tensor([code]), step, cache, mask)
    return total


@ALL
def test_an_exception_in_on_step_cancels(model: UnifiedVoice, params: SamplingParams) -> None:
    steps: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, params, on_step=on_step)
    assert steps == [1, 2, 3]


@ALL
def test_the_limit_is_kept_and_reported(model: UnifiedVoice, params: SamplingParams) -> None:
    never = _with_stop_bias(-1e4)
    limited = run(never, SamplingParams(do_sample=params.do_sample, num_beams=params.num_beams, max_mel_tokens=4))
    assert limited.codes.shape == (1, 4)
    assert limited.lengths.tolist() == [4]
    assert limited.hit_limit.tolist() == [True]


@ALL
def test_a_model_that_stops_at_once_gives_length_0(params: SamplingParams) -> None:
    result = run(_with_stop_bias(1e4), params)
    assert result.lengths.tolist() == [0]
    assert result.hit_limit.tolist() == [False]
    assert (result.codes == STOP).all()
    assert trim_codes(result.codes, STOP)[0].shape == (1, 0)


def test_rows_of_a_batch_end_on_their_own(model: UnifiedVoice) -> None:
    result = run(model, SAMPLED, [[7, 3], [15, 2], [4, 18], [9, 9]], seed=1)
    assert len(set(result.lengths.tolist())) > 1
    for codes, length in zip(result.codes, result.lengths.tolist(), strict=True):
        assert STOP not in codes[:length]
        assert (codes[length:] == STOP).all()


def test_more_codes_than_positions_are_refused(model: UnifiedVoice) -> None:
    with pytest.raises(ValueError, match=rf"max_mel_tokens is {model.max_codes + 1}"):
        run(model, SamplingParams(max_mel_tokens=model.max_codes + 1))
    longest = run(_with_stop_bias(-1e4), SamplingParams(do_sample=False, num_beams=1, max_mel_tokens=model.max_codes))
    assert longest.lengths.tolist() == [model.max_codes]


@ALL
def test_forced_length_for_timing(params: SamplingParams) -> None:
    result = run(_with_stop_bias(1e4), params, forced_codes=25)
    assert result.codes.shape == (1, 25)
    assert result.lengths.tolist() == [25]


def test_hypotheses_come_best_first_and_the_first_is_the_result(model: UnifiedVoice) -> None:
    result = run(model, BEAMS)
    scores = [hypothesis.score for hypothesis in result.hypotheses[0]]
    assert scores == sorted(scores, reverse=True)
    assert list(result.hypotheses[0][0].codes) == result.codes[0, : result.lengths[0]].tolist()
    assert result.scores == scores[:1]


# ------------------------------------------------------------------------------------------------- the draw and the beams


def test_beam_draw_is_without_replacement_in_proportion() -> None:
    rows, scores = 40_000, torch.tensor([2.0, 1.0, 0.5, -1.0, -torch.inf])
    drawn = choose_candidates(scores.expand(rows, 1, 5), 4, do_sample=True, generator=torch.Generator().manual_seed(0))
    assert (drawn.scores[:, 0] >= drawn.scores[:, 1]).all()
    torch.testing.assert_close(scores[drawn.codes], drawn.scores)
    p = scores.double().softmax(dim=0)
    for i, j in itertools.combinations(range(4), 2):
        chance = float(p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]))
        share = float(((drawn.codes == i).any(dim=1) & (drawn.codes == j).any(dim=1)).double().mean())
        assert share == pytest.approx(chance, abs=5 * (chance * (1 - chance) / rows) ** 0.5)


def test_beam_draw_runs_over_all_beams_of_a_row() -> None:
    scores = torch.full((1, 2, 6), -torch.inf)
    scores[0, 0, 3], scores[0, 1, 0], scores[0, 1, 2], scores[0, 1, 5] = -1.0, -0.5, -2.0, -0.1
    drawn = choose_candidates(scores, 5, do_sample=True, generator=torch.Generator().manual_seed(0))
    assert drawn.codes.tolist() == [[5, 0, 3, 2]]
    assert drawn.beams.tolist() == [[1, 1, 0, 1]]


def test_a_draw_with_too_few_live_codes_ends_no_sentence() -> None:
    stop = 2
    scores = torch.full((1, 3, 4), -torch.inf)
    scores[0, 0, :2] = torch.tensor([-1.0, -2.0])
    scores[0, 1, stop] = UNBORN
    for seed in range(50):
        drawn = choose_candidates(scores, stop, do_sample=True, generator=torch.Generator().manual_seed(seed))
        assert drawn.codes[0, :2].tolist() == [0, 1]
        assert stop not in drawn.codes
        assert not drawn.scores.isnan().any()
        state = BeamState(1, 3, stop, 10)
        state.advance(drawn)
        assert state.scores[:2].tolist() == [-1.0, -2.0]
        assert state.scores[2] <= UNBORN
        assert state.hypotheses == [[]]


def test_a_draw_prefers_codes_whose_probability_underflows_to_removed_ones() -> None:
    scores = torch.full((1, 2, 8), -torch.inf)
    scores[0, 0, 7], scores[0, 0, 3] = 0.0, -500.0  # stop is so likely that the only other code has probability 0
    drawn = choose_candidates(scores, 7, do_sample=True, generator=torch.Generator().manual_seed(0))
    assert drawn.codes[0, :2].tolist() == [7, 3]
    assert drawn.scores[0, :2].tolist() == [0.0, -500.0]


def test_dead_beams_give_way_to_live_ones() -> None:
    narrow = SamplingParams(num_beams=3, top_k=2, max_mel_tokens=6)
    for seed in range(5):
        hypotheses = run(_with_stop_bias(-1e4), narrow, seed=seed).hypotheses[0]
        assert len(hypotheses) == 3
        assert all(hypothesis.score > UNBORN for hypothesis in hypotheses)


def test_stop_beyond_the_first_beams_is_ignored() -> None:
    state = BeamState(1, 2, 9, 10)
    parents = state.advance(_candidates([-1.0, -2.0, -3.0, -4.0], [4, 9, 9, 5], [0, 0, 1, 1]))
    assert parents.tolist() == [0, 1]
    assert state.codes.tolist() == [[4], [5]]
    assert [(h.score, h.codes) for h in state.hypotheses[0]] == [(-2.0, ())]


def test_a_finished_row_waits_for_the_others() -> None:
    state = BeamState(2, 1, 9, 10)
    state.advance(_candidates([[-1.0, -3.0], [-1.0, -2.0]], [[9, 4], [5, 9]], [[0, 0], [0, 0]]))
    assert state.done == [True, False]
    parents = state.advance(_candidates([[-1.0, -3.0], [-4.0, -5.0]], [[3, 4], [6, 9]], [[0, 0], [0, 0]]))
    assert parents.tolist() == [0, 1]
    assert state.codes[1].tolist() == [5, 6]
    finished = state.finish()
    assert [row[0].codes for row in finished] == [(), (5, 6)]
    assert state.best_codes(finished).tolist() == [[9, 9, 9], [5, 6, 9]]


def test_finishing_does_not_end_the_search() -> None:
    state = BeamState(1, 2, 9, 10)
    state.advance(_candidates([-1.0, -2.0, -3.0, -4.0], [4, 5, 6, 7], [0, 0, 0, 0]))
    assert state.finish() == state.finish()
    assert state.hypotheses == [[]]


def test_candidates_that_end_every_beam_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="continue a beam"):
        BeamState(1, 2, 9, 10).advance(_candidates([-1.0, -2.0, -3.0, -4.0], [9, 9, 9, 5], [0, 1, 0, 1]))


# ------------------------------------------------------------------------------------------------------- after generation


def test_trim_cuts_each_row_at_its_stop() -> None:
    codes, lengths = trim_codes(torch.tensor([[4, 9, 5, 9], [1, 2, 3, 9], [9, 9, 9, 9]]), 9)
    assert lengths.tolist() == [1, 3, 0]
    assert codes.tolist() == [[4, 9, 9], [1, 2, 3], [9, 9, 9]]


def test_long_silence_is_shortened_run_by_run() -> None:
    rows = [[52] * 12 + [1] + [52] * 25 + [2], [52] * 30 + [3]]
    codes = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=9)
    shortened, lengths = remove_long_silence(F.pad(codes, (0, 2), value=9), 9)
    assert lengths.tolist() == [22, 31]
    assert shortened[0, :22].tolist() == [52] * 10 + [1] + [52] * 10 + [2]
    assert shortened[0, 22:].tolist() == [9] * 9
    assert shortened[1].tolist() == rows[1]


def _with_stop_bias(bias: float) -> UnifiedVoice:
    """A model that always (or never) stops."""
    model = tiny_gpt()
    with torch.no_grad():
        model.mel_head.bias[STOP] = bias
    return model


def _candidates(scores: list[object], codes: list[object], beams: list[object]) -> Candidates:
    rows = [torch.tensor(values) for values in (scores, codes, beams)]
    return Candidates(*(values if values.dim() == 2 else values[None] for values in rows))
