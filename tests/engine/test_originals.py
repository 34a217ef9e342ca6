"""Float32 weights that wait on the CPU: if these fail, memory is held for nothing, or a voice runs on weights that are not there.

Without a GPU another place is another type: what is away is float64 here, the same numbers, with which no float32 product runs.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from indextts import IndexTTS2
from indextts.engine import flow_weights, stage_switches
from indextts.engine.graphs import GraphedCall
from indextts.engine.originals import Originals
from indextts.engine.precision import copy_to, solver_products
from indextts.engine.solver import FastSolver
from indextts.engine.solver_times import only_for_tables
from indextts.engine.stages import Stages
from indextts.engine.static_cache import KVStorage, StaticCache
from indextts.engine.vocoder import VocoderRunner, convolutions
from indextts.longform import _identity
from indextts.release.random_weights import skeletons
from indextts.release.sizes import release_config
from tests.engine.solver_cases import CPU, plain, random_s2mel, utterance
from tests.engine.test_precision import random_vocoder
from tests.speaking import speak
from tests.tiny_gpt import tiny_gpt

BF16, FP16 = torch.bfloat16, torch.float16


class Elsewhere(Originals):
    """With a place that a CPU does not have."""

    def _sent(self, weight: Tensor) -> Tensor:
        return weight.double()

    def _brought(self, weight: Tensor) -> Tensor:
        return weight.float()


def mel(frames: int = 5) -> Tensor:
    return torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(0))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal_weights(module: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


# -------------------------------------------------------------------------------------------------------------- the mechanism


def test_weights_come_back_with_the_same_bits_and_nobody_keeps_the_old_ones() -> None:
    vocoder = random_vocoder()
    layers, expected = convolutions(vocoder), weights(vocoder)
    originals = Elsewhere(layers, CPU)
    size = originals.bytes
    for _ in range(2):
        held = [weakref.ref(layer.weight) for layer in layers]
        originals.settle(away=True)
        originals.settle(away=True)
        assert originals.away
        assert not any(reference() is not None for reference in held)
        assert {layer.weight.dtype for layer in layers} == {torch.float64}
        assert all(layer.bias is None or layer.bias.dtype == torch.float32 for layer in layers)
        assert originals.bytes == 2 * size  # float64
        held = [weakref.ref(layer.weight) for layer in layers]
        originals.settle(away=False)
        originals.settle(away=False)
        assert not originals.away
        assert not any(reference() is not None for reference in held)
        assert_equal_weights(vocoder, expected)
    assert originals.bytes == size
    assert [name for name, _ in vocoder.named_parameters()] == [name for name in expected if not name.endswith("taps")]


def test_between_devices_and_in_inference_mode() -> None:
    layer = nn.Linear(3, 2)
    kept = layer.weight.detach().clone()
    originals = Originals([layer], CPU, host=torch.device("meta"))
    with torch.inference_mode():
        originals.send_away()
    assert layer.weight.device.type == "meta"
    assert layer.bias.device.type == "cpu"
    assert not layer.weight.is_inference()
    layer.weight = nn.Parameter(kept)  # of a tensor on meta only the shape is left
    with torch.inference_mode():
        originals.bring_back()
    assert not layer.weight.is_inference()
    assert torch.equal(layer.weight, kept)


def test_a_move_that_fails_can_be_tried_again() -> None:
    class Full(Elsewhere):
        room = 2

        def _brought(self, weight: Tensor) -> Tensor:
            self.room -= 1
            if self.room < 0:
                raise torch.OutOfMemoryError("out of memory")
            return super()._brought(weight)

    vocoder = random_vocoder()
    expected, originals = weights(vocoder), Full(convolutions(vocoder), CPU)
    originals.send_away()
    with pytest.raises(torch.OutOfMemoryError):
        originals.bring_back()
    assert originals.away
    originals.room = 1000
    originals.bring_back()
    assert not originals.away
    assert_equal_weights(vocoder, expected)


# ------------------------------------------------------------------------------------------------------------------ the stages


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_vocoder_in_16_bits_needs_no_originals(channels_last: bool) -> None:
    vocoder = random_vocoder()
    originals = Elsewhere(convolutions(vocoder), CPU)
    with torch.inference_mode():
        expected = VocoderRunner(vocoder, CPU, FP16, channels_last=channels_last)(mel())
        originals.send_away()
        assert torch.equal(VocoderRunner(vocoder, CPU, FP16, channels_last=channels_last)(mel()), expected)
        with pytest.raises(RuntimeError):  # so what is away does not run here
            vocoder(mel())


def test_a_wave_that_overflows_brings_them_back(caplog: pytest.LogCaptureFixture) -> None:
    vocoder = random_vocoder()
    with torch.no_grad():
        vocoder.conv_pre.weight.mul_(1e6)
        vocoder.ups[0][0].weight.mul_(1e-6)
    with torch.inference_mode():
        expected = vocoder(mel())
        originals = Elsewhere(convolutions(vocoder), CPU)
        originals.send_away()
        runner = VocoderRunner(vocoder, CPU, FP16, before_float32=originals.bring_back)
        assert all(torch.equal(runner(mel()), expected) for _ in range(2))
    assert not originals.away
    assert len(caplog.records) == 1


@pytest.mark.parametrize("dtype", [BF16, FP16, torch.float32])
def test_a_fast_solver_is_made_from_originals_that_are_away(dtype: torch.dtype) -> None:
    model, inputs = random_s2mel(), utterance(20, 5)
    solve = {"steps": 2, "guidance": 0.7}
    expected = FastSolver(model, CPU, dtype, use_graphs=False).solve(**inputs, **solve)
    Elsewhere(solver_products(model.cfm), CPU).send_away()
    assert torch.equal(FastSolver(model, CPU, dtype, use_graphs=False).solve(**inputs, **solve), expected)


def test_a_solve_that_overflows_is_done_again_from_originals_that_are_away() -> None:
    model, inputs = random_s2mel(), utterance(20, 5)
    with torch.no_grad():
        for layer in model.cfm.estimator.transformer.layers:
            layer.feed_forward.w1.weight.mul_(300)
            layer.feed_forward.w3.weight.mul_(300)
    expected, exact = FastSolver(model, CPU, BF16, use_graphs=False).solve(**inputs, steps=2, guidance=0.7), plain(model, inputs, 2)
    Elsewhere(solver_products(model.cfm), CPU).send_away()
    found = FastSolver(model, CPU, FP16, use_graphs=False).solve(**inputs, steps=2, guidance=0.7)
    assert torch.equal(found, expected)
    assert torch.isfinite(exact).all()


@pytest.mark.parametrize("visiting", [False, True])
def test_the_plain_solver_is_made_from_originals_that_are_away(visiting: bool) -> None:
    model, inputs = random_s2mel(), utterance(20, 5)
    expected_weights = weights(model)
    with torch.inference_mode():
        expected = flow_weights.FlowWeights(model.cfm, CPU).plain(BF16).solve(**inputs, steps=2, guidance=0.7)
        held = flow_weights.FlowWeights(model.cfm, CPU)
        held.originals = Elsewhere(solver_products(model.cfm), CPU)
        held.originals.send_away()
        held.visit(visiting)
        assert torch.equal(held.plain(BF16).solve(**inputs, steps=2, guidance=0.7), expected)
        assert not held.visiting
        assert not any(module._forward_hooks for module in held.plain(BF16).modules())
    held.originals.bring_back()
    assert_equal_weights(model, expected_weights)


def test_tables_from_layers_that_visit_are_the_same() -> None:
    model, inputs = random_s2mel(), utterance(20, 5)
    expected_weights = weights(model)
    solver = FastSolver(model, CPU, BF16, use_graphs=False)
    expected = solver.solve(**inputs, steps=3, guidance=0.7)
    held = flow_weights.FlowWeights(model.cfm, CPU)
    held.visit(True)
    held.visit(True)
    solver.clear()
    assert torch.equal(solver.solve(**inputs, steps=3, guidance=0.7), expected)
    held.visit(False)
    assert_equal_weights(model, expected_weights)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_left_out_of_a_copy_is_shared() -> None:
    source = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    copy = copy_to(source, CPU, BF16, left=[source["b"]])
    assert copy["a"].weight.dtype == BF16
    assert copy["b"].weight is source["b"].weight
    assert copy_to(source, torch.device("meta"), BF16, left=[source["b"]])["b"].weight.device == CPU


# ------------------------------------------------------------------------------------------------------------------ the engine


@pytest.fixture
def sparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that spare memory as on a GPU, with its formats."""
    monkeypatch.setattr(stage_switches, "Originals", Elsewhere)
    monkeypatch.setattr(flow_weights, "Originals", Elsewhere)
    monkeypatch.setattr(Stages, "_spares_memory", property(lambda _: True))
    monkeypatch.setattr(stage_switches, "vocoder_dtype", lambda name, _: FP16 if name in ("bf16", "fp16") else torch.float32)


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


