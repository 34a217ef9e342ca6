"""On a GPU: the switches change speed and never the result, memory comes back, and the gauges tell the truth."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.engine.decode import StaticDecoder
from indextts.engine.precision import copy_to
from indextts.engine.solver import FastSolver
from indextts.utils.gpu_config import GPUConfig
from indextts.utils.resource_monitor import ResourceMonitor, get_vram_summary, predict_oom_risk

pytestmark = pytest.mark.gpu
CALL: dict[str, Any] = {"text": "The river ran past the old mill.", "seed": 3, "diffusion_steps": 4, "num_beams": 3}
CODES = 40


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cuda") as tts:
        yield tts


def fast_parts(tts: IndexTTS2) -> tuple[StaticDecoder, FastSolver]:
    decoder, solver = tts._stages.decoder, tts._stages.solver
    assert decoder is not None
    assert solver is not None
    return decoder, solver


def speak(tts: IndexTTS2, **changes: Any) -> np.ndarray:
    _, samples = tts.infer_forced(CODES, spk_audio_prompt=made_up_clip(), **{**CALL, **changes})
    return samples.astype(np.int32)


def test_the_gpu_computes_what_the_cpu_computes() -> None:
    with IndexTTS2.from_random("small", device="cpu") as cpu, IndexTTS2.from_random("small", device="cuda") as gpu:
        speaker = {}
        for tts in (cpu, gpu):
            stages = tts._stages
            rate, clip = made_up_clip()
            with stages.running():
                prompt = stages.speaker_prompt(clip, rate)
                emotion = stages.merge_emotion(prompt, stages.emotion_prompt(clip, rate), 1.0)
                ids = torch.arange(5, 25, device=tts.device)[None]
                codes = torch.arange(3, 33, device=tts.device)[None]
                latents = stages.codes_to_latents(ids, prompt, emotion, codes)
                wave = stages.mel_to_wave(prompt.mel)
            speaker[tts.device.type] = [prompt.features, prompt.style, prompt.condition, prompt.latents, emotion, latents, wave]
        for on_cpu, on_gpu in zip(speaker["cpu"], speaker["cuda"], strict=True):
            torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=2e-4, rtol=2e-4)


def test_the_same_seed_gives_the_same_sound(engine: IndexTTS2) -> None:
    assert np.array_equal(speak(engine), speak(engine))


@pytest.mark.parametrize("beams", [1, 3])
def test_neither_acceleration_nor_graphs_change_the_sound(engine: IndexTTS2, beams: int) -> None:
    sounds = {}
    try:
        engine.use_accel = False
        engine.disable_cuda_graphs()
        assert not engine.cuda_graphs_enabled
        sounds["plain"] = speak(engine, num_beams=beams)
        engine.use_accel = True
        assert not engine.cuda_graphs_enabled
        sounds["accelerated"] = speak(engine, num_beams=beams)
        assert engine.enable_cuda_graphs(warmup_steps=3)
        assert engine.cuda_graphs_enabled
        sounds["captured"], sounds["replayed"] = (speak(engine, num_beams=beams) for _ in range(2))
        assert fast_parts(engine)[0].use_graphs
        assert fast_parts(engine)[1].graphs is not None
        assert fast_parts(engine)[1].captured
        assert engine.cache_memory_mb >= engine._stages.buffer_memory_mb > 0
        engine.use_accel = False
        assert engine.cuda_graphs_enabled
        sounds["plain, vocoder captured"] = speak(engine, num_beams=beams)
    finally:
        engine.use_accel = True
        engine.disable_cuda_graphs()
        assert engine._stages.buffer_memory_mb == 0
        engine.enable_cuda_graphs()
    for name, sound in sounds.items():
        assert sound.shape == sounds["plain"].shape, name
        assert abs(sound - sounds["plain"]).max() <= 1, name
    assert np.array_equal(sounds["captured"], sounds["replayed"])


def test_the_accelerated_path_uses_graphs_by_itself() -> None:
    with IndexTTS2.from_random("small", device="cuda") as fast, IndexTTS2.from_random("small", device="cuda", use_accel=False) as plain:
        assert fast.cuda_graphs_enabled
        assert not plain.cuda_graphs_enabled
        speak(fast)
        assert fast_parts(fast)[0].use_graphs
        assert fast_parts(fast)[1].captured
        assert fast.last_telemetry.settings["use_accel"]


def test_a_voice_that_ends_by_itself_and_several_segments(engine: IndexTTS2) -> None:
    """Not forced to a number of codes, the way users call it."""
    call = {**CALL, "spk_audio_prompt": made_up_clip(), "text": "One two three. Four five six. Seven eight nine.", "max_mel_tokens": 40}
    call |= {"max_text_tokens_per_segment": 20, "emo_vector": [0.2, 0, 0.4, 0, 0, 0, 0, 0]}
    sounds = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        for accelerated in (True, False):
            engine.use_accel = accelerated
            sounds.append(engine.infer(**call)[1].astype(np.int32))
    engine.use_accel = True
    assert sounds[0].shape == sounds[1].shape
    assert abs(sounds[0] - sounds[1]).max() <= 1


def test_closing_another_engine_does_not_disturb_this_one(engine: IndexTTS2) -> None:
    """What libraries share between the graphs of a process must not be freed under those of another engine."""
    before = speak(engine)
    with IndexTTS2.from_random("small", seed=1, device="cuda") as other:
        speak(other)
        filler = [torch.full((1 << 22,), float("nan"), device="cuda") for _ in range(4)]
    del filler
    gc.collect()
    torch.cuda.empty_cache()
    filler = [torch.full((1 << 22,), float("nan"), device="cuda") for _ in range(16)]
    after = speak(engine)
    assert all(bool(x.isnan().all()) for x in filler), "a graph wrote to memory that it no longer owns"
    assert np.array_equal(before, after)


def test_graphs_survive_a_change_of_precision(engine: IndexTTS2) -> None:
    plain = speak(engine)
    engine.enable_cuda_graphs()
    for precision in ("bf16", "tf32"):
        engine.set_precision(precision)
        speak(engine)
    engine.set_precision("fp32")
    assert engine.cuda_graphs_enabled
    assert abs(speak(engine) - plain).max() <= 1


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_precision_can_be_changed_and_changed_back(engine: IndexTTS2, precision: str) -> None:
    plain = speak(engine)
    engine.set_precision(precision)
    assert np.isfinite(speak(engine)).all()
    engine.set_precision("fp32")
    assert np.array_equal(speak(engine), plain)


def test_16_bit_latents_are_near(engine: IndexTTS2) -> None:
    gpt = engine._stages.gpt
    ids, codes = torch.arange(5, 25, device="cuda")[None], torch.arange(3, 33, device="cuda")[None]
    conditioning = torch.randn(1, gpt.config.condition_num_latent + 2, gpt.config.model_dim, device="cuda")
    with torch.inference_mode():
        exact = gpt.latents(conditioning, ids, None, codes, None)
        for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
            with torch.autocast("cuda", dtype=dtype):
                near = copy_to(gpt, torch.device("cuda"), dtype).latents(conditioning, ids, None, codes, None)
            assert float((near.float() - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize("kernel", ["cudnn", "flash", "efficient", "math"])
def test_attention_kernels_agree(engine: IndexTTS2, kernel: str) -> None:
    plain = speak(engine)
    engine.set_attention(kernel)
    try:
        other = speak(engine)
    finally:
        engine.set_attention("auto")
    assert other.shape == plain.shape


def test_stage_times_are_device_times_and_add_up(engine: IndexTTS2) -> None:
    speak(engine)
    record = engine.last_telemetry
    assert min(record.gpt_s, record.s2mel_s, record.bigvgan_s, record.other_s) >= 0
    assert record.gpt_s + record.s2mel_s + record.bigvgan_s + record.other_s == pytest.approx(record.total_s)
    assert record.peak_vram_mb > 0


def test_closing_gives_all_memory_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with IndexTTS2.from_random("small", device="cuda") as tts:
        tts.enable_cuda_graphs()
        speak(tts)
        assert (used := torch.cuda.memory_allocated()) > 0
        assert fast_parts(tts)[0].use_graphs
        assert fast_parts(tts)[1].captured
    gc.collect()
    assert torch.cuda.memory_allocated() < used
    assert torch.cuda.memory_allocated() <= before  # what an earlier test left may have gone meanwhile


def test_eviction_frees_device_memory(engine: IndexTTS2) -> None:
    speak(engine)
    held = torch.cuda.memory_allocated()
    engine.clear_caches()
    assert torch.cuda.memory_allocated() < held
    assert engine.cache_memory_mb == 0
    assert fast_parts(engine)[1].captured == []
    assert fast_parts(engine)[0].memory_mb == 0
    reserved = torch.cuda.memory_reserved()
    speak(engine)
    engine.clear_caches()
    assert torch.cuda.memory_reserved() <= reserved


def test_the_monitor_agrees_with_torch() -> None:
    used, total, percent = get_vram_summary(0)
    assert total == pytest.approx(torch.cuda.get_device_properties(0).total_memory / 2**20, rel=0.05)
    assert 0 < used < total
    assert percent == pytest.approx(100 * used / total, abs=0.5)
    assert predict_oom_risk(0, threshold_percent=0.0001)
    assert not predict_oom_risk(0, threshold_percent=100)
    stats = ResourceMonitor().get_gpu_stats(0)
    assert stats is not None
    assert stats.name == torch.cuda.get_device_name(0)


def test_optimal_settings_are_applied() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        settings = GPUConfig.apply_optimal_settings(0)
        capability = torch.cuda.get_device_capability(0)
        assert settings["use_bf16"] is (capability >= (8, 0))
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cuda.matmul.allow_tf32 is settings["use_tf32"]
        assert GPUConfig.list_available_gpus()[0]["name"] == torch.cuda.get_device_name(0)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
