"""The mel solver's fused kernels one by one, and whole solves on them: in Triton's interpreter where there is no GPU.

If these fail, a voice changes when the solver runs on its kernels: in batches, at the ends of windows, or with one kind of savings.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from indextts.engine.solver import FastSolver, Savings
from indextts.engine.solver_attention import packed_spans
from indextts.engine.solver_ops import SolverOps
from tests.engine.solver_cases import padded, plain, random_s2mel, utterance

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
pytestmark = [
    pytest.mark.usefixtures("loops_of_loaded_length"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]
# Tensor cores round what they multiply, in float32 too.
TOLERANCE = {torch.float32: 1e-5 if DEVICE.type == "cpu" else 5e-3, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def both_ops(dtype: torch.dtype) -> tuple[SolverOps, SolverOps]:
    """What is tested, and what it must equal."""
    from indextts.engine.kernels.solver import FusedSolverOps

    return FusedSolverOps(dtype, 1e-5), SolverOps(dtype, 1e-5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.float(), expected.float(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


# -------------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("heads", "width", "slots", "window", "shared"),
    [(2, 64, 150, 150, True), (2, 64, 150, 70, False), (3, 16, 64, 9, False), (1, 32, 200, 200, False), (1, 128, 65, 65, True)],
)
def test_positions_turned_on_the_way(heads: int, width: int, slots: int, window: int, shared: bool, dtype: torch.dtype) -> None:
    """Two rows that begin and end elsewhere, with the same positions or their own."""
    fused, oracle = both_ops(dtype)
    qkv = random(2, slots, 3, heads, width).to(dtype)
    rows = 1 if shared else 2
    rotation = torch.polar(torch.ones(rows, slots, 1, 1, width // 2), 3 * random(rows, slots, 1, 1, width // 2).cpu()).to(DEVICE)
    shifts, lengths = torch.tensor([3, 0], device=DEVICE), torch.tensor([slots - 3, slots - 7], device=DEVICE)
    spans, place = packed_spans(shifts, lengths, slots, window), torch.arange(slots, device=DEVICE)
    frames = (place >= shifts[:, None]) & (place < (shifts + lengths)[:, None])
    mask = torch.zeros(2, 1, 1, slots, device=DEVICE, dtype=dtype).masked_fill(~frames[:, None, None], -torch.inf)
    expected = oracle.attention(qkv, rotation, window, mask, None)
    real = frames[:, -window:]
    for inside in (True, False):
        fused.turns_inside = inside  # type: ignore[attr-defined]
        found = fused.attention(qkv, rotation, window, None, spans)
        assert_near(found[real], expected[real], dtype)
        assert bool(torch.isfinite(found).all())  # padding goes on through norms and products


def test_without_spans_positions_are_turned_before() -> None:
    fused, oracle = both_ops(torch.float32)
    qkv, rotation = random(2, 9, 3, 2, 16), torch.polar(torch.ones(1, 9, 1, 1, 8), random(1, 9, 1, 1, 8).cpu()).to(DEVICE)
    assert_near(fused.attention(qkv, rotation, 5, None, None), oracle.attention(qkv, rotation, 5, None, None), torch.float32)


# ------------------------------------------------------------------------------------------------------------------ norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shifts", [False, True])
def test_norms_and_what_is_written_along(dtype: torch.dtype, shifts: bool) -> None:
    """Of the last slots of something longer, with sums in the format of products beside them."""
    fused, oracle = both_ops(dtype)
    h, y, gain = random(2, 9, 40)[:, -6:], random(2, 6, 40, seed=1).to(dtype), random(40, seed=2)
    offset = random(40, seed=3) if shifts else None
    rooms = torch.zeros(2, 2, 6, 80, device=DEVICE, dtype=dtype).unbind(0)
    results = []
    for ops, room in zip((fused, oracle), rooms, strict=True):
        ops.add_into(h, y, room[..., :40])
        pairs = [ops.add_norm(h, y, gain, offset, room[..., 40:]), ops.add_norm(y, y, gain, offset)]
        results.append([*pairs[0], *pairs[1], ops.norm(h, gain, offset), ops.norm(y, gain, offset), room])
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected, dtype)
    assert pairs[0][0].dtype == pairs[1][0].dtype == torch.float32
    assert bool(rooms[0].any(-1).all())


@pytest.mark.parametrize(("rows", "samples", "window"), [(2, 1, 5), (4, 2, 9), (2, 2, 1)])
def test_the_state_enters_every_branch(rows: int, samples: int, window: int) -> None:
    fused, oracle = both_ops(torch.float32)
    static, x, gain, offset = random(rows, 9, 24), random(samples, window, 48, seed=1)[..., 24:], random(24, seed=2), random(24, seed=3)
    before = static.clone()
    for shift in (None, offset):
        for found, expected in zip(fused.enter(static, x, gain, shift), oracle.enter(static, x, gain, shift), strict=True):
            assert_near(found, expected, torch.float32)
    assert torch.equal(static, before)  # it serves all steps


# ---------------------------------------------------------------------------------------------------------------- WaveNet


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "samples", "kernel"), [(4, 2, 5), (2, 2, 3), (2, 1, 0), (1, 1, 5)])
def test_frames_that_a_convolution_reads(rows: int, samples: int, kernel: int, dtype: torch.dtype) -> None:
    """A kernel's reach for each frame, or (0) rows longer by two frames; of parts of wider tensors, with nothing added too."""
    fused, oracle = both_ops(dtype)
    wide, y = random(rows, 7, 80).to(dtype), random(samples, 7, 80, seed=1)
    frames = torch.randint(rows * 7, (rows * 7 * kernel or rows * 9,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    z = wide[..., 40:]
    for first, added in ((z, y[..., :40]), (z.float(), y[..., 40:].to(dtype)), (z.float(), None), (z, None)):
        for found, expected in zip(fused.take(first, added, frames), oracle.take(first, added, frames), strict=True):
            assert_near(found, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [40, 700])
def test_gates_go_to_their_places(dtype: torch.dtype, channels: int) -> None:
    fused, oracle = both_ops(dtype)
    a, rooms = (3 * random(2, 3, 2 * channels)).to(dtype), torch.zeros(2, 2, 3, 3 * channels, device=DEVICE, dtype=dtype).unbind(0)
    for ops, room in zip((fused, oracle), rooms, strict=True):
        gated = ops.wave_gate(a, room[..., channels : 2 * channels])
        assert_near(gated, ops.wave_gate(a), dtype)
        assert gated.data_ptr() == room[..., channels:].data_ptr()
    assert_near(*rooms, dtype)
    inside = a.transpose(0, 1)  # as what a convolution leaves, of another order
    assert_near(fused.wave_gate(inside), oracle.wave_gate(inside), dtype)
    assert_near(fused.silu_gate(inside), oracle.silu_gate(inside), dtype)


# ----------------------------------------------------------------------------------------------------------- a step's end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "guided"), [(4, True), (2, True), (2, False)])
def test_last_norm_combines_branches(rows: int, guided: bool, dtype: torch.dtype) -> None:
    """Around a shortcut that is a part of something wider, with and without what all branches share; far from a mean of zero."""
    fused, oracle = both_ops(dtype)
    h, wide = random(rows, 5, 40).to(dtype) + 9, random(rows, 5, 80, seed=1).to(dtype)
    guidance = torch.full((), 0.7, device=DEVICE) if guided else None
    for shared, shortcut in ((random(rows // 2, 5, 80)[..., 40:], wide[..., 40:]), (None, wide[..., 40:].float())):
        found, expected = (ops.last_norm(h, shortcut, shared, guidance, 1e-6) for ops in (fused, oracle))
        assert found.shape == ((rows // 2 if guided else rows), 5, 40)
        assert_near(found, expected, torch.float32)


@pytest.mark.parametrize("guided", [True, False])
def test_the_state_moves_but_where_it_is_held(guided: bool) -> None:
    fused, oracle = both_ops(torch.float32)
    v, guidance = random(4 if guided else 2, 6, 10, seed=1), torch.full((), 0.7, device=DEVICE) if guided else None
    held = (random(2, 9, seed=2) > 0)[:, -6:, None]  # a part of all slots
    dt = random(7, seed=3)[5]
    states = [random(2, 6, 10), random(2, 6, 10), random(2, 10, 6).transpose(1, 2), random(2, 10, 6).transpose(1, 2)]
    for state, ops in zip(states, (fused, oracle, fused, oracle), strict=True):
        ops.advance(state, v, dt, held, guidance)
    for found, expected in (states[:2], states[2:]):
        assert_near(found, expected, torch.float32)
        assert bool(((found == 0).all(-1, keepdim=True) == held).all())


# ----------------------------------------------------------------------------------------------------------- whole solves


@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize(("packs", "bucket"), [(True, 8), (False, 1)])
def test_a_batch_on_kernels_equals_each_alone(guidance: float, packs: bool, bucket: int) -> None:
    from indextts.engine.kernels.solver import FusedSolverOps

    model, rows = random_s2mel(depth=3, layers=2), [utterance(13, 8, 1), utterance(9, 3, 2)]
    expected = [plain(model, row, 1, guidance)[0] for row in rows]
    solver = FastSolver(model.to(DEVICE), DEVICE, use_graphs=False, savings=Savings(), ops=FusedSolverOps, bucket_frames=bucket)
    solver._packs = packs
    together = solver.solve(**{name: value.to(DEVICE) for name, value in padded(rows).items()}, steps=1, guidance=guidance)
    for found, alone in zip(together, expected, strict=True):
        tolerance = 1e-4 if DEVICE.type == "cpu" else 2e-2
        torch.testing.assert_close(found[:, : alone.shape[-1]].cpu(), alone, rtol=tolerance, atol=tolerance)
