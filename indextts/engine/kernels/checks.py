"""Each stage's kernels against the torch code they replace, on random data of awkward sizes: the worst relative error found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from indextts.config import ConformerConfig, GPTConfig
from indextts.engine import vocoder as plain_vocoder
from indextts.engine.beam_search import UNBORN
from indextts.engine.decode import Feed
from indextts.engine.decode import feed as plain_feed
from indextts.engine.device_beams import BeamSearch
from indextts.engine.device_search import Search
from indextts.engine.precision import copy_to, inputs_inside
from indextts.engine.sampling import SamplingParams
from indextts.engine.solver_attention import packed_spans
from indextts.engine.solver_ops import SolverOps
from indextts.engine.static_cache import KVStorage, StaticCache
from indextts.models.bigvgan import Activation
from indextts.models.gpt import UnifiedVoice

# What rounding in the format explains, several times over; wrong indices or ends are far beyond.
BOUNDS = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def vocoder(device: torch.device, dtype: torch.dtype) -> float:
    """Anti-aliased activation: both memory orders, with and without lengths."""
    from indextts.engine.kernels import snake

    worst, draws = 0.0, torch.Generator().manual_seed(0)
    for batch, channels, frames in ((1, 24, 259), (2, 5, 37), (1, 3, 1)):
        activation = Activation(channels)
        for parameter in activation.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
        activation = activation.to(device)
        x = torch.randn(batch, channels, frames, generator=draws).to(device)
        for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
            for lengths in (None, torch.full((batch,), max(1, frames - 3), device=device)):
                found = snake.activate(given, activation, lengths, dtype)
                worst = max(worst, error(found, plain_vocoder.activate(given, activation, lengths, dtype)))
    return worst


def solver(device: torch.device, dtype: torch.dtype) -> float:
    """Norms, sums, rotations, gates and the step's end, of windows of longer tensors too."""
    return max(error(found, expected) for found, expected in _solver_pairs(device, dtype))


def decode(device: torch.device, dtype: torch.dtype) -> float:
    """Two steps of a small stack with one beam and with three, padded rows and forked beams among them."""
    from indextts.engine.kernels.decode import feed

    gpt = small_gpt(device, dtype)
    return max(_decoded(gpt, feed, rows, beams, heads=2) for rows, beams in ((1, 1), (2, 3)))


def _decoded(gpt: UnifiedVoice, feed: Feed, rows: int, beams: int, *, heads: int, prefix: int = 9) -> float:
    """Worst error of two steps' logits and caches."""
    device, dtype = gpt.mel_head.weight.device, gpt.mel_head.weight.dtype
    worst, draws = 0.0, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws).to(device)

    cache = StaticCache(KVStorage(device, dtype, lambda: None), 2, heads, 64, rows, beams)
    layers = [(random(rows, heads, prefix, 64).to(dtype), random(rows, heads, prefix, 64).to(dtype)) for _ in range(2)]
    mask = torch.ones(rows, prefix, dtype=torch.bool, device=device)
    mask[-1, :3] = False
    bucket = cache.begin(layers, mask, 100, 100)
    for _ in range(2):
        cache.see(bucket, torch.randint(beams, (rows, beams), generator=draws).to(device))
        x, before = random(rows, beams, 64 * heads), bucket.kv.clone()
        expected = plain_feed(gpt, x, cache, bucket)
        written = bucket.kv.clone()
        bucket.kv.copy_(before)
        worst = max(worst, error(feed(gpt, x, cache, bucket), expected), error(bucket.kv, written))
        cache.advance()
    return worst


def one_kernel(device: torch.device, dtype: torch.dtype) -> float:
    """As :func:`decode`, of a stack of the kernel's widths, with up to as many sequences as it takes."""
    from indextts.engine.kernels.decode import feed
    from indextts.engine.kernels.one_kernel import OneKernel, launcher

    gpt = small_gpt(device, dtype, model_dim=256, heads=4, number_mel_codes=150, start_mel_token=148, stop_mel_token=149)
    inputs_inside(gpt.gpt)
    run = OneKernel(gpt, *launcher(device), feed)
    return max(_decoded(gpt, run, rows, beams, heads=4) for rows, beams in ((1, 1), (1, 3), (2, 2)))


