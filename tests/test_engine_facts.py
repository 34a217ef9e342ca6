"""Switches, gauges and the model card as data: what panels show must be what the engine is."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from indextts import IndexTTS2, infer_v2_modded
from indextts.gauges import CACHE_KINDS, MemoryLog, cache_sizes_mb, read_memory
from indextts.model_card import model_card
from indextts.switches import apply_recommended, available_switches, captured, describe_device, recommended_settings, set_switch


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


def switches(tts: IndexTTS2) -> dict[str, Any]:
    return {switch.name: switch for switch in available_switches(tts)}


def test_what_the_cpu_cannot_do_is_refused_in_words(engine: IndexTTS2) -> None:
    found = switches(engine)
    refused = {(s.name, c.value): c.reason for s in found.values() for c in s.choices if not c.usable}
    assert "compute capability 8.0" in refused["precision", "tf32"]
    assert "not supported on the CPU" in refused["precision", "fp16"]
    assert "compute capability" in refused["attention", "flash"]
    assert "CUDA GPU" in refused["cuda_graphs", True]
    assert not found["cuda_graphs"].usable
    assert not any(found[name].value or found[name].usable for name in ("vocoder_graphs", "fusion", "whole_loop_graph"))
    assert "on: needs a CUDA GPU" in found["cuda_graphs"].reason
    for (name, value), reason in refused.items():
        with pytest.raises(ValueError, match="cannot be"):
            set_switch(engine, name, value)
        assert reason
    assert engine.precision == "fp32"
    json.dumps([switch.to_dict() for switch in found.values()])


def test_turning_a_switch_turns_the_engine(engine: IndexTTS2) -> None:
    before = {name: switch.value for name, switch in switches(engine).items()}
    changes = {
        "precision": "bf16",
        "attention": "math",
        "use_accel": False,
        "gpt_weights": "int8",
        "low_memory": True,
        "batch_size": 2,
        "num_beams": 2,
        "diffusion_steps": 3,
        "cache_limit_mb": 100,
    }
    try:
        for name, value in changes.items():
            set_switch(engine, name, value)
            assert switches(engine)[name].value == value
        request = engine._bound_request({"spk_audio_prompt": engine.default_voice(), "text": "One."})
        assert (request.sampling.num_beams, request.diffusion_steps) == (2, 3)
        assert (engine.precision, engine.attention, engine.use_accel, infer_v2_modded.MAX_CACHE_SIZE_MB) == ("bf16", "math", False, 100)
        assert set(apply_recommended(engine)) == {"precision", "attention", "use_accel"}
    finally:
        for name, value in before.items():
            if switches(engine)[name].usable and switches(engine)[name].value != value:
                set_switch(engine, name, value)
    assert {name: switch.value for name, switch in switches(engine).items()} == before
    assert recommended_settings(engine)["precision"] == "fp32", "on the CPU"
    assert "cpu" in describe_device(engine)


def test_values_that_do_not_exist(engine: IndexTTS2) -> None:
    with pytest.raises(ValueError, match="no switch 'turbo'"):
        set_switch(engine, "turbo", True)
    with pytest.raises(ValueError, match="choose one of"):
        set_switch(engine, "precision", "fp4")
    for value in (0, 17, 2.5, True, "3"):
        with pytest.raises(ValueError, match="whole number from 1 to 16"):
            set_switch(engine, "num_beams", value)


@pytest.mark.filterwarnings("ignore:generation was stopped")
def test_captured_and_caches_follow_a_run(engine: IndexTTS2) -> None:
    engine.clear_caches()
    assert captured(engine) == ["Nothing is captured or compiled yet."]
    engine.infer(engine.default_voice(), "One two.", seed=1, num_beams=1, do_sample=False)
    assert "cache shape" in captured(engine)[0]
    sizes = cache_sizes_mb(engine)
    assert set(sizes) == set(CACHE_KINDS)
    assert min(sizes["voices"], sizes["KV buffers"]) > 0
    assert sum(sizes.values()) == pytest.approx(engine.cache_memory_mb)


@pytest.mark.filterwarnings("ignore:generation was stopped")
def test_memory_log(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    reading = read_memory(engine)
    assert reading.process_mb > 50
    assert (reading.device_used_mb, reading.at_risk, reading.limit_mb) == (None, False, infer_v2_modded.MAX_CACHE_SIZE_MB)
    engine.infer(engine.default_voice(), "One two.", seed=1, num_beams=1)
    log = MemoryLog(engine, most=3)
    log.mark("run", "before all readings", time.time() - 60)
    log.sample()
    log.mark("run", "run 1 began")
    monkeypatch.setattr(infer_v2_modded, "MAX_CACHE_SIZE_MB", 0)
    assert engine.reference_cache.memory_mb > 0
    engine.evict_cache()
    log.sample()
    assert [mark.kind for mark in log.marks] == ["run", "eviction"]
    rows = list(csv.DictReader(io.StringIO(log.to_csv(tmp_path / "memory.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 2
    assert "run 1 began; " in rows[1]["events"]
    assert float(rows[0]["cache_voices_mb"]) > float(rows[1]["cache_voices_mb"]) == 0
    for _ in range(5):
        log.sample()
    assert len(log.readings) == 3, "a ring buffer"
    json.dumps(log.to_dict())
    log.clear()
    assert (log.readings, log.marks) == ([], [])
    with pytest.raises(ValueError, match="1 to 600"):
        MemoryLog(engine, most=601)


def test_model_card_counts_what_is_loaded(engine: IndexTTS2, tmp_path: Any) -> None:
    card = model_card(engine)
    modules = {module.name: module for module in card.modules}
    assert modules["gpt"].parameters == sum(p.numel() for p in engine._stages.gpt.parameters())
    assert (modules["gpt"].dtypes, modules["gpt"].device) == (("float32",), "cpu")
    assert {"gpt", "s2mel", "vocoder", "semantic_encoder", "semantic_codec", "campplus"} <= set(modules)
    assert card.parameters == sum(module.parameters for module in card.modules)
    assert card.vocabulary["text pieces"] == len(engine.tokenizer)
    assert (card.files, card.source) == ((), "random weights, no files")
    json.dumps(card.to_dict())


def test_model_card_of_files(tmp_path: Any) -> None:
    from indextts.release import write_random_release

    folder = write_random_release(tmp_path / "release", "small")
    with IndexTTS2(model_dir=folder, device="cpu", use_qwen_emo=False) as tts:
        files = {fact.path: fact for fact in model_card(tts).files}
        assert "config.yaml" in files
        assert all(fact.size_mb >= 0 and len(fact.modified) == 16 for fact in files.values())
        assert max(files.values(), key=lambda fact: fact.size_mb).size_mb > 1
