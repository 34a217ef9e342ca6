"""If these fail, the fast decoder speaks differently from the plain one: other codes from a seed, or codes of an earlier request."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from indextts.engine import static_cache
from indextts.engine.decode import StaticDecoder, decode_step
from indextts.engine.generate import GeneratedCodes, generate
from indextts.engine.sampling import SamplingParams
from indextts.engine.step_graphs import StateAfter, StepGraphs
from indextts.models.gpt import UnifiedVoice
from tests.parity_kinds.common import Golden
from tests.parity_kinds.gpt import load_model
from tests.parity_kinds.sampling import Prompts, params_of
from tests.tiny_gpt import CONFIG, tiny_conditioning, tiny_gpt

CPU = torch.device("cpu")
STOP = CONFIG.stop_mel_token
TEXTS = [[7, 3, 9, 12, 5], [15, 2, 1, 1, 1], [4, 18, 6, 1, 1]]  # 1 is the stop of text: shorter texts are padded on the left
KINDS: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 1, "do_sample": False},
    {"num_beams": 3, "do_sample": False},
]
ALL = pytest.mark.parametrize("kind", KINDS, ids=["sampled", "sampled beams", "greedy", "beams"])


class PretendedGraphs(StepGraphs):
    """Records the step's function instead of its kernels: like a graph, it goes on using the buffers it was captured with."""

    even = True

    def _capture(self, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator], count: int) -> Any:
        self._warm_up(step, state, generators)
        if count > 1 and not self.even:
            return None
        states: list[Tensor] = []

        def replay() -> None:
            states.clear()
            for _ in range(count):
                step()
                states.append(generators[0].get_state())

        return types.SimpleNamespace(graph=types.SimpleNamespace(replay=replay), memory_mb=1.0, replays=0, states=states)

    def _between(self, entry: Any, before: Tensor) -> StateAfter:
        states = list(entry.states)
        return lambda steps: states[steps - 1]

    def _finish_work(self) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> UnifiedVoice:
    return tiny_gpt()


@pytest.fixture
def narrow_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_cache, "KEYS_PER_BEAM", 6)


def decoder_of(model: UnifiedVoice, *, pretend: bool = False) -> StaticDecoder:
    decoder = StaticDecoder(model, CPU, use_graphs=False)
    if pretend:
        decoder.use_graphs, decoder._graphs = True, PretendedGraphs(CPU, warmup_steps=2)
    return decoder


def prompt(model: UnifiedVoice, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    return model.prefix(tiny_conditioning(model), torch.tensor(texts))


def check(decoder: StaticDecoder, params: SamplingParams, texts: list[list[int]] = TEXTS, seed: int = 0, **more: Any) -> GeneratedCodes:
    """Generate with both; codes, hypotheses and the generator's state afterwards must be equal. Returns the plain result."""
    plain, fast = (torch.Generator().manual_seed(seed) for _ in range(2))
    prefix, mask = prompt(decoder.gpt, texts)
    expected = generate(decoder.gpt, prefix, mask, params, generator=plain, **more)
    found = decoder.generate(prefix, mask, params, generator=fast, **more)
    assert found.codes.tolist() == expected.codes.tolist()
    assert found.lengths.tolist() == expected.lengths.tolist()
    assert found.hit_limit.tolist() == expected.hit_limit.tolist()
    assert torch.equal(plain.get_state(), fast.get_state())
    assert [[h.codes for h in row] for row in found.hypotheses] == [[h.codes for h in row] for row in expected.hypotheses]
    for row, oracle in zip(found.hypotheses, expected.hypotheses, strict=True):
        assert [h.score for h in row] == pytest.approx([h.score for h in oracle], rel=1e-4)
    return expected


# ------------------------------------------------------------------------------------------------------------ same results


@ALL
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"top_k": 0},
        {"top_k": 2},
        {"top_p": 0.0},
        {"top_p": 1.0},
        {"repetition_penalty": 1.0},
        {"temperature": 1.5, "repetition_penalty": 1.0, "top_k": 0, "top_p": 1.0},
        {"typical_sampling": True, "repetition_penalty": 2.0},
        {"length_penalty": 1.0},
        {"length_penalty": -1.0, "early_stopping": True},
        {"length_penalty": 1.5, "early_stopping": "never"},
        {"max_mel_tokens": 1},
        {"max_mel_tokens": 3},
    ],
    ids=str,
)
def test_the_plain_decoder_is_reproduced(model: UnifiedVoice, kind: dict[str, Any], arguments: dict[str, Any]) -> None:
    decoder = decoder_of(model)
    params = SamplingParams(**({"max_mel_tokens": 20} | kind | arguments))
    for seed in range(2 if params.do_sample else 1):
        check(decoder, params, seed=seed)
    check(decoder, params, TEXTS[:1], seed=7)


