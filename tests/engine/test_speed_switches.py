"""The engine's switches: if these fail, a switch does nothing, does something else, or cannot be taken back."""

from __future__ import annotations

import importlib
import importlib.util
import types
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import ladder as bench_ladder
from indextts.bench_switches import Switches
from indextts.engine import attention, deepspeed, solver_attention, stage_switches, vocoder
from indextts.engine.quantise import QuantisedConv1D, check_weights, quantise
from indextts.engine.solver import FastSolver
from indextts.engine.solver_graphs import StepGraphs
from indextts.models.gpt2 import Conv1D
from indextts.switches import available_switches
from tests.engine.solver_cases import CPU, assert_same, fast, plain, random_s2mel, utterance
from tests.speaking import speak

NAMES = ("decode", "one_kernel", "sampler", "solver", "vocoder")


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


def test_fusion_is_a_live_switch_that_says_where_it_works(engine: IndexTTS2) -> None:
    assert engine.fusion
    assert not any(engine.fused.values())  # a CPU has no kernels
    engine.set_fusion(decode=False)
    assert engine._stages.fusion.to_dict() == {name: name != "decode" and "auto" for name in NAMES}
    engine.fusion = False
    assert not engine.fusion
    with pytest.raises(ValueError, match="fusion of vocoder is 'yes'"):
        engine.set_fusion(vocoder="yes")
    assert not engine.fusion
    engine.fusion = True
    assert engine._stages.fusion.to_dict() == dict.fromkeys(NAMES, "auto")


def test_the_releases_argument_for_a_fused_activation(tmp_path: Path) -> None:
    from indextts.release import write_random_release

    folder = write_random_release(tmp_path, "small")
    with IndexTTS2(model_dir=folder, device="cpu", use_cuda_kernel=False, use_qwen_emo=False) as tts:
        assert tts._stages.fusion.to_dict() == {name: name != "vocoder" and "auto" for name in NAMES}


def test_switches_that_change_nothing_change_nothing(engine: IndexTTS2) -> None:
    expected = speak(engine)
    for name in ("channels_last", "cudnn_benchmark", "whole_loop_graph"):
        before = getattr(engine, name)
        setattr(engine, name, not before)
        try:
            assert getattr(engine, name) is not before
            assert abs(speak(engine).astype(int) - expected).max() <= 1, name
            assert engine.last_telemetry.settings[name] is not before
        finally:
            setattr(engine, name, before)
    assert np.array_equal(speak(engine), expected)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 3)])
def test_channels_lie_innermost_by_default_where_it_pays(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu, pays = torch.device("cuda", 0), capability >= (9, 0)
    assert vocoder.channels_last_pays(gpu, torch.float16) is pays
    assert not vocoder.channels_last_pays(gpu, torch.float32)
    assert not vocoder.channels_last_pays(CPU, torch.float16)


def test_what_is_set_stays_until_it_is_left_to_the_device_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_switches, "vocoder_dtype", lambda name, _: torch.float16 if name == "bf16" else torch.float32)
    monkeypatch.setattr(stage_switches, "channels_last_pays", lambda _, dtype: dtype == torch.float16)
    with IndexTTS2.from_random("small", device="cpu") as tts:

        def shown() -> bool:
            values = {
                tts.channels_last,
                tts._stages.voice.channels_last,
                tts._speed_settings()["channels_last"],
                Switches.of(tts).channels_last,
            }
            (switch,) = (one for one in available_switches(tts) if one.name == "channels_last")
            (value,) = values | {switch.value}
            return value

        states = {}
        for wish in (None, True, False, None):
            tts.set_channels_last(wish)
            for precision in ("fp32", "bf16"):
                tts.set_precision(precision)
                states[wish, precision] = shown()
        assert states == {
            (None, "fp32"): False, (None, "bf16"): True,
            (True, "fp32"): True, (True, "bf16"): True,
            (False, "fp32"): False, (False, "bf16"): False,
        }  # fmt: skip
        tts.set_precision("fp32")
        for state in (Switches(precision="bf16"), Switches(precision="bf16", channels_last=True), Switches(), Switches(precision="bf16")):
            state.apply(tts)
            assert shown() is state.channels_last
            assert Switches.of(tts).channels_last is state.channels_last
        tts.set_channels_last(None)
        assert shown()
        without = Switches(precision="bf16", beams=1)
        bench_ladder(tts, [("without", without), ("with", replace(without, channels_last=True))], codes=4, runs=1, warmup=0)
        assert tts.channels_last_wish is None
        assert shown()


def test_the_autotuner_is_the_processs_own_until_set_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with IndexTTS2.from_random("small", device="cpu") as tts:
        assert tts.cudnn_benchmark
        tts.cudnn_benchmark = False
        with tts._stages.running():
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark


# -------------------------------------------------------------------------------------------------------- 8-bit weights


