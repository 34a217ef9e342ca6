"""The fused kernels against torch: in Triton's interpreter where there is no GPU, compiled where there is one.

If these fail, a voice changes when fused kernels are switched on, at its ends first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from indextts.engine import fusion, vocoder
from indextts.engine.decode import feed as plain_feed
from indextts.engine.device_beams import BeamSearch
from indextts.engine.device_search import Search
from indextts.engine.fusion import Fusion
from indextts.engine.precision import copy_to
from indextts.engine.sampling import SamplingParams
from indextts.engine.solver import FastSolver
from indextts.engine.static_cache import KVStorage, StaticCache
from indextts.models.bigvgan import Activation
from tests.engine.solver_cases import CPU, plain, random_s2mel, utterance
from tests.tiny_gpt import tiny_gpt

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
# Without a GPU they are interpreted: see tests/conftest.py.
DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.usefixtures("loops_of_loaded_length")


@needs_triton
@pytest.mark.parametrize(("lengths", "channels_inside"), [(None, False), pytest.param((19, 12), True, marks=pytest.mark.slow)])
def test_activation_has_the_right_ends(lengths: tuple[int, int] | None, channels_inside: bool) -> None:
    from indextts.engine.kernels import snake

    torch.manual_seed(0)
    activation = Activation(3)
    x = torch.randn(2, 3, 19)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if channels_inside else x
    valid = None if lengths is None else torch.tensor(lengths)
    with torch.inference_mode():
        for parameter in activation.parameters():
            parameter.normal_()
        activation, x, valid = activation.to(DEVICE), x.to(DEVICE), None if valid is None else valid.to(DEVICE)
        expected = vocoder.activate(x, activation, valid, torch.float32)
        found = snake.activate(x, activation, valid, torch.float32)
        assert found.stride() == x.stride()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        halved = snake.activate(x.half(), activation, valid, torch.float16)
        torch.testing.assert_close(halved, vocoder.activate(x.half(), activation, valid, torch.float16), atol=2e-3, rtol=2e-3)


@needs_triton
def test_activation_of_a_single_sample() -> None:
    from indextts.engine.kernels import snake

    activation, x = Activation(2).to(DEVICE), torch.randn(1, 2, 1, device=DEVICE)
    with torch.inference_mode():
        torch.testing.assert_close(snake.activate(x, activation, None, torch.float32), activation(x), atol=1e-5, rtol=1e-5)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_solver_kernels_equal_torch(dtype: torch.dtype) -> None:
    from indextts.engine.kernels import checks

    with torch.inference_mode():
        assert checks.solver(DEVICE, dtype) <= checks.BOUNDS[dtype]


@needs_triton
def test_a_solve_on_kernels_equals_the_plain_one() -> None:
    from indextts.engine.kernels.solver import FusedSolverOps

    model, inputs = random_s2mel(depth=1, layers=1).to(DEVICE), {k: v.to(DEVICE) for k, v in utterance(9, 3).items()}
    solver = FastSolver(model, DEVICE, use_graphs=False, ops=FusedSolverOps)
    torch.testing.assert_close(solver.solve(**inputs, steps=1, guidance=0.7), plain(model, inputs, 1), rtol=1e-4, atol=1e-4)


@needs_triton
@pytest.mark.parametrize(
    ("rows", "beams", "dtype", "given"),
    [(1, 1, torch.float16, {"splits": 3}), (2, 3, torch.float32, {"fused": 6}), (2, 3, torch.float32, {"fused": 0, "splits": 2})],
)
def test_a_decode_step_on_kernels_equals_torch(rows: int, beams: int, dtype: torch.dtype, given: dict[str, int]) -> None:
    """Forked beams, padded rows, a cache that is not full, slices of the inner width; and the new keys are where they belong."""
    from indextts.engine.kernels.decode import Tiling, feed

    width = 16 if DEVICE.type == "cuda" else 8  # what a tensor core takes
    gpt = copy_to(tiny_gpt(layers=1, model_dim=4 * width), DEVICE, dtype)
    cache = StaticCache(KVStorage(DEVICE, dtype, lambda: None), 1, 4, width, rows, beams)
    torch.manual_seed(0)
    pair = torch.randn(2, rows, 4, 5, width).to(DEVICE, dtype).unbind(0)
    mask = torch.ones(rows, 5, dtype=torch.bool, device=DEVICE)
    mask[-1, :2] = False
    with torch.inference_mode():
        bucket = cache.begin([(pair[0], pair[1])], mask, 20, 20)
        for parents in (torch.zeros(rows, beams, dtype=torch.long), torch.randint(beams, (rows, beams))):
            cache.see(bucket, parents.to(DEVICE))
            x, before = torch.randn(rows, beams, 4 * width).to(DEVICE), bucket.kv.clone()
            expected = plain_feed(gpt, x, cache, bucket)
            written = bucket.kv.clone()
            bucket.kv.copy_(before)
            found = feed(gpt, x, cache, bucket, Tiling(columns=64, depth=32, slices=2, keys=16, **given))
            tolerance = 1e-4 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(bucket.kv, written, atol=tolerance, rtol=tolerance)
            cache.advance()


SAMPLING: list[dict[str, Any]] = [
    {"top_k": 5, "top_p": 0.5, "repetition_penalty": 1.3},
    {"top_p": 1.0, "top_k": 7, "temperature": 1.0},
    {"do_sample": False, "repetition_penalty": 2.0},
    {"length_penalty": 1.0, "early_stopping": "never", "repetition_penalty": 1.0},
    {"early_stopping": True, "top_k": 20},
]


@needs_triton
@pytest.mark.parametrize("given", [SAMPLING[0], *(pytest.param(case, marks=pytest.mark.slow) for case in SAMPLING[1:])])
@pytest.mark.parametrize(
    ("rows", "beams", "forced", "equals", "room"),
    [(1, 1, False, True, 32), (1, 1, False, True, 8), (2, 3, False, False, 32), (1, 3, True, True, 16)],
)
def test_chosen_codes_are_those_of_torch(
    given: dict[str, Any], rows: int, beams: int, forced: bool, equals: bool, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes, parents, masks, finished hypotheses and embeddings, with the random numbers of the same seed; where there is little room
    for what is sifted, the first kernel finishes some rows.
    """
    from indextts.engine.kernels import sampler
    from indextts.engine.kernels.checks import alike, searched
    from indextts.engine.kernels.sampler import FusedBeamSearch, FusedSearch, knows

    monkeypatch.setattr(sampler, "ROOM", room)
    monkeypatch.setattr(sampler, "GROUPS", 32)
    gpt, params = tiny_gpt().to(DEVICE), SamplingParams(**{"num_beams": beams, "top_k": 12, **given})
    if equals and beams > 1 and not params.do_sample:
        pytest.skip("which of equal scores comes first is not defined")
    assert knows(params, gpt.config.number_mel_codes)
    pair = (Search, FusedSearch) if beams == 1 else (BeamSearch, FusedBeamSearch)
    with torch.inference_mode():
        plain_trace, trace = (searched(kind(gpt, rows, beams, DEVICE), gpt, params, 4, forced=forced, equals=equals) for kind in pair)
    assert len(plain_trace) == 4
    assert [step for step, states in enumerate(zip(plain_trace, trace, strict=True)) if not alike(*states)] == []


