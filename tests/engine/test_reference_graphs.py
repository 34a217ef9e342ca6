"""Reading clips in buckets: if these fail, graphs change a voice by what fills its clip up, or keep a network that has been replaced."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from indextts import IndexTTS2
from indextts.audio import emotion_waveform
from indextts.bench import made_up_clip
from indextts.config import CAMPPlusConfig, SemanticCodecConfig
from indextts.engine import stage_switches
from indextts.engine.reference_cache import EmotionPrompt, SpeakerPrompt
from indextts.engine.reference_graphs import TOKENS_BUCKET, ReferencePass, speaker_pass
from indextts.engine.stage_switches import StageSwitches
from indextts.engine.stages import Stages
from indextts.models.campplus import CAMPPlus
from indextts.models.gpt import UnifiedVoice
from indextts.models.semantic_codec import SemanticCodec
from indextts.models.semantic_encoder import SemanticEncoder, semantic_features_frontend
from tests.engine.test_pass_graphs import Pretended
from tests.tiny_gpt import CONFIG

Clip = tuple[np.ndarray, int]
Prompt = SpeakerPrompt | EmotionPrompt
BUCKET_S = TOKENS_BUCKET / 50
LENGTHS = [0.3, 0.98, 1.0, BUCKET_S + 0.015, BUCKET_S + 0.025, 3.31]  # of 10 ms frames some are odd, some even; two end with a bucket


def clip(seconds: float, seed: int = 0) -> Clip:
    rate, samples = made_up_clip(seconds)
    noise = np.random.default_rng(seed).normal(0, 0.01, len(samples))
    return (samples + noise).astype(np.float32), rate


def reading(stages: Stages) -> ReferencePass:
    """What graphs do, without graphs."""
    return ReferencePass(stages.semantic_encoder, stages.semantic_codec, stages.campplus, stages.gpt, stages.dtype, Pretended)


def in_bucket(stages: Stages, ask: Callable[[Stages], Any]) -> Any:
    """The first clip of a bucket is read by eager launches, so ask twice."""
    with stages.running():
        first, second = ask(stages), ask(stages)
    if stages.reference is not None and stages.device.type == "cpu":
        for ours, theirs in zip(*(one if isinstance(one, tuple) else (one,) for one in (first, second)), strict=True):
            assert_same(ours, theirs, 0)
    return second


def plainly(stages: Stages, ask: Callable[[Stages], Any]) -> Any:
    held, stages.reference = stages.reference, None
    try:
        with stages.running():
            return ask(stages)
    finally:
        stages.reference = held


def assert_same(found: Prompt, expected: Prompt, tolerance: float = 1e-5) -> None:
    """Each tensor within ``tolerance`` of the largest value."""
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if theirs is not None:
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(
                ours, theirs, atol=tolerance * float(theirs.abs().max()), rtol=0, msg=lambda m, f=field: f"{f.name}: {m}"
            )


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture
def stages(engine: IndexTTS2) -> Iterator[Stages]:
    stages = engine._stages
    stages.reference = reading(stages)
    yield stages
    stages.reference = None


def test_the_lengths_hold_every_case() -> None:
    last = [int(semantic_features_frontend(emotion_waveform(*clip(seconds)))[1][0, -1]) for seconds in LENGTHS]
    assert set(last) == {0, 1}
    tokens = [semantic_features_frontend(emotion_waveform(*clip(seconds)))[1].shape[1] for seconds in LENGTHS]
    assert {TOKENS_BUCKET, TOKENS_BUCKET + 1} <= set(tokens)


@pytest.mark.parametrize("seconds", LENGTHS)
def test_a_bucket_changes_nothing(stages: Stages, seconds: float) -> None:
    for ask in (lambda on: on.speaker_prompt(*clip(seconds)), lambda on: on.emotion_prompt(*clip(seconds))):
        found, expected = in_bucket(stages, ask), plainly(stages, ask)
        assert_same(found, expected)
        if isinstance(found, SpeakerPrompt):
            felt = plainly(stages, lambda on: on.emotion_prompt(*clip(0.5)))
            merged = plainly(stages, lambda on, prompt=expected, felt=felt: on.merge_emotion(prompt, felt, 0.3))
            ours = plainly(stages, lambda on, prompt=found, felt=felt: on.merge_emotion(prompt, felt, 0.3))
            torch.testing.assert_close(ours, merged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("voice", "emotion"), [(3.31, 0.98), (0.98, 3.31), (1.0, 1.0), (BUCKET_S + 0.025, 0.3)])
def test_two_clips_in_a_bucket_are_what_each_is_alone(stages: Stages, voice: float, emotion: float) -> None:
    speaker, felt = in_bucket(stages, lambda on: on.both_prompts(clip(voice), clip(emotion, 1)))
    assert_same(speaker, plainly(stages, lambda on: on.speaker_prompt(*clip(voice))))
    assert_same(felt, plainly(stages, lambda on: on.emotion_prompt(*clip(emotion, 1))))
    torch.testing.assert_close(speaker.emotion, plainly(stages, lambda on: on._emotion_of(speaker.features)), atol=1e-5, rtol=1e-5)


def test_one_graph_serves_many_lengths_from_the_second_clip_on(stages: Stages) -> None:
    passes = stages.reference
    assert passes is not None
    with stages.running():
        for number, seconds in enumerate((0.9, 0.4, 1.1, 0.6)):
            stages.speaker_prompt(*clip(seconds))
            stages.emotion_prompt(*clip(seconds))
            assert [len(call.shapes) for call in passes._replayed] == [int(number > 0)] * 3
        stages.speaker_prompt(*clip(BUCKET_S + 0.2))
        assert len(passes._replayed.speaker.shapes) == 1
        stages.both_prompts(clip(0.4), clip(BUCKET_S + 0.2))
        stages.both_prompts(clip(0.4), clip(BUCKET_S + 0.2))
    assert [len(call.shapes) for call in passes._replayed] == [1, 2, 1]
    assert stages.graphs_in_use
    assert stages.buffer_memory_mb >= passes.memory_mb == 6.0
    stages.clear_buffers()
    assert not any(call.shapes for call in passes._replayed)


def test_what_is_captured_never_waits_for_the_device_nor_copies_to_it() -> None:
    """Tensors of a pretended GPU have no values to look at, and do not mix with the CPU's."""

    class OnGpuAlone(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function: Any, _: Any, given: Any = (), named: Any = None) -> Any:
            result = function(*given, **(named or {}))
            tensors = [x for x in tree_leaves((given, named, result)) if isinstance(x, torch.Tensor)]
            assert {x.device.type for x in tensors} <= {"cuda"}, function
            self.calls += 1
            return result

    w2v = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    codec_config = SemanticCodecConfig(hidden_size=16, vocos_dim=8, vocos_intermediate_dim=16, vocos_num_layers=2, codebook_size=32)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        encoder, codec = SemanticEncoder(w2v, hidden_state=2), SemanticCodec(codec_config)
        campplus = CAMPPlus(CAMPPlusConfig(feat_dim=24, embedding_size=12, growth_rate=8, bn_size=2, init_channels=16)).eval()
        gpt = UnifiedVoice(replace(CONFIG, feature_dim=16)).eval()
        features, fbank = torch.empty(2, 64, 160), torch.empty(1, 128, 24)
        mask, lengths = torch.empty(2, 64, dtype=torch.int64), torch.empty(2, dtype=torch.int64)
        with OnGpuAlone() as watch:
            _, emotions, quantised, latents = speaker_pass(encoder, gpt, codec, None, features, mask, lengths)
            style = campplus(fbank, lengths[:1])
    assert watch.calls > 500
    assert [x.shape for x in (emotions, quantised, latents, style)] == [(2, 32), (1, 64, 16), (1, 4, 32), (1, 12)]
    assert emotions.dtype == torch.float32