def sampler(device: torch.device, dtype: torch.dtype) -> float:
    """Codes, books and embeddings of a few steps with one beam and with three: the share of steps that differ."""
    from indextts.engine.kernels.sampler import FusedBeamSearch, FusedSearch

    gpt = small_gpt(device, dtype)
    steps, differ = 6, 0
    for rows, beams, pair in ((1, 1, (Search, FusedSearch)), (2, 3, (BeamSearch, FusedBeamSearch))):
        params = SamplingParams(num_beams=beams, top_k=12, repetition_penalty=1.5)
        traces = [searched(kind(gpt, rows, beams, device), gpt, params, steps) for kind in pair]
        differ += sum(not alike(*states) for states in zip(*traces, strict=True))
    return differ / (2 * steps)


def searched(
    search: Search, gpt: UnifiedVoice, params: SamplingParams, steps: int, *, forced: bool = False, equals: bool = False
) -> list[dict[str, Tensor]]:
    """What is known after each step on made-up logits, always the same; ``equals``: with many equals among them."""
    device, rows, beams = search.logits.device, search.rows, search.beams
    cache = StaticCache(KVStorage(device, torch.float32, lambda: None), 1, 2, 16, rows, beams)
    empty = torch.zeros(rows, 2, 3, 16, device=device)
    bucket = cache.begin([(empty, empty)], None, 100, 100)
    draws, made = torch.Generator(device).manual_seed(0), torch.Generator().manual_seed(1)

    def logits() -> Tensor:
        drawn = 3 * torch.randn(rows, beams, search.logits.shape[-1], generator=made)
        return (drawn.round() if equals else drawn).to(device)

    search.begin(logits()[:, 0], steps)
    trace = []
    for step in range(steps):
        x = search.enter(gpt, cache, bucket, params, forced, draws)
        search.logits.copy_(logits())
        cache.advance()
        own = {"x": x, "visible": bucket.visible, "seen": search.seen, "codes": search.tokens[step], "parents": search.parents[step]}
        books = {"done": search.done, "ended": search.ended}
        if isinstance(search, BeamSearch):
            own["scores"] = search.scores
            books |= {"found": search.found_score, "found_step": search.found_step, "found_beam": search.found_beam}
        trace.append({name: value.clone() for name, value in (own | books).items()})
    return trace


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two searches agree; beams that only fill up, whose score says that they were never born, may be any."""
    born = one["scores"] > UNBORN / 2 if "scores" in one else torch.ones_like(one["codes"], dtype=torch.bool)
    for name, value in one.items():
        pair = (value[born], other[name][born]) if value.shape[:2] == born.shape else (value, other[name])
        if not torch.allclose(pair[0].double(), pair[1].double(), rtol=1e-4, atol=1e-4, equal_nan=True):
            return False
    return True


def _solver_pairs(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    from indextts.engine.kernels.solver import FusedSolverOps

    fused, plain, draws = FusedSolverOps(dtype, 1e-5), SolverOps(dtype, 1e-5), torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws).to(device)

    h, y, gain, offset = random(2, 9, 96)[:, -7:], random(2, 7, 96).to(dtype), random(96), random(96)
    for shift in (None, offset):
        yield fused.norm(h, gain, shift), plain.norm(h, gain, shift)
        yield from zip(fused.add_norm(h, y, gain, shift), plain.add_norm(h, y, gain, shift), strict=True)
    for static, x in ((random(2, 9, 96), random(1, 5, 96)), (random(1, 9, 96), random(1, 9, 96))):
        yield from zip(fused.enter(static, x, gain, offset), plain.enter(static, x, gain, offset), strict=True)
    yield fused.norm(y, gain, None), plain.norm(y, gain, None)
    wide, other = torch.zeros(2, 2, 7, 192, device=device, dtype=dtype).unbind(0)
    for ops, room in ((fused, wide), (plain, other)):
        ops.add_into(h, y, room[..., :96])
        ops.add_norm(y, y, gain, None, room[..., 96:])
    yield wide, other
    for rows in (1, 2):
        turned = torch.polar(torch.ones(rows, 7, 1, 1, 16), torch.randn(rows, 7, 1, 1, 16, generator=draws)).to(device)
        qkv = random(2, 7, 3, 3, 32).to(dtype)
        yield from zip(fused.rotated(qkv, turned), plain.rotated(qkv, turned), strict=True)
    both = (3 * random(2, 7, 2 * 100)).to(dtype)
    yield fused.silu_gate(both), plain.silu_gate(both)
    yield fused.wave_gate(both), plain.wave_gate(both)
    taps = torch.randint(14, (70,), generator=draws).to(device)
    for rows in (1, 2):
        part = random(rows, 7, 200)[..., 100:]
        yield from zip(fused.take(both[..., :100], part, taps), plain.take(both[..., :100], part, taps), strict=True)
        for g in (None, torch.full((), 0.7, device=device))[: 3 - rows]:
            yield tuple(ops.last_norm(both[..., 100:], both[..., :100], part, g, 1e-6) for ops in (fused, plain))  # type: ignore[misc]
    held = (torch.arange(7, device=device) < 3)[None, :, None]
    for v, g in ((random(1, 7, 80), None), (random(2, 7, 80), torch.full((), 0.7, device=device))):
        states = random(1, 1, 7, 80).repeat(2, 1, 1, 1).unbind(0)
        for ops, x in zip((fused, plain), states, strict=True):
            ops.advance(x, v, torch.full((), 0.1, device=device), held, g)
        yield states[0], states[1]
    if dtype != torch.float32:  # whose padding is masked
        shifts, lengths, slots = torch.tensor([2, 0], device=device), torch.tensor([71, 150], device=device), 150
        place = torch.arange(slots, device=device)
        frames = (place >= shifts[:, None]) & (place < (shifts + lengths)[:, None])
        mask = torch.zeros(2, 1, 1, slots, device=device, dtype=dtype).masked_fill(~frames[:, None, None], -torch.inf)
        qkv = random(2, slots, 3, 3, 32).to(dtype)
        for rows, window in ((1, slots), (2, 90)):
            turned = torch.polar(torch.ones(rows, slots, 1, 1, 16), torch.randn(rows, slots, 1, 1, 16, generator=draws)).to(device)
            spans, real = packed_spans(shifts, lengths, slots, window), frames[:, -window:]
            yield fused.attention(qkv, turned, window, None, spans)[real], plain.attention(qkv, turned, window, mask, None)[real]
            q, k, v = qkv[:, -window:, 0], qkv[:, :, 1], qkv[:, :, 2]
            yield fused.attend(q, k, v, None, spans)[real], plain.attend(q, k, v, mask, None)[real]


def small_gpt(device: torch.device, dtype: torch.dtype, **sizes: Any) -> UnifiedVoice:
    """A model of two layers with the same random weights every time; ``sizes`` replaces fields of its configuration."""
    conditioner = ConformerConfig(output_size=16, linear_units=24, attention_heads=2, num_blocks=1)
    config = GPTConfig(
        model_dim=128, layers=2, heads=2, max_mel_tokens=20, max_text_tokens=8, number_text_tokens=10, number_mel_codes=50,
        start_mel_token=48, stop_mel_token=49, condition_module=conditioner, emo_condition_module=conditioner, feature_dim=10,
        condition_num_latent=2, emo_latent_dim=16, perceiver_dim_head=8,
    )  # fmt: skip
    torch_state = torch.get_rng_state()  # initial weights are drawn from the global generator, whose user is somebody else
    try:
        torch.manual_seed(0)
        return copy_to(UnifiedVoice(replace(config, **sizes)).eval(), device, dtype)
    finally:
        torch.set_rng_state(torch_state)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error of a tensor; infinite if any of its numbers is not finite."""
    away = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
    return float(away) if bool(torch.isfinite(away)) else float("inf")
