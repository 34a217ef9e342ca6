"""The fast solver against the plain one: every saving alone, all together, padded, in buckets, in 16 bits.

If these fail, the voice changes when the engine is made faster, or a switch in a notebook does not do what it says.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils.flop_counter import FlopCounterMode

from indextts.config import SemanticCodecConfig
from indextts.engine.content import ContentProjection
from indextts.engine.solver import FastSolver, Savings
from indextts.engine.solver_times import euler_clock
from indextts.models.s2mel import S2Mel
from indextts.models.semantic_codec import SemanticCodec
from tests.engine.solver_cases import CPU, UNEQUAL, assert_same, fast, padded, plain, random_s2mel, utterance
from tests.parity_kinds.common import Golden
from tests.parity_kinds.s2mel import seeded_s2mel

TESTS = Path(__file__).parents[1]
SAVINGS = {"none": Savings.only(), **{name: Savings.only(name) for name in Savings.names()}, "all": Savings()}


@pytest.fixture(scope="module")
def model() -> S2Mel:
    return random_s2mel()


# ------------------------------------------------------------------------------------------------------- exact in float32


@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize("savings", SAVINGS.values(), ids=SAVINGS.keys())
def test_each_saving_alone_changes_nothing(model: S2Mel, savings: Savings, guidance: float) -> None:
    inputs = utterance(60, 25)
    mel = fast(model, savings=savings).solve(**inputs, steps=4, guidance=guidance)
    assert_same(mel, plain(model, inputs, 4, guidance))
    assert not mel[..., :25].any()


@pytest.mark.parametrize("steps", [1, 25])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_any_number_of_steps(model: S2Mel, steps: int, guidance: float) -> None:
    inputs = utterance(60, 25)
    assert_same(fast(model).solve(**inputs, steps=steps, guidance=guidance), plain(model, inputs, steps, guidance))


@pytest.mark.parametrize("missing", Savings.names())
def test_all_savings_but_one_change_nothing(model: S2Mel, missing: str) -> None:
    inputs = utterance(60, 25)
    assert_same(fast(model, savings=Savings(**{missing: False})).solve(**inputs, steps=2, guidance=0.7), plain(model, inputs, 2))


@pytest.mark.parametrize(("depth", "kernel", "layers"), [(1, 5, 1), (2, 3, 2), (4, 4, 2)])
def test_other_architectures(depth: int, kernel: int, layers: int) -> None:
    other, inputs = random_s2mel(depth, kernel, layers), utterance(40, 21)
    assert_same(fast(other).solve(**inputs, steps=4, guidance=0.7), plain(other, inputs))


@pytest.mark.parametrize("prompt", [0, 1, 5, 6, 7, 38, 39, 40])
def test_prompts_of_any_length(model: S2Mel, prompt: int) -> None:
    inputs = utterance(40, prompt)
    assert_same(fast(model).solve(**inputs, steps=2, guidance=0.7), plain(model, inputs, 2))


def test_the_window_before_the_target_is_needed_in_full(model: S2Mel) -> None:
    inputs, solver = utterance(60, 25), fast(model)
    solver.step.halo -= 1
    error = (solver.solve(**inputs, steps=4, guidance=0.7) - plain(model, inputs)).abs()
    assert error[..., 25].max() > 1e-5


@pytest.mark.parametrize("rate", [0.7, 0.0])
def test_reference_results(rate: float) -> None:
    golden = Golden(TESTS / "golden" / "s2mel_cfm.json")
    solver, steps = fast(seeded_s2mel(golden)), golden.run["n_timesteps"]
    rows = []
    for case in golden.run["cases"]:
        names = {"mu": "mu", "prompt_mel": "prompt", "style": "style", "noise": "noise"}
        rows.append({name: golden[f"in.{stored}_{case}"] for name, stored in names.items()})
    together = solver.solve(**padded(rows), steps=steps, guidance=rate)
    for row, of_batch, case in zip(rows, together, golden.run["cases"], strict=True):
        expected = golden[f"out.mel_{case}_cfg{'07' if rate else '00'}"]
        assert_same(solver.solve(**row, steps=steps, guidance=rate), expected)
        assert_same(of_batch[:, : expected.shape[-1]], expected[0])


def test_times_are_those_of_the_plain_solver(model: S2Mel) -> None:
    seen: list[Tensor] = []
    handle = model.cfm.estimator.t_embedder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    plain(model, utterance(12, 4), 25, 0.0)
    handle.remove()
    assert torch.equal(euler_clock(25, CPU)[:, 0], torch.cat(seen))


# ------------------------------------------------------------------------------------------------------ batches and buckets


@pytest.mark.parametrize("bucket", [1, 64])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
@pytest.mark.parametrize("savings", [Savings.only(), Savings()], ids=["none", "all"])
def test_segments_solved_together_equal_each_alone(model: S2Mel, savings: Savings, guidance: float, bucket: int) -> None:
    rows = [utterance(frames, prompt, seed) for seed, (frames, prompt) in enumerate(UNEQUAL)]
    together = fast(model, savings=savings, bucket_frames=bucket).solve(**padded(rows), steps=4, guidance=guidance)
    for row, of_batch in zip(rows, together, strict=True):
        frames = row["mu"].shape[1]
        assert_same(of_batch[:, :frames], plain(model, row, 4, guidance)[0])
        assert not of_batch[:, frames:].any()


def test_equal_segments_need_no_mask(model: S2Mel) -> None:
    inputs = utterance(50, 20, batch=3)
    solver = fast(model)
    masks = spied_masks(solver)
    assert_same(solver.solve(**inputs, steps=4, guidance=0.7), plain(model, inputs))
    assert masks == [None]


@pytest.mark.parametrize(("frames", "prompt"), [(60, 25), (64, 0), (65, 1), (150, 100), (3, 1)])
def test_buckets_do_not_change_the_result(model: S2Mel, frames: int, prompt: int) -> None:
    inputs = utterance(frames, prompt)
    assert_same(fast(model, bucket_frames=64).solve(**inputs, steps=4, guidance=0.7), plain(model, inputs))


def test_lengths_may_be_lists(model: S2Mel) -> None:
    inputs = padded([utterance(20, 5), utterance(30, 9)])
    lists = {**inputs, "lengths": [20, 30], "prompt_lengths": [5, 9]}
    assert torch.equal(fast(model).solve(**lists, steps=2, guidance=0.7), fast(model).solve(**inputs, steps=2, guidance=0.7))


def spied_masks(solver: FastSolver) -> list[object]:
    """Attention mask of every solve that follows."""
    seen: list[object] = []
    runner = solver._runner
    solver._runner = lambda inputs, table: (seen.append(inputs.mask), runner(inputs, table))[1]  # type: ignore[method-assign]
    return seen


def varlen_by_hand(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, most_q: int, most_k: int) -> Tensor:
    """What the variable-length kernel computes, sequence by sequence."""
    out = torch.full_like(q, torch.nan)
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert (int(ends_q[-1]), int(ends_k[-1])) == (len(q), len(k))
    for a, b, c, d in zip(ends_q[:-1].tolist(), ends_q[1:].tolist(), ends_k[:-1].tolist(), ends_k[1:].tolist(), strict=True):
        assert 0 <= b - a <= most_q
        assert 0 <= d - c <= most_k
        if b > a:
            part = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
            out[a:b] = F.scaled_dot_product_attention(*part)[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("bucket", [1, 64])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_padding_as_sequences_of_its_own(model: S2Mel, monkeypatch: pytest.MonkeyPatch, guidance: float, bucket: int) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", varlen_by_hand)
    solver = fast(model, bucket_frames=bucket)
    solver._packs = True
    masks = spied_masks(solver)
    rows = [utterance(frames, prompt, seed) for seed, (frames, prompt) in enumerate(UNEQUAL)]
    together = solver.solve(**padded(rows), steps=2, guidance=guidance)
    for row, of_batch in zip(rows, together, strict=True):
        assert_same(of_batch[:, : row["mu"].shape[1]], plain(model, row, 2, guidance)[0])
    assert_same(solver.solve(**rows[0], steps=2, guidance=guidance), plain(model, rows[0], 2, guidance))
    assert masks == [None, None]


# ---------------------------------------------------------------------------------------------- what the switches are worth


@pytest.mark.parametrize("name", ["time_tables", "static_inputs", "trim_last_block", "linear_guidance", "composed_maps"])
def test_savings_save_arithmetic(model: S2Mel, name: str) -> None:
    def operations(savings: Savings) -> int:
        solver, inputs = fast(model, savings=savings), utterance(90, 60)
        solver.solve(**inputs, steps=3, guidance=0.7)  # makes tables
        with FlopCounterMode(display=False) as counter:
            solver.solve(**inputs, steps=3, guidance=0.7)
        return counter.get_total_flops()

    assert operations(Savings()) < operations(Savings(**{name: False}))


def test_the_default_is_what_pays_on_the_device(model: S2Mel) -> None:
    solver, inputs = FastSolver(model, CPU, use_graphs=False), utterance(60, 25)
    assert solver.savings == Savings.best(CPU) != Savings.best(torch.device("cuda")) == Savings()
    assert_same(solver.solve(**inputs, steps=4, guidance=0.7), plain(model, inputs))
    assert all(Savings.descriptions().values())


def test_an_unknown_saving_is_refused() -> None:
    with pytest.raises(TypeError, match="free_lunch"):
        Savings.only("free_lunch")


# ----------------------------------------------------------------------------------------------- precision, progress, gauges


@pytest.mark.parametrize("savings", [Savings.only(), Savings()], ids=["none", "all"])
def test_bf16_is_near(model: S2Mel, savings: Savings) -> None:
    inputs = utterance(60, 25)
    mel = fast(model, dtype=torch.bfloat16, savings=savings).solve(**inputs, steps=25, guidance=0.7)
    expected = plain(model, inputs, 25)
    assert mel.dtype == torch.float32
    assert 1e-4 < float((mel - expected).norm() / expected.norm()) < 0.01


def test_progress_and_cancelling(model: S2Mel) -> None:
    solver, inputs, seen = fast(model), utterance(30, 9), []

    def stop(done: int, steps: int) -> None:
        seen.append((done, steps))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solver.solve(**inputs, steps=5, guidance=0.7, on_step=stop)
    assert seen == [(1, 5), (2, 5), (3, 5)]
    assert_same(solver.solve(**inputs, steps=5, guidance=0.7), plain(model, inputs, 5))


def test_memory_is_counted_and_given_back(model: S2Mel) -> None:
    solver = fast(model)
    prepared = solver.memory_mb
    solver.solve(**utterance(30, 9), steps=25, guidance=0.7)
    assert 0 < prepared < solver.memory_mb
    solver.clear()
    assert solver.memory_mb < prepared + 0.01
    assert fast(model, savings=Savings.only()).memory_mb < fast(model, savings=Savings()).memory_mb


def test_what_does_not_fit_is_refused(model: S2Mel) -> None:
    solver, inputs = fast(model), utterance(12, 5)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        solver.solve(**inputs, steps=0, guidance=0.7)
    with pytest.raises(ValueError, match="mu must cover the prompt"):
        solver.solve(**{**inputs, "mu": inputs["mu"][:, :4]}, steps=1, guidance=0.7)
    with pytest.raises(ValueError, match="noise must have shape"):
        solver.solve(**{**inputs, "noise": inputs["noise"][..., :4]}, steps=1, guidance=0.7)
    with pytest.raises(ValueError, match="2 lengths for 1 samples"):
        solver.solve(**inputs, steps=1, guidance=0.7, lengths=[3, 4])
    for lengths, prompts in (([13], [5]), ([0], [0]), ([4], [5]), ([12], [6])):
        with pytest.raises(ValueError, match="lengths"):
            solver.solve(**inputs, steps=1, guidance=0.7, lengths=lengths, prompt_lengths=prompts)


@torch.inference_mode()
def test_content_of_codes_and_latents(model: S2Mel) -> None:
    torch.manual_seed(3)
    codec = SemanticCodec(SemanticCodecConfig(codebook_size=32, hidden_size=24, vocos_dim=8, vocos_intermediate_dim=8, vocos_num_layers=1))
    codes, latents = torch.randint(32, (2, 9)), torch.randn(2, 9, 20)
    expected = model.content(codec.vq2emb(codes), latents)
    assert_same(ContentProjection(model, codec, CPU)(codes, latents), expected)