def where(tts: IndexTTS2) -> tuple[bool, bool, bool]:
    """Whether originals of vocoder and solver are away, and layers of tables visit."""
    stages = tts._stages
    return stages._voice_originals.away, stages._flow_weights.originals.away, stages._flow_weights.visiting


@pytest.mark.usefixtures("sparing")
def test_switching_back_and_forth_equals_a_fresh_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: None)
    with IndexTTS2.from_random("small", device="cpu") as tts:
        stages = tts._stages
        assert where(tts) == (False, False, False)
        loaded = {name: weights(getattr(stages, name)) for name in ("s2mel", "vocoder")}
        identity = _identity(tts, {})[0]
        full = speak(tts)
        for _ in range(2):
            tts.set_precision("bf16")
            assert where(tts) == (True, True, True)
            assert _identity(tts, {})[0] == identity
            half = speak(tts)
            tts.use_accel = False
            assert where(tts) == (True, True, False)
            plain_half = speak(tts)
            tts.use_accel = True
            tts.use_torch_compile = True
            assert where(tts) == (True, True, False)
            compiled = speak(tts)
            tts.use_torch_compile = False
            assert where(tts) == (True, True, True)
            tts.channels_last = not tts.channels_last
            speak(tts)
            tts.channels_last = not tts.channels_last
            with stages.float32_originals():
                assert where(tts) == (False, False, False)
                for name, expected in loaded.items():
                    assert_equal_weights(getattr(stages, name), expected)
            assert where(tts) == (True, True, True)
            assert np.array_equal(speak(tts), half)
            tts.set_precision("fp32")
            assert where(tts) == (False, False, False)
            for name, expected in loaded.items():
                assert_equal_weights(getattr(stages, name), expected)
            assert np.array_equal(speak(tts), full)
    with IndexTTS2.from_random("small", device="cpu", precision="bf16") as fresh:
        assert where(fresh) == (True, True, True)
        assert np.array_equal(speak(fresh), half)
        fresh.use_torch_compile = True
        assert np.array_equal(speak(fresh), compiled)
    with IndexTTS2.from_random("small", device="cpu", precision="bf16", use_accel=False) as fresh:
        assert np.array_equal(speak(fresh), plain_half)
    monkeypatch.setattr(Stages, "_spares_memory", property(lambda _: False))
    with IndexTTS2.from_random("small", device="cpu", precision="bf16") as careless:
        assert where(careless) == (False, False, False)
        assert np.array_equal(speak(careless), half)


