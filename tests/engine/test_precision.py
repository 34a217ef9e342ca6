"""The number formats against float32: if these fail, a 16-bit voice drifts from the plain one, or a switch does not switch.

Distances are |a - b| / |b|. They are what the table in ``indextts.engine.precision`` states, with room for other random weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from indextts import IndexTTS2
from indextts.engine.precision import copy_to, solver_products_in, vocoder_dtype
from indextts.engine.solver import FastSolver
from indextts.engine.vocoder import VocoderRunner
from indextts.models.bigvgan import BigVGAN
from indextts.models.gpt2 import Conv1D
from indextts.models.s2mel import S2Mel
from indextts.release.sizes import small_config
from tests.engine.solver_cases import CPU, plain, random_s2mel, utterance
from tests.parity_kinds.common import Golden
from tests.parity_kinds.s2mel import seeded_s2mel
from tests.tiny_gpt import tiny_conditioning, tiny_gpt

GOLDEN = Path(__file__).parents[1] / "golden"
BF16, FP16 = torch.bfloat16, torch.float16


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def model() -> S2Mel:
    return random_s2mel()


def random_vocoder() -> BigVGAN:
    torch.manual_seed(0)
    vocoder = BigVGAN(small_config().bigvgan).eval()
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.normal_(std=0.3)
    return vocoder


@pytest.fixture(scope="module")
def vocoder() -> BigVGAN:
    return random_vocoder()


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.mark.parametrize(("dtype", "least", "most"), [(BF16, 1e-3, 2e-2), (FP16, 1e-4, 2.5e-3)])
def test_latents_in_16_bits(dtype: torch.dtype, least: float, most: float) -> None:
    model = tiny_gpt()
    text, codes, lengths = torch.tensor([[7, 3, 9, 12]]), torch.arange(10)[None], torch.tensor([10])
    conditioning = tiny_conditioning(model)
    with torch.no_grad():
        exact, rounded = (
            m.latents(conditioning, text, torch.tensor([4]), codes, lengths).float() for m in (model, copy_to(model, CPU, dtype))
        )
    assert least < distance(rounded, exact) < most


@pytest.mark.parametrize(("dtype", "least", "most"), [(BF16, 1e-3, 3e-2), (FP16, 1e-4, 4e-3)])
@pytest.mark.parametrize("path", ["plain", "fast"])
def test_mel_in_16_bits(path: str, dtype: torch.dtype, least: float, most: float) -> None:
    """Of the golden's size and weights, 25 steps."""
    golden = Golden(GOLDEN / "s2mel_cfm.json")
    model, case = seeded_s2mel(golden), golden.run["cases"][0]
    inputs = {
        name: golden[f"in.{stored}_{case}"]
        for name, stored in (("mu", "mu"), ("prompt_mel", "prompt"), ("style", "style"), ("noise", "noise"))
    }
    exact = plain(model, inputs, 25)
    if path == "fast":
        found = FastSolver(model, CPU, dtype, use_graphs=False).solve(**inputs, steps=25, guidance=0.7)
    else:
        with torch.inference_mode():
            found = solver_products_in(model.cfm, dtype, CPU).solve(**inputs, steps=25, guidance=0.7)
    assert found.dtype == torch.float32
    assert least < distance(found, exact) < most


def test_the_plain_solver_in_16_bits_shares_what_it_does_not_change(model: S2Mel) -> None:
    half = solver_products_in(model.cfm, BF16, CPU)
    estimator, other = model.cfm.estimator, half.estimator
    assert other.t_embedder.mlp[0].weight is estimator.t_embedder.mlp[0].weight
    assert other.cond_projection.weight is estimator.cond_projection.weight
    assert other.transformer.layers[0].attention.wqkv.weight.dtype == BF16
    assert estimator.transformer.layers[0].attention.wqkv.weight.dtype == torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 0, 1e-5), (BF16, 5e-3, 5e-2), (FP16, 5e-4, 6e-3)])
def test_wave_in_16_bits(vocoder: BigVGAN, dtype: torch.dtype, least: float, most: float, channels_last: bool) -> None:
    mel = torch.randn(2, 80, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for lengths in (None, torch.tensor([12, 7])):
            found = VocoderRunner(vocoder, CPU, dtype, channels_last=channels_last)(mel, lengths)
            assert found.dtype == torch.float32
            assert least <= distance(found, vocoder(mel, lengths)) < most
    assert lengths is not None
    assert not found[1, :, 7 * vocoder.hop :].any()


def test_formats_per_stage() -> None:
    cuda = torch.device("cuda", 0)
    assert [vocoder_dtype(name, cuda) for name in ("fp32", "tf32", "bf16", "fp16")] == [torch.float32, torch.float32, FP16, FP16]
    assert vocoder_dtype("bf16", CPU) == torch.float32


def test_a_live_switch_reaches_every_stage_and_back(engine: IndexTTS2) -> None:
    stages = engine._stages
    for accelerated in (True, False):
        engine.use_accel = accelerated
        engine.set_precision("bf16")
        assert stages.gpt.gpt.h[0].attn.c_attn.weight.dtype == BF16
        assert stages.flow.estimator.transformer.layers[0].attention.wqkv.weight.dtype == BF16
        if stages.solver is not None:
            assert stages.solver.dtype == BF16
        engine.set_precision("fp32")
        assert stages.flow is stages.s2mel.cfm
        assert stages.gpt.gpt.h[0].attn.c_attn.weight.dtype == torch.float32
        if stages.solver is not None:
            assert stages.solver.dtype == torch.float32
    engine.use_accel = True


# ------------------------------------------------------------------------------------------------------- beyond float16's range


def test_float16_products_of_the_gpt_saturate() -> None:
    layer = Conv1D(4, 3).half()
    nn.init.constant_(layer.weight, 1000.0)
    y = layer(torch.full((1, 4), 1000.0))
    assert y.dtype == FP16
    assert torch.equal(y, torch.full((1, 3), 65504.0, dtype=FP16))


def test_a_solve_that_overflows_is_done_again_in_bfloat16(model: S2Mel, caplog: pytest.LogCaptureFixture) -> None:
    large = random_s2mel()
    with torch.no_grad():
        for layer in large.cfm.estimator.transformer.layers:
            layer.feed_forward.w1.weight.mul_(300)
            layer.feed_forward.w3.weight.mul_(300)
    inputs, solver = utterance(20, 5), FastSolver(large, CPU, FP16, use_graphs=False)
    exact = plain(large, inputs, 2)
    assert torch.isfinite(exact).all()
    with caplog.at_level(logging.WARNING):
        mels = [solver.solve(**inputs, steps=2, guidance=0.7) for _ in range(2)]
    assert torch.equal(*mels)
    assert distance(mels[0], exact) < 0.1
    assert [record.getMessage() for record in caplog.records] == [
        "float16 overflowed in the mel solver, which multiplies in bfloat16 from now on"
    ]


def test_a_wave_that_overflows_is_done_again_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    vocoder = random_vocoder()
    with torch.no_grad():
        vocoder.conv_pre.weight.mul_(1e6)
        vocoder.ups[0][0].weight.mul_(1e-6)
    runner, mel = VocoderRunner(vocoder, CPU, FP16), torch.randn(1, 80, 5, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        waves = [runner(mel) for _ in range(2)]
        assert all(torch.equal(wave, vocoder(mel)) for wave in waves)
    assert [record.getMessage() for record in caplog.records] == ["float16 overflowed in the vocoder, which runs in float32 from now on"]