def test_two_and_five_beams(model: UnifiedVoice) -> None:
    decoder = decoder_of(model)
    for beams in (2, 5):
        for seed in range(2):
            check(decoder, SamplingParams(num_beams=beams, max_mel_tokens=20, length_penalty=0.5), seed=seed)


@ALL
def test_stop_at_once_and_forced_length(kind: dict[str, Any]) -> None:
    eager_to_stop = tiny_gpt()
    with torch.no_grad():
        eager_to_stop.mel_head.bias[STOP] = 1e4
    decoder = decoder_of(eager_to_stop)
    assert check(decoder, SamplingParams(**kind, max_mel_tokens=20)).lengths.tolist() == [0, 0, 0]
    assert check(decoder, SamplingParams(**kind), forced_codes=eager_to_stop.max_codes).lengths.tolist() == [eager_to_stop.max_codes] * 3


def test_without_a_generator_the_global_seed_counts(model: UnifiedVoice) -> None:
    prefix, params = prompt(model, TEXTS), SamplingParams(max_mel_tokens=20)
    torch.manual_seed(4)
    expected, drawn_after = generate(model, *prefix, params), torch.rand(1)
    torch.manual_seed(4)
    assert torch.equal(decoder_of(model).generate(*prefix, params).codes, expected.codes)
    assert torch.equal(torch.rand(1), drawn_after)


@functools.cache
def golden() -> Golden:
    return Golden(Path(__file__).parents[1] / "golden" / "sampling.json")


@functools.cache
def recorded_model() -> UnifiedVoice:
    return load_model(golden())


@pytest.mark.parametrize("name", golden().spec["generate"])
def test_recorded_generations(name: str) -> None:
    recorded = golden()
    spec, model = recorded.spec["generate"][name], recorded_model()
    result = decoder_of(model).generate(*Prompts(recorded, model).named(spec["prompt"]), params_of(spec))
    assert torch.equal(result.codes, recorded[f"out.gen.{name}"])
    if "hypotheses" in spec:
        assert [[list(h.codes) for h in row] for row in result.hypotheses] == [[codes for _, codes in row] for row in spec["hypotheses"]]
        assert result.scores == pytest.approx(spec["sequence_scores"], abs=1e-3)


@pytest.mark.parametrize("name", golden().spec["beam_sample"])
def test_recorded_beam_sampling(name: str) -> None:
    recorded = golden()
    spec, model = recorded.spec["beam_sample"][name], recorded_model()
    params = params_of(spec)
    prefix, mask = Prompts(recorded, model).matching(spec, recorded[f"out.trace.{name}.logits"][0], params.num_beams)
    result = decoder_of(model).generate(prefix, mask, params, generator=torch.Generator().manual_seed(spec["torch_manual_seed"]))
    assert torch.equal(result.codes, recorded[f"out.trace.{name}.codes"])
    assert [[list(h.codes) for h in row] for row in result.hypotheses] == [[codes for _, codes in row] for row in spec["hypotheses_final"]]


# ------------------------------------------------------------------------------------------------------ buffers and graphs


@ALL
@pytest.mark.parametrize("pretend", [False, True], ids=["eager", "replayed"])
@pytest.mark.usefixtures("narrow_buckets")
def test_the_cache_grows_while_generating(model: UnifiedVoice, kind: dict[str, Any], pretend: bool) -> None:
    decoder = decoder_of(model, pretend=pretend)
    for _ in range(2):
        check(decoder, SamplingParams(**kind), forced_codes=20)
        check(decoder, SamplingParams(**kind), TEXTS[:1], forced_codes=28)  # another number of rows, in the same storage
    assert len([bucket for bucket in decoder.buckets if bucket.rows == 1]) >= 3
    assert all((bucket.captured, bucket.replays > 0) == ((1, True) if pretend else (0, False)) for bucket in decoder.buckets)


@ALL
@pytest.mark.parametrize("pretend", [False, True], ids=["eager", "replayed"])
def test_steps_past_the_end_leave_no_trace(model: UnifiedVoice, kind: dict[str, Any], pretend: bool) -> None:
    decoder = decoder_of(model, pretend=pretend)
    decoder.poll_every, decoder.ask_ahead = 7, 1
    for seed in range(4):
        steps: list[int] = []
        expected = check(decoder, SamplingParams(max_mel_tokens=25, **kind), seed=seed, on_step=steps.append)
        half = len(steps) // 2
        assert steps[:half] == steps[half:] == list(range(1, half + 1))
        assert half >= expected.codes.shape[1] - (0 if kind["num_beams"] == 1 else 1)


