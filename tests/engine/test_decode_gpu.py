"""On a GPU: a captured step is the step, bit for bit, random numbers included, and its memory comes back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from indextts.engine import static_cache, step_graphs
from indextts.engine.decode import StaticDecoder
from indextts.engine.generate import GeneratedCodes, generate
from indextts.engine.precision import copy_to
from indextts.engine.sampling import SamplingParams
from indextts.models.gpt import UnifiedVoice
from tests.engine.test_decode import ALL, TEXTS
from tests.tiny_gpt import tiny_conditioning, tiny_gpt

pytestmark = pytest.mark.gpu
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])


@pytest.fixture(autouse=True)
def true_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(dtype: torch.dtype = torch.float32) -> UnifiedVoice:
    return copy_to(tiny_gpt(max_mel_tokens=90), torch.device("cuda", 0), dtype)


def decoder_of(model: UnifiedVoice, dtype: torch.dtype = torch.float32, *, graphs: bool) -> StaticDecoder:
    return StaticDecoder(model, torch.device("cuda", 0), dtype, use_graphs=graphs)


def run(
    decode: Any, model: UnifiedVoice, params: SamplingParams, seed: int, texts: list[list[int]] = TEXTS, **more: Any
) -> tuple[GeneratedCodes, torch.Generator]:
    """The result, and the generator after it."""
    random = torch.Generator("cuda").manual_seed(seed)
    prefix, mask = model.prefix(tiny_conditioning(tiny_gpt()).cuda(), torch.tensor(texts, device="cuda"))
    return decode(prefix, mask, params, generator=random, **more), random


def assert_same(a: tuple[GeneratedCodes, torch.Generator], b: tuple[GeneratedCodes, torch.Generator]) -> None:
    """Equal codes and draws; scores up to rounding, since a captured prefill pads the prefix and so sums in another order."""
    assert a[0].codes.tolist() == b[0].codes.tolist()
    for ours, theirs in zip(a[0].hypotheses or [], b[0].hypotheses or [], strict=True):
        assert [h.codes for h in ours] == [h.codes for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], rel=1e-3)
    assert torch.equal(a[1].get_state(), b[1].get_state())


@ALL
@PRECISIONS
@pytest.mark.parametrize(
    "arguments", [{}, {"top_k": 0}, {"typical_sampling": True}, {"length_penalty": 1.0, "early_stopping": "never"}], ids=str
)
def test_graphs_equal_eager_steps(kind: dict[str, Any], dtype: torch.dtype, arguments: dict[str, Any]) -> None:
    model = on_gpu(dtype)
    eager, graphed = decoder_of(model, dtype, graphs=False), decoder_of(model, dtype, graphs=True)
    params = SamplingParams(max_mel_tokens=60, **kind, **arguments)
    for seed in range(4):
        assert_same(run(graphed.generate, model, params, seed), run(eager.generate, model, params, seed))
    assert graphed.use_graphs
    assert sum(bucket.captured for bucket in graphed.buckets) == 1


@ALL
def test_the_same_seed_gives_the_codes_of_the_plain_path(kind: dict[str, Any]) -> None:
    model = on_gpu()
    decoder = decoder_of(model, graphs=True)
    params = SamplingParams(max_mel_tokens=60, **kind)
    for seed in range(8):
        plain, random = run(lambda *a, **k: generate(model, *a, **k), model, params, seed)
        found, after = run(decoder.generate, model, params, seed)
        assert found.codes.tolist() == plain.codes.tolist()
        assert [[h.codes for h in row] for row in found.hypotheses] == [[h.codes for h in row] for row in plain.hypotheses]
        assert torch.equal(random.get_state(), after.get_state())


@ALL
def test_graphs_follow_the_cache_as_it_grows(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_cache, "KEYS_PER_BEAM", 16)
    model = on_gpu()
    eager, graphed = decoder_of(model, graphs=False), decoder_of(model, graphs=True)
    params = SamplingParams(**kind)
    for seed, (texts, count) in enumerate([(TEXTS, 20), (TEXTS[:1], 85), (TEXTS, 50), (TEXTS[:1], 85)]):
        assert_same(
            run(graphed.generate, model, params, seed, texts, forced_codes=count),
            run(eager.generate, model, params, seed, texts, forced_codes=count),
        )
    assert graphed.use_graphs
    assert len(graphed.buckets) > 4


def test_the_global_generator_draws_for_graphs_too() -> None:
    model = on_gpu()
    prefix, mask = model.prefix(tiny_conditioning(tiny_gpt()).cuda(), torch.tensor(TEXTS, device="cuda"))
    found = []
    for decode in (decoder_of(model, graphs=True).generate, decoder_of(model, graphs=False).generate):
        torch.cuda.manual_seed(5)
        found.append((decode(prefix, mask, SamplingParams(max_mel_tokens=30)).codes.tolist(), torch.rand(1, device="cuda").item()))
    assert found[0] == found[1]


def test_requests_between_which_the_attention_inputs_change() -> None:
    """Prompts of other lengths and limits replay the same graph and leave nothing behind."""
    model = on_gpu()
    eager, graphed = decoder_of(model, graphs=False), decoder_of(model, graphs=True)
    for seed, texts in enumerate([TEXTS[:1], [[5]], [[7, 8, 9, 10, 11, 12]], TEXTS[:1]]):
        params = SamplingParams(max_mel_tokens=20 + seed)
        assert_same(run(graphed.generate, model, params, seed, texts), run(eager.generate, model, params, seed, texts))
    (bucket,) = graphed.buckets
    assert bucket.captured == 1


def test_latents_from_the_prefix() -> None:
    model, decoder = on_gpu(), decoder_of(on_gpu(), graphs=True)
    conditioning, text = tiny_conditioning(tiny_gpt()).cuda(), torch.tensor(TEXTS[:1], device="cuda")
    codes = torch.randint(20, (1, 30), device="cuda")
    with torch.inference_mode():
        state = decoder.prefill(*model.prefix(conditioning, text))
        torch.testing.assert_close(decoder.latents(state, codes), model.latents(conditioning, text, None, codes, None), rtol=0, atol=2e-5)


@ALL
@PRECISIONS
def test_steps_in_groups_equal_single_steps(kind: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, the generator too, wherever the end or the limit lies in a group and wherever the cache grows."""
    monkeypatch.setattr(static_cache, "KEYS_PER_BEAM", 16)
    model = on_gpu(dtype)
    single, grouped = decoder_of(model, dtype, graphs=True), decoder_of(model, dtype, graphs=True)
    single.several = False
    for seed in range(3):
        for limit in (1, 4, 7, 30, 81):
            params = SamplingParams(max_mel_tokens=limit, **kind)
            for more in ({}, {"forced_codes": limit}):
                a, b = (run(decoder.generate, model, params, seed, **more) for decoder in (grouped, single))
                assert a[0].codes.tolist() == b[0].codes.tolist()
                assert a[0].hypotheses == b[0].hypotheses
                assert torch.equal(a[1].get_state(), b[1].get_state())
    assert grouped.use_graphs
    assert not grouped._graphs._uneven
    assert {key[-1] for key in grouped._graphs.replays()} == {1, 4}
    assert {key[-1] for key in single._graphs.replays()} == {1}


