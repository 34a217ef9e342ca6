"""On a GPU: float32 originals leave the device and come back, the memory with them, and the sound stays what it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.engine.precision import solver_products
from indextts.engine.solver_times import only_for_tables
from indextts.engine.vocoder import convolutions

pytestmark = pytest.mark.gpu
CALL: dict[str, Any] = {"text": "The river ran past the old mill.", "seed": 3, "diffusion_steps": 4, "num_beams": 3}


@pytest.fixture
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cuda", precision="bf16") as tts:
        yield tts


def speak(tts: IndexTTS2, **changes: Any) -> np.ndarray:
    return tts.infer_forced(40, spk_audio_prompt=made_up_clip(), **{**CALL, **changes})[1].astype(np.int32)


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def devices(tts: IndexTTS2) -> set[str]:
    stages = tts._stages
    layers = [*convolutions(stages.vocoder), *solver_products(stages.s2mel.cfm)]
    return {layer.weight.device.type for layer in layers}


def test_memory_falls_by_the_originals_and_comes_back(engine: IndexTTS2) -> None:
    stages = engine._stages
    first = speak(engine)
    assert devices(engine) == {"cpu"}
    sizes = [stages._voice_originals.bytes, stages._flow_weights.originals.bytes]
    tables = sum(p.numel() * 4 for layer in only_for_tables(stages.s2mel.cfm.estimator) for p in layer.parameters())
    away = allocated()
    with stages.float32_originals():
        assert devices(engine) == {"cuda"}
        there = allocated()
        assert 0.95 * (sum(sizes) + tables) < there - away < 1.3 * (sum(sizes) + tables)
    assert allocated() == away
    assert np.array_equal(speak(engine), first)
    for _ in range(2):
        engine.set_precision("fp32")
        assert devices(engine) == {"cuda"}
        speak(engine)
        engine.set_precision("bf16")
        assert devices(engine) == {"cpu"}
        assert np.array_equal(speak(engine), first)
    assert allocated() < away + 0.2 * sum(sizes), "something kept what was sent away"


def test_the_gpts_text_table_and_head_stay_on_the_cpu(engine: IndexTTS2) -> None:
    gpt = engine._stages.gpt
    assert {gpt.text_head.weight.device.type, gpt.text_embedding.weight.device.type} == {"cpu"}
    conditioning = torch.randn(1, 3, gpt.config.model_dim, device="cuda")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        prefixes = [gpt.prefix(conditioning, ids.to(device)) for device in ("cpu", "cuda")]
    assert all(torch.equal(*pair) for pair in zip(*prefixes, strict=True))
    assert prefixes[0][0].device.type == "cuda"


def test_the_plain_path_and_the_fast_one_take_turns(engine: IndexTTS2) -> None:
    sounds = []
    for accelerated in (True, False, True, False):
        engine.use_accel = accelerated
        assert engine._stages._flow_weights.visiting is accelerated
        sounds.append(speak(engine))
    assert np.array_equal(sounds[0], sounds[2])
    assert np.array_equal(sounds[1], sounds[3])


def test_another_number_of_steps_makes_another_table(engine: IndexTTS2) -> None:
    first = speak(engine, diffusion_steps=5)
    engine._stages.clear_buffers()
    with engine._stages.float32_originals():  # layers of tables stay where they are
        assert np.array_equal(speak(engine, diffusion_steps=5), first)


def test_a_vocoder_that_overflows_runs_in_float32(engine: IndexTTS2) -> None:
    stages = engine._stages
    with stages.float32_originals(), torch.no_grad():
        stages.vocoder.conv_pre.weight.mul_(1e6)
        stages.vocoder.ups[0][0].weight.mul_(1e-6)
    engine.set_precision("bf16")
    assert stages._voice_originals.away
    assert np.abs(speak(engine)).max() > 0
    assert not stages._voice_originals.away
    assert stages.voice.dtype == torch.float32
    assert stages._flow_weights.originals.away
