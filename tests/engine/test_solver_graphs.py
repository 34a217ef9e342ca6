"""The fast solver from CUDA graphs: recorded once per bucket, equal to eager steps, and never fatal.

If these fail, switching graphs on changes the voice, records anew for every sentence, or breaks where graphs are impossible.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from indextts.engine.precision import matmul_mode
from indextts.engine.solver import FastSolver, Savings
from indextts.engine.solver_graphs import StepGraphs
from indextts.models.s2mel import S2Mel
from tests.engine.solver_cases import CPU, UNEQUAL, assert_same, fast, padded, plain, random_s2mel, utterance


@pytest.fixture(scope="module")
def model() -> S2Mel:
    return random_s2mel()


def graphed(model: S2Mel, record: Callable[[Callable[[], None]], Callable[[], None]], most: int = 8) -> FastSolver:
    """A solver that believes in graphs; ``record`` stands for the GPU."""
    solver = fast(model, bucket_frames=64)
    solver.graphs = StepGraphs(solver.step, CPU, most=most, record=record)
    return solver


def test_a_graph_serves_every_input_of_its_bucket(model: S2Mel) -> None:
    recorded: list[object] = []
    solver = graphed(model, lambda call: (recorded.append(call), call)[1])
    for frames, prompt, guidance, steps in ((60, 25, 0.7, 4), (50, 9, 0.3, 2), (64, 20, 0.7, 4)):
        inputs = utterance(frames, prompt)
        assert_same(solver.solve(**inputs, steps=steps, guidance=guidance), plain(model, inputs, steps, guidance))
    assert len(recorded) == 1
    unguided = utterance(60, 25)
    assert_same(solver.solve(**unguided, steps=4, guidance=0.0), plain(model, unguided, 4, 0.0))
    assert [(entry["window"], entry["guided"]) for entry in solver.captured] == [(64, True), (64, False)]
    solver.clear()
    assert solver.captured == []


def test_least_recently_used_graph_is_dropped(model: S2Mel) -> None:
    solver = graphed(model, lambda call: call, most=2)
    for frames in (60, 120, 60, 180):
        solver.solve(**utterance(frames, 5), steps=1, guidance=0.7)
    assert [entry["window"] for entry in solver.captured] == [64, 192]


def test_failing_capture_falls_back_with_one_line(model: S2Mel, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: object) -> Callable[[], None]:
        raise RuntimeError("no graphs today")

    solver, inputs = graphed(model, refuse), utterance(60, 25)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(solver.solve(**inputs, steps=4, guidance=0.7), plain(model, inputs))
    assert [record.message for record in caplog.records if "no graphs today" in record.message] == [caplog.records[0].message]


def test_graphs_are_no_use_on_a_cpu(model: S2Mel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        solver = fast(model, use_graphs=True)
    assert "eagerly on cpu" in caplog.text
    assert solver.graphs is None


# ---------------------------------------------------------------------------------------------------------------- on a GPU


def to_gpu(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in inputs.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_graphs_on_a_gpu_equal_eager_steps(dtype: torch.dtype) -> None:
    model, device = random_s2mel().cuda(), torch.device("cuda:0")
    eager = FastSolver(model, device, dtype, use_graphs=False, bucket_frames=64)
    solver = FastSolver(model, device, dtype, use_graphs=True)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for frames, prompt in ((60, 25), (50, 9), (150, 70), (60, 25)):
        for guidance in (0.7, 0.0):
            inputs = to_gpu(utterance(frames, prompt))
            replayed = solver.solve(**inputs, steps=5, guidance=guidance)
            torch.testing.assert_close(replayed, eager.solve(**inputs, steps=5, guidance=guidance), rtol=tolerance, atol=tolerance)
            if dtype == torch.float32:
                with matmul_mode("fp32", device):  # torch's default lets the plain path's convolutions use TF32
                    torch.testing.assert_close(replayed, plain(model, inputs, 5, guidance), rtol=5e-4, atol=5e-4)
    assert solver.graphs is not None
    assert len(solver.captured) == 4
    assert solver.memory_mb > eager.memory_mb


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [True, False])
def test_padded_batches_in_16_bits_on_a_gpu(packed: bool) -> None:
    model, device = random_s2mel().cuda(), torch.device("cuda:0")
    solver = FastSolver(model, device, torch.bfloat16, use_graphs=True, savings=Savings(packed_attention=packed))
    rows = [utterance(frames, prompt, seed) for seed, (frames, prompt) in enumerate(UNEQUAL)]
    together = solver.solve(**to_gpu(padded(rows)), steps=5, guidance=0.7)
    for row, of_batch in zip(rows, together, strict=True):
        exact = plain(model, to_gpu(row), 5)[0]
        assert float((of_batch[:, : exact.shape[-1]] - exact).norm()) <= 0.02 * float(exact.norm()) + 1e-6