@pytest.mark.parametrize("beams", [1, 3])
def test_groups_with_a_generator_for_each_row(beams: int) -> None:
    model = on_gpu()
    prefix, mask = model.prefix(tiny_conditioning(tiny_gpt()).cuda(), torch.tensor(TEXTS, device="cuda"))
    found = []
    for graphs, several in ((False, False), (True, False), (True, True)):
        decoder = decoder_of(model, graphs=graphs)
        decoder.several = several
        draws = [torch.Generator("cuda").manual_seed(seed) for seed in range(len(TEXTS))]
        found.append([
            decoder.generate(prefix, mask, SamplingParams(num_beams=beams, max_mel_tokens=limit), generator=draws).codes.tolist()
            for limit in (6, 40)
        ])  # fmt: skip
    assert found[0] == found[1] == found[2]


def test_states_between_the_steps_of_a_graph() -> None:
    generator = torch.Generator("cuda").manual_seed(3)
    before, states = generator.get_state(), []
    for _ in range(3):
        torch.empty(50, device="cuda").exponential_(generator=generator)
        states.append(generator.get_state())
    advance = generator.get_offset() // 3
    assert all(torch.equal(step_graphs.advanced(before, k * advance, generator.device), state) for k, state in enumerate(states, 1))


def test_clear_returns_all_memory() -> None:
    model = on_gpu()
    run(decoder_of(model, graphs=True).generate, model, SamplingParams(max_mel_tokens=60), 0)  # what the libraries keep for themselves
    gc.collect()
    torch.cuda.empty_cache()
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    decoder = decoder_of(model, graphs=True)
    run(decoder.generate, model, SamplingParams(max_mel_tokens=60), 0)
    assert decoder.memory_mb > 0
    assert torch.cuda.memory_allocated() > allocated
    decoder.clear()
    gc.collect()
    torch.cuda.empty_cache()
    assert decoder.memory_mb == 0
    assert torch.cuda.memory_allocated() <= allocated
    assert torch.cuda.memory_reserved() <= reserved
    run(decoder.generate, model, SamplingParams(max_mel_tokens=60), 0)
