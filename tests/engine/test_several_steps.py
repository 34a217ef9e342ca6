"""Several decode steps in one graph: if these fail, a voice depends on how its steps were grouped, or random numbers are drawn twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from indextts.engine.decode import StaticDecoder
from indextts.engine.sampling import SamplingParams
from indextts.engine.step_graphs import DrawsAfter, StepGraphs, always, even_advances
from indextts.models.gpt import UnifiedVoice
from tests.engine.test_decode import ALL, CPU, STOP, TEXTS, PretendedGraphs, check, decoder_of, prompt
from tests.engine.test_decode import narrow_buckets as narrow_buckets  # noqa: PLC0414  (a fixture)
from tests.tiny_gpt import tiny_gpt


@pytest.fixture(scope="module")
def model() -> UnifiedVoice:
    return tiny_gpt()


def grouping(model: UnifiedVoice, steps: int, *, several: bool = True, even: bool = True) -> StaticDecoder:
    decoder = decoder_of(model, pretend=True)
    decoder.poll_every, decoder.ask_ahead, decoder.several = steps, 1, several
    assert isinstance(decoder._graphs, PretendedGraphs)
    decoder._graphs.even = even
    return decoder


def sizes(decoder: StaticDecoder) -> set[int]:
    """Steps of the graphs that were replayed."""
    return {key[-1] for key in decoder._graphs.replays()}  # type: ignore[index]


# ------------------------------------------------------------------------------------------------------------ same results


@ALL
@pytest.mark.parametrize("steps", [2, 4])
def test_limits_that_groups_do_not_divide(model: UnifiedVoice, kind: dict[str, Any], steps: int) -> None:
    decoder = grouping(model, steps)
    for limit in (1, 3, 4, 5, 6, 7, 20):
        check(decoder, SamplingParams(**kind, max_mel_tokens=limit), seed=limit)
        check(decoder, SamplingParams(**kind), TEXTS[:1], seed=limit, forced_codes=limit)
    assert sizes(decoder) == {1, steps}


@ALL
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.usefixtures("narrow_buckets")
def test_groups_end_where_a_bucket_does(model: UnifiedVoice, kind: dict[str, Any], even: bool) -> None:
    decoder = grouping(model, 4, even=even)
    for seed in range(3):
        check(decoder, SamplingParams(**kind), seed=seed, forced_codes=21)
        check(decoder, SamplingParams(**kind, max_mel_tokens=26), TEXTS[:1], seed=seed)
    assert sizes(decoder) == ({1, 4} if even else {1})
    assert len(decoder.buckets) > 4
    for key, count in decoder._graphs.replays().items():
        assert count
        rows, beams, keys, several = (key[i] for i in (0, 1, 2, -1))  # type: ignore[index]
        assert (rows, beams, keys) in {(bucket.rows, bucket.beams, bucket.keys) for bucket in decoder.buckets}
        assert several in (1, 4)


@ALL
def test_an_end_at_every_place_of_a_group(kind: dict[str, Any]) -> None:
    """Codes, and the generator after them: steps of the group that follow the end take their random numbers back."""
    model = tiny_gpt()
    with torch.no_grad():
        model.mel_head.bias[STOP] += 2.0
    decoder, ends = grouping(model, 4), set()
    for seed in range(24):
        steps: list[int] = []
        check(decoder, SamplingParams(max_mel_tokens=20, **kind), TEXTS[:1], seed=seed, on_step=steps.append)
        ends.add(max(steps) % 4)
    assert sizes(decoder) >= {4}
    if kind.get("do_sample", True):
        assert len(ends) > 2


@pytest.mark.parametrize("beams", [1, 2])
def test_a_generator_for_each_row(model: UnifiedVoice, beams: int) -> None:
    found, after = [], []
    for decoder in (decoder_of(model), grouping(model, 4), grouping(model, 4, several=False)):
        for limit in (6, 20):
            draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
            codes = decoder.generate(*prompt(model, TEXTS), SamplingParams(num_beams=beams, max_mel_tokens=limit), generator=draws).codes
            found.append(codes.tolist())
            after.append([generator.get_state().tolist() for generator in draws])
    assert found[:2] == found[2:4] == found[4:]
    assert after[:2] == after[2:4] == after[4:]


@ALL
def test_groups_need_no_graphs(model: UnifiedVoice, kind: dict[str, Any]) -> None:
    decoder = decoder_of(model)
    decoder.poll_every, decoder.ask_ahead = 4, 1
    for limit in (1, 5, 20):
        check(decoder, SamplingParams(**kind, max_mel_tokens=limit), seed=limit)


def test_a_capture_that_fails_in_the_middle_of_a_generation(model: UnifiedVoice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is made, the single steps that the limit leaves cannot be captured."""
    capture = PretendedGraphs._capture

    def fail(self: PretendedGraphs, step: Callable[[], None], state: Any, generators: Any, count: int) -> Any:
        if count == 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture(self, step, state, generators, count)

    monkeypatch.setattr(PretendedGraphs, "_capture", fail)
    decoder = grouping(model, 4)
    check(decoder, SamplingParams(), forced_codes=11)
    assert not decoder.use_graphs
    check(decoder, SamplingParams(), forced_codes=11)


def test_groups_are_fewer_replays_of_as_many_steps(model: UnifiedVoice) -> None:
    replays, made = [], []
    for several in (True, False):
        decoder = grouping(model, 4, several=several)
        check(decoder, SamplingParams(), forced_codes=20)
        (bucket,) = decoder.buckets
        assert bucket.captured == 1
        made.append(bucket.replays)
        replays.append(sum(decoder._graphs.replays().values()))
    assert made == [20, 20]
    assert replays == [5, 20]


# ------------------------------------------------------------------------------------------------------------ bookkeeping


class Counting:
    """As a CUDA generator, whose state is an offset."""

    def __init__(self) -> None:
        self.offset = 100

    def get_offset(self) -> int:
        return self.offset

    def get_state(self) -> int:
        return self.offset

    def set_state(self, state: int) -> None:
        self.offset = state


@pytest.mark.parametrize(
    ("draws", "expected"),
    [([4, 4, 4, 4], [4, 0]), ([0, 0, 0, 0], [0, 0]), ([4, 4, 8, 4], None), ([4, 4, 4, 0], None)],
)
def test_whether_steps_draw_evenly_is_tried_and_undone(draws: list[int], expected: list[int] | None) -> None:
    generators: Any = [Counting(), Counting()]
    state, todo = torch.zeros(3), list(draws)

    def step() -> None:
        state.add_(1)
        generators[0].offset += todo.pop(0)

    assert even_advances(step, [state], generators, 4) == expected
    assert not state.any()
    assert not todo
    assert [generator.offset for generator in generators] == [100, 100]


def test_steps_that_draw_unevenly_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(StepGraphs, "_capture", lambda *given: tried.append(given[-1]))
    graphs = StepGraphs(CPU)
    for _ in range(2):
        assert graphs.run("key", lambda: None, [], [torch.Generator()], 4) is None
    assert tried == [4]
    graphs.clear()
    assert graphs.run("key", lambda: None, [], [torch.Generator()], 4) is None
    assert tried == [4, 4]


def test_the_state_after_each_step() -> None:
    draws = DrawsAfter()
    draws.note(4, lambda steps: torch.tensor(steps))
    draws.note(1, always(torch.tensor(50)))
    draws.note(4, lambda steps: torch.tensor(10 * steps))
    assert draws.steps == 9
    assert [int(draws.at(step)) for step in range(1, 10)] == [1, 2, 3, 4, 50, 10, 20, 30, 40]