@pytest.mark.parametrize(("kind", "least", "most"), [("int8", 1e-3, 1.5e-2), ("fp8", 1e-2, 5e-2)])
def test_weights_of_8_bits_cost_what_is_stated(kind: str, least: float, most: float) -> None:
    torch.manual_seed(0)
    layer = Conv1D(256, 192)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 256)
    with torch.no_grad():
        exact, found = layer(x), QuantisedConv1D(layer, kind)(x)
    assert least < float((found - exact).norm() / (exact - layer.bias.detach()).norm()) < most
    assert QuantisedConv1D(layer, kind).weight.element_size() == 1


def test_weights_of_8_bits_are_a_switch(engine: IndexTTS2) -> None:
    expected = speak(engine)
    engine.set_gpt_weights("int8")
    try:
        assert isinstance(engine._stages.gpt.gpt.h[0].attn.c_attn, QuantisedConv1D)
        assert engine.last_telemetry.settings["gpt_weights"] == "full"
        speak(engine)
        assert engine.last_telemetry.settings["gpt_weights"] == "int8"
        engine.set_precision("bf16")
        assert engine._stages.gpt.gpt.h[0].attn.c_attn.product == torch.bfloat16
        engine.set_precision("fp32")
    finally:
        engine.set_gpt_weights("full")
    assert np.array_equal(speak(engine), expected)
    with pytest.raises(ValueError, match="choose one of full, int8, fp8"):
        check_weights("int4", CPU)


def test_an_output_without_weights_stays_zero() -> None:
    layer = Conv1D(8, 3)
    with torch.no_grad():
        layer.weight[:, 1] = 0
        stack = torch.nn.Sequential(layer)
        quantise(stack, "int8")
        y = stack(torch.ones(1, 8))
    assert torch.isfinite(y).all()
    assert y[0, 1] == 0


# ---------------------------------------------------------------------------------------------------------- whole loops


def test_a_whole_solve_is_one_graph_per_step_count() -> None:
    model = random_s2mel()
    solver = fast(model, bucket_frames=64, whole_loop=True)
    recorded: list[object] = []
    solver.graphs = StepGraphs(solver.step, CPU, record=lambda call: (recorded.append(call), call)[1])
    for frames, prompt, steps in ((60, 25, 4), (50, 9, 4), (60, 25, 2)):
        inputs, seen = utterance(frames, prompt), []
        mel = solver.solve(**inputs, steps=steps, guidance=0.7, on_step=lambda done, of, seen=seen: seen.append((done, of)))
        assert_same(mel, plain(model, inputs, steps))
        assert seen == [(n + 1, steps) for n in range(steps)]
    assert len(recorded) == 2


# --------------------------------------------------------------------------------------------------- attention, DeepSpeed


def test_the_flash_attn_package_is_taken_when_it_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        used.append(q.shape)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    package = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setattr(solver_attention.importlib, "import_module", lambda _: package)
    model, inputs = random_s2mel(), utterance(20, 5)
    solver = FastSolver(model, CPU, torch.bfloat16, use_graphs=False)
    expected = solver.solve(**inputs, steps=2, guidance=0.7)
    assert not used
    token = attention._PACKAGE.set(True)
    try:
        found = solver.solve(**inputs, steps=2, guidance=0.7)
        assert len(used) == 10
        assert_same(FastSolver(model, CPU, use_graphs=False).solve(**inputs, steps=2, guidance=0.7), plain(model, inputs, 2))  # float32
    finally:
        attention._PACKAGE.reset(token)
    assert len(used) == 10
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_attention_kernels_are_put_back() -> None:
    before = torch.backends.cuda.flash_sdp_enabled()
    with attention.attention_kernel("math", CPU):
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert not attention._PACKAGE.get()
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_deepspeed_takes_the_plain_gpt_over(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    def init_inference(model: torch.nn.Module, **options: object) -> object:
        given.update(options)
        return types.SimpleNamespace(module=model)

    monkeypatch.setattr(deepspeed, "deepspeed_available", lambda: True)
    monkeypatch.setattr(deepspeed.importlib, "import_module", lambda _: types.SimpleNamespace(init_inference=init_inference))
    expected = speak(engine)
    engine.use_deepspeed = True
    try:
        assert given["dtype"] == torch.float32
        assert np.array_equal(speak(engine), expected)
        assert engine.last_telemetry.settings["deepspeed"]
    finally:
        engine.use_deepspeed = False


def test_deepspeed_that_fails_leaves_the_normal_path(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: str) -> object:
        raise OSError("no compiler")

    monkeypatch.setattr(deepspeed.importlib, "import_module", broken)
    stack = torch.nn.Linear(2, 2)
    assert deepspeed.with_deepspeed(stack, torch.float32) is stack
    assert "no compiler" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_that_is_missing_is_one_warning(engine: IndexTTS2) -> None:
    with pytest.warns(UserWarning, match="not installed") as caught:
        engine.use_deepspeed = True
    assert len(caught) == 1
    assert not engine.use_deepspeed