def test_switches_drop_what_was_captured(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is captured next is of the network in force."""
    monkeypatch.setattr(StageSwitches, "_captures", property(lambda _: True))
    monkeypatch.setattr(stage_switches, "ReferencePass", partial(ReferencePass, call=Pretended))

    def ask(on: Stages) -> SpeakerPrompt:
        return on.speaker_prompt(*clip(1.0))

    def captured() -> ReferencePass:
        found = in_bucket(stages, ask)
        assert_same(found, plainly(stages, ask), 1e-5 if stages.dtype is None else 2e-2)
        assert stages.reference is not None
        assert stages.reference._replayed.speaker.shapes
        return stages.reference

    switches: dict[str, Callable[[], object]] = {
        "bf16": lambda: stages.set_precision("bf16"),
        "fp32": lambda: stages.set_precision("fp32"),
        "8 bits": lambda: stages.set_weights("int8"),
        "full": lambda: stages.set_weights("full"),
        "accel": lambda: stages.set_accel(True),
    }
    for name, switch in switches.items():
        before = captured()
        call = before._replayed.speaker
        switch()
        assert stages.reference is not before, name
        assert not call.shapes, name
    before = captured()
    for low in (True, False):
        call = before._replayed.speaker
        stages.set_low_memory(low)
        assert not call.shapes
        assert not before._replayed.speaker.shapes
        if low:
            assert_same(in_bucket(stages, ask), plainly(stages, ask))
            assert not before._replayed.speaker.shapes, "weights that come and go cannot be captured"
    captured()
    stages.set_accel(False)
    assert stages.reference is None
    monkeypatch.undo()
    stages.set_accel(True)
    assert stages.reference is None


def test_a_capture_that_fails_is_said_once_and_changes_nothing(stages: Stages, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("no graphs today")

    def ask(on: Stages) -> tuple[Prompt, ...]:
        return on.both_prompts(clip(1.0), clip(0.8))

    assert stages.reference is not None
    stages.reference._replayed = stages.reference._replayed._replace(style=Pretended(refuse, 0))
    with caplog.at_level(logging.WARNING):
        found = [in_bucket(stages, ask) for _ in range(2)]
    assert len(caplog.records) == 1
    assert "no graphs today" in caplog.text
    assert stages.reference is None
    expected = plainly(stages, ask)
    for prompts in found:
        for ours, theirs in zip(prompts, expected, strict=True):
            assert_same(ours, theirs, 0)


def test_a_lack_of_memory_is_no_failed_capture(stages: Stages) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    passes = stages.reference
    assert passes is not None
    passes._replayed = passes._replayed._replace(speaker=full)
    with pytest.raises(torch.OutOfMemoryError):
        in_bucket(stages, lambda on: on.speaker_prompt(*clip(1.0)))
    assert stages.reference is passes


# ------------------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cuda") as tts:
        yield tts


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-2), ("fp16", 1e-2)])
def test_replayed_prompts_equal_eager_ones(on_gpu: IndexTTS2, precision: str, tolerance: float) -> None:
    on_gpu.set_precision(precision)
    stages = on_gpu._stages
    passes = stages.reference
    assert passes is not None
    for seconds in LENGTHS:
        for ask in (
            lambda on, s=seconds: (on.speaker_prompt(*clip(s)),),
            lambda on, s=seconds: (on.emotion_prompt(*clip(s)),),
            lambda on, s=seconds: on.both_prompts(clip(s), clip(1.9, 1)),
            lambda on, s=seconds: on.both_prompts(clip(1.9, 1), clip(s)),
        ):
            expected = plainly(stages, ask)
            for found in (in_bucket(stages, ask), in_bucket(stages, ask)):
                for ours, theirs in zip(found, expected, strict=True):
                    assert_same(ours, theirs, tolerance)
    assert stages.reference is passes, "a capture failed"
    assert len(passes._replayed.speaker._captured) > 2


@pytest.mark.gpu
def test_captures_take_turns_in_their_memory_and_give_it_back(on_gpu: IndexTTS2) -> None:
    on_gpu.set_precision("fp32")
    stages = on_gpu._stages
    stages.clear_buffers()
    passes = stages.reference
    assert passes is not None

    def ask(on: Stages, seconds: float) -> tuple[Prompt, ...]:
        return on.both_prompts(clip(seconds), clip(seconds, 1))

    expected = {seconds: plainly(stages, partial(ask, seconds=seconds)) for seconds in (5.0, 4.0, 3.0, 2.0)}
    held = []
    for seconds in expected:
        in_bucket(stages, partial(ask, seconds=seconds))
        held.append(passes.memory_mb)
    assert held[-1] < 2 * max(held[0], 8)
    for _ in range(2):
        for seconds, prompts in expected.items():
            for ours, theirs in zip(in_bucket(stages, partial(ask, seconds=seconds)), prompts, strict=True):
                assert_same(ours, theirs, 1e-4)
    assert stages.reference is passes
    stages.clear_buffers()
    gc.collect()
    torch.cuda.empty_cache()
    assert passes.memory_mb == 0
    in_bucket(stages, partial(ask, seconds=2.0))
    assert stages.reference is passes, "a new pool after the old one"


@pytest.mark.gpu
def test_a_replaced_network_is_not_replayed(on_gpu: IndexTTS2) -> None:
    on_gpu.set_precision("fp32")
    stages = on_gpu._stages

    def ask(on: Stages) -> tuple[Prompt, ...]:
        return on.both_prompts(clip(1.0), clip(1.9, 1))

    in_bucket(stages, ask)
    for switch in (
        lambda: setattr(on_gpu, "low_memory", True),
        lambda: setattr(on_gpu, "low_memory", False),
        on_gpu.disable_cuda_graphs,
        on_gpu.enable_cuda_graphs,
    ):
        switch()
        filler = [torch.full((1 << 22,), float("nan"), device="cuda") for _ in range(8)]
        expected = plainly(stages, ask)
        for found in (in_bucket(stages, ask), in_bucket(stages, ask)):
            for ours, theirs in zip(found, expected, strict=True):
                assert_same(ours, theirs, 1e-4)
        assert all(bool(x.isnan().all()) for x in filler)
    assert stages.reference is not None