def test_nothing_of_an_earlier_request_remains(model: UnifiedVoice) -> None:
    decoder = decoder_of(model, pretend=True)
    check(decoder, SamplingParams(max_mel_tokens=20))
    decoder._storage.block.fill_(torch.nan)
    check(decoder, SamplingParams(max_mel_tokens=20), seed=1)
    check(decoder, SamplingParams(max_mel_tokens=20, temperature=1.3), seed=1)
    with torch.inference_mode():
        check(decoder, SamplingParams(max_mel_tokens=20), seed=2)
    check(decoder, SamplingParams(max_mel_tokens=20), seed=3)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["rows", "one row"])
@pytest.mark.parametrize("beams", [1, 2])
def test_codes_stay_as_they_are_while_the_next_ones_are_made(model: UnifiedVoice, beams: int, texts: list[list[int]]) -> None:
    decoder, params = decoder_of(model), SamplingParams(max_mel_tokens=12, num_beams=beams)
    found = [decoder.generate(*prompt(model, texts), params, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    again = decoder.generate(*prompt(model, texts), params, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found[0].codes, again.codes)
    assert not torch.equal(found[0].codes, found[1].codes)


def test_one_capture_serves_all_limits_and_seeds(model: UnifiedVoice) -> None:
    decoder = decoder_of(model, pretend=True)
    for seed, limit in enumerate((5, 20, 9)):
        check(decoder, SamplingParams(max_mel_tokens=limit, length_penalty=1.0, early_stopping="never"), seed=seed)
    (bucket,) = decoder.buckets
    assert (bucket.rows, bucket.beams, bucket.captured) == (3, 3, 1)
    check(decoder, SamplingParams(max_mel_tokens=9, top_p=0.5, length_penalty=1.0, early_stopping="never"))
    assert decoder.buckets[0].captured == 2


def test_a_failed_capture_costs_speed_only(model: UnifiedVoice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(
        self: StepGraphs, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator], count: int
    ) -> None:
        self._warm_up(step, state, generators)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(PretendedGraphs, "_capture", fail)
    decoder = decoder_of(model, pretend=True)
    with caplog.at_level(logging.WARNING):
        check(decoder, SamplingParams(max_mel_tokens=20))
        check(decoder, SamplingParams(max_mel_tokens=20), seed=1)
    assert not decoder.use_graphs
    assert len(caplog.records) == 1


def test_memory_is_counted_and_returned(model: UnifiedVoice) -> None:
    decoder = decoder_of(model, pretend=True)
    assert decoder.memory_mb == 0
    check(decoder, SamplingParams(max_mel_tokens=20))
    held = 2 * CONFIG.layers * 3 * CONFIG.model_dim * decoder.buckets[0].keys * 4
    assert decoder.memory_mb > held / 2**20 + 1.0
    decoder.clear()
    assert decoder.memory_mb == 0
    assert decoder.buckets == []
    check(decoder, SamplingParams(max_mel_tokens=20))


@ALL
def test_an_exception_in_on_step_cancels(model: UnifiedVoice, kind: dict[str, Any]) -> None:
    decoder = decoder_of(model)
    steps: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder.generate(*prompt(model, TEXTS), SamplingParams(max_mel_tokens=20, **kind), on_step=on_step, forced_codes=20)
    assert steps == [1, 2, 3]
    check(decoder, SamplingParams(max_mel_tokens=20, **kind))


def test_more_codes_than_positions_are_refused(model: UnifiedVoice) -> None:
    with pytest.raises(ValueError, match=rf"max_mel_tokens is {model.max_codes + 1}"):
        decoder_of(model).generate(*prompt(model, TEXTS), SamplingParams(max_mel_tokens=model.max_codes + 1))


class NothingLeavesTheDevice(TorchDispatchMode):
    """Fails on what would make the host wait for the device, or could not be captured."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_pin_memory")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} in a decode step"
        if name == "lift_fresh":  # a list from the host; a lone number is a kernel's argument
            assert args[0].dim() == 0, "a copy from the host in a decode step"
        if name in {"index", "index_put", "index_put_"}:
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{name} with a mask in a decode step"
        return func(*args, **(kwargs or {}))


@ALL
@pytest.mark.parametrize(
    "arguments", [{}, {"top_k": 0}, {"typical_sampling": True}, {"early_stopping": "never", "length_penalty": 1.0}], ids=str
)
@pytest.mark.parametrize("forced", [False, True])
def test_a_step_never_waits_for_the_device(model: UnifiedVoice, kind: dict[str, Any], arguments: dict[str, Any], forced: bool) -> None:
    decoder, params = decoder_of(model), SamplingParams(**kind, **arguments)
    decoder.generate(*prompt(model, TEXTS), params, forced_codes=2)
    session = decoder._sessions[3, params.num_beams]
    bucket = session.cache.bucket(decoder.buckets[0].keys, 0)
    with torch.no_grad(), NothingLeavesTheDevice():
        decode_step(model, session.search, session.cache, bucket, params, forced, torch.Generator())
    with pytest.raises(AssertionError, match="in a decode step"), NothingLeavesTheDevice():
        session.search.ask_end()()