@pytest.mark.usefixtures("sparing")
def test_an_overflow_in_an_engine_brings_back_what_float32_needs() -> None:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        stages = tts._stages
        with torch.no_grad():
            stages.vocoder.conv_pre.weight.mul_(1e6)
            stages.vocoder.ups[0][0].weight.mul_(1e-6)
        tts.set_precision("bf16")
        assert where(tts)[0]
        speak(tts)
        assert where(tts) == (False, True, True)
        with stages.float32_originals():
            pass
        assert where(tts) == (False, True, True)
        speak(tts)
        tts.set_precision("bf16")  # another attempt
        assert where(tts) == (True, True, True)


# ------------------------------------------------------------------------------------------------------- what else was held


def test_rows_of_a_text_table_that_stays_on_the_cpu() -> None:
    model = tiny_gpt()
    copy = copy_to(model, torch.device("meta"), BF16, left=[model.text_head, model.text_embedding])
    assert copy.text_embedding.weight is model.text_embedding.weight
    prefix, mask = copy.prefix(torch.empty(1, 3, model.config.model_dim, device="meta"), torch.tensor([[5, 6], [7, 0]]))
    assert prefix.device.type == mask.device.type == "meta"


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_that_grows_keeps_its_contents(beams: int, moves: bool) -> None:
    storage = KVStorage(CPU, torch.float32, lambda: None)
    cache = StaticCache(storage, layers=5, heads=2, head_width=4, rows=2, beams=beams)
    if not moves:
        cache.bucket(40, 40)
    old = cache.bucket(16, 40)
    kv, visible = torch.randn_like(old.kv), torch.rand(old.visible.shape) < 0.5
    old.kv.copy_(kv)
    old.visible.copy_(visible)
    new = cache.grow(old, 40, 40)
    assert (new.kv.data_ptr() == old.kv.data_ptr()) is not moves
    assert torch.equal(new.kv[..., :16, :], kv)
    assert torch.equal(new.visible[..., :16], visible)
    assert not new.kv[..., 16:, :].any()
    assert not new.visible[..., 16:].any()


def test_graphs_of_a_call_read_their_inputs_from_the_same_memory() -> None:
    call = GraphedCall(lambda *_: None)
    large, small, lengths = torch.randn(2, 6), torch.randn(1, 4), torch.tensor([3])
    first = call.held_inputs((large, lengths))
    second = call.held_inputs((small, lengths))
    assert first[0].data_ptr() == second[0].data_ptr() != large.data_ptr()
    assert torch.equal(second[0], small)
    (larger, _) = call.held_inputs((torch.randn(3, 6), lengths))
    assert larger.data_ptr() != first[0].data_ptr()
    assert call.held_inputs((small, lengths))[0].data_ptr() == larger.data_ptr()
    assert not first[0].is_inference()
    turned = call.held_inputs((large.t(), lengths))[0]
    assert turned.stride() == large.t().stride()
    assert torch.equal(turned, large.t())


def test_what_may_leave_is_most_of_vocoder_and_solver() -> None:
    """At the release's sizes, in megabytes."""
    networks = skeletons(release_config())
    flow = networks["s2mel"].cfm
    assert 448 < Originals(convolutions(networks["bigvgan"]), CPU).bytes / 1e6 < 449
    assert 292 < Originals(solver_products(flow), CPU).bytes / 1e6 < 293
    assert 75 < sum(4 * p.numel() for layer in only_for_tables(flow.estimator) for p in layer.parameters()) / 1e6 < 76