@needs_triton
def test_what_the_sampler_does_not_know_is_left_to_torch() -> None:
    from indextts.engine.kernels.checks import alike, searched
    from indextts.engine.kernels.sampler import FusedSearch, knows

    gpt = tiny_gpt()
    for given in ({"typical_sampling": True}, {"top_k": 0}, {"top_k": 500}, {"num_beams": 9}):
        assert not knows(SamplingParams(**given), 1000)
    params = SamplingParams(num_beams=1, top_k=0)
    with torch.inference_mode():
        traces = [searched(kind(gpt, 1, 1, CPU), gpt, params, 3) for kind in (Search, FusedSearch)]
    assert all(alike(*states) for states in zip(*traces, strict=True))


@needs_triton
@pytest.mark.parametrize(
    ("arch", "dtype"),
    [(90, "bfloat16"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(90, "float32"), (86, "float16"), (80, "bfloat16")])],
)
def test_every_kernel_compiles_and_fits(arch: int, dtype: str) -> None:
    """At the release's sizes, without such a GPU: what needs more shared memory than a program may have fails at its first launch."""
    from tests.engine.compile_kernels import SHARED

    command = [sys.executable, "-m", "tests.engine.compile_kernels", "--arch", str(arch), "--dtype", dtype]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({row["kernel"] for row in rows}) == (19 if dtype == "float32" else 20)  # attention packs in 16 bits alone
    assert [row for row in rows if row["shared"] > SHARED[arch]] == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stage", Fusion.names())
def test_this_gpu_passes_the_check(stage: str, dtype: torch.dtype) -> None:
    reason = fusion.check(stage, DEVICE, dtype)
    if stage == "one_kernel" and (dtype == torch.float32 or torch.cuda.get_device_capability() < (9, 0)):
        assert "16 bits" in reason or "9.0" in reason
    else:
        assert reason == ""


# ------------------------------------------------------------------------------------------------------------- the switch


def test_kernels_are_off_on_a_cpu_and_it_is_said_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert not Fusion().usable("decode", CPU, torch.float32)
    assert caplog.text == ""
    assert not Fusion(decode=True).usable("decode", CPU, torch.float32)
    assert [record.getMessage() for record in caplog.records] == [
        "decode runs without fused kernels: they need a CUDA device, and this is cpu"
    ]


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (0.5, "differ from torch's by 5.0e-01"),
        (RuntimeError("no such instruction\nand more"), "RuntimeError: no such instruction"),
        (1e-6, ""),
    ],
)
@needs_triton
def test_a_device_that_computes_something_else_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, outcome: float | Exception, why: str
) -> None:
    from indextts.engine.kernels import checks

    def measure(*_: object) -> float:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(checks, "solver", measure)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    device = torch.device("cuda", 97)  # asked once per device, so one of its own
    fusion.check.cache_clear()
    with caplog.at_level(logging.INFO):
        assert Fusion().usable("solver", device, torch.float32) == (not why)
        assert not Fusion(solver=False).usable("solver", device, torch.float32)
    fusion.check.cache_clear()
    assert len(caplog.records) == (1 if why else 0)
    assert why in caplog.text
    assert "and more" not in caplog.text


def test_a_machine_without_triton_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    fusion.check.cache_clear()
    assert fusion.check("vocoder", torch.device("cuda", 98), torch.float16) == "Triton is not installed"
    fusion.check.cache_clear()


def test_a_wish_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="fusion of solver is 'fast'"):
        Fusion(solver="fast")
