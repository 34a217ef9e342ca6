"""The kernel of a whole decode step, run on the CPU: every CUDA thread is a fiber of ``fibers.h``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from indextts.engine.decode import feed as plain_feed
from indextts.engine.kernels import checks, one_kernel
from indextts.engine.kernels.one_kernel import Launch, Layout, OneKernel
from indextts.engine.precision import inputs_inside
from indextts.engine.static_cache import KVStorage, StaticCache
from indextts.models.gpt import UnifiedVoice
from tests.engine.on_fibers import runner

GPT = {"model_dim": 256, "heads": 4, "number_mel_codes": 150, "start_mel_token": 148, "stop_mel_token": 149}
BLOCKS = 20  # 16 of them are used


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs the kernel on the CPU."""
    run = runner(tmp_path_factory.mktemp("one_kernel"), "one_kernel.cu", "decode_step", "Step")
    return lambda defines, step: run(defines, step, defines["GRID"], defines["WIDTH"] // 4 + 32, one_kernel.shared_bytes(defines))


def never(*_: object) -> Tensor:
    raise AssertionError("the kernel is made for this")


def model(dtype: torch.dtype, **sizes: int) -> UnifiedVoice:
    gpt = checks.small_gpt(torch.device("cpu"), dtype, **{**GPT, **sizes})
    inputs_inside(gpt.gpt)
    return gpt


def steps(gpt: UnifiedVoice, feed: Callable[..., Tensor], rows: int, beams: int, *, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Logits found and expected of some steps, and the cache after each, beams forking and one row with a padded prefix."""
    dtype, draws, prefix, found = gpt.gpt.h[0].attn.c_attn.weight.dtype, torch.Generator().manual_seed(0), 37, []
    cache = StaticCache(KVStorage(torch.device("cpu"), dtype, lambda: None), 2, 4, 64, rows, beams)
    keys, values = torch.randn(2, rows, 4, prefix, 64, generator=draws).to(dtype)
    layers = [(keys, values), (values, keys)]
    mask = torch.ones(rows, prefix, dtype=torch.bool)
    mask[-1, :3] = False
    bucket = cache.begin(layers, mask, 100, 100)
    for _ in range(count):
        cache.see(bucket, torch.randint(beams, (rows, beams), generator=draws))
        x, before = torch.randn(rows, beams, 256, generator=draws), bucket.kv.clone()
        expected = plain_feed(gpt, x, cache, bucket)
        written = bucket.kv.clone()
        bucket.kv.copy_(before)
        found += [(feed(gpt, x, cache, bucket), expected), (bucket.kv.clone(), written)]
        cache.advance()
    return found


@pytest.mark.parametrize(("dtype", "rows", "beams"), [(torch.bfloat16, 1, 3), (torch.float16, 2, 4)])
def test_equals_the_plain_step(launch: Launch, dtype: torch.dtype, rows: int, beams: int) -> None:
    gpt = model(dtype)
    for found, expected in steps(gpt, OneKernel(gpt, launch, BLOCKS, never, Layout(ring=3, part=8)), rows, beams):
        assert checks.error(found, expected) < checks.BOUNDS[dtype] / 3


def test_equals_it_however_the_work_is_cut_and_notes_the_clock(launch: Launch) -> None:
    gpt = model(torch.bfloat16, number_mel_codes=1500)  # sums of the head take more room than any other's
    made = OneKernel(gpt, launch, BLOCKS, never, Layout(ring=11, flight=2, foresee=3, part=1000))
    made.trace = torch.zeros(2, one_kernel.PHASES, dtype=torch.int32)
    for found, expected in steps(gpt, made, 1, 1, count=2):
        assert checks.error(found, expected) < checks.BOUNDS[torch.bfloat16] / 3
    assert made.trace.flatten().diff().min() > 0


def test_many_sequences_take_the_other_kernels(launch: Launch) -> None:
    gpt, calls = model(torch.bfloat16), []

    def otherwise(*given: object) -> Tensor:
        calls.append(given)
        return plain_feed(*given)

    for rows, beams in ((9, 1), (1, 5)):
        steps(gpt, OneKernel(gpt, launch, BLOCKS, otherwise), rows, beams, count=1)
    assert len(calls) == 2


def test_says_what_it_is_not_made_for(launch: Launch) -> None:
    wide = checks.small_gpt(torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ValueError, match="heads of 64 and widths"):
        OneKernel(wide, launch, BLOCKS, never)
    plain = checks.small_gpt(torch.device("cpu"), torch.float32, **GPT)
    inputs_inside(plain.gpt)
    with pytest.raises(ValueError, match="weights of 16 bits"):
        OneKernel(plain, launch, BLOCKS, never)


def test_the_ring_is_as_long_as_memory_allows() -> None:
    release = {"WIDTH": 1280, "HEADS": 20, "LAYERS": 24, "CODES": 8194, "ROWS": 1, "BEAMS": 3, "GRID": 128, "RING": 8}
    assert one_kernel.fitted(release, 232_448)["RING"] == 7
    most = one_kernel.fitted({**release, "ROWS": 2, "BEAMS": 4}, one_kernel.LEAST_SHARED)
    assert one_kernel.shared_bytes(most) <= one_kernel.LEAST_SHARED
    assert 3 <= one_kernel.fitted(release, 166_912)["RING"] < 7
    assert one_kernel.shared_bytes(one_kernel.fitted(release, 166_912)) <= 166_912


def test_every_block_has_outputs() -> None:
    assert [one_kernel.blocks_of(1280, most) for most in (132, 128, 114, 80, 79)] == [128, 128, 80, 80, 0]
    assert one_kernel.blocks_of(256, 20) == 16


def test_compiles_for_gpus_without_one() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    layout = {"PART": 192, "BACK_OFF": 20, "FLIGHT": 2, "FORESEE": 3}
    shape = {"WIDTH": 1280, "HEADS": 20, "LAYERS": 24, "CODES": 8194, "ROWS": 1, "BEAMS": 3, "TRACE": 0, **layout}
    for architecture, half, blocks, ring in (("sm_90", 0, 128, 5),):
        defines = {**shape, "GRID": blocks, "HALF": half, "RING": ring}
        assert len(one_kernel.compiled(architecture, tuple(sorted(defines.items())))) > 1000
