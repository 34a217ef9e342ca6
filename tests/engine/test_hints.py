"""Bottleneck hints: advice that does not fit the run's settings would send a user the wrong way."""

from __future__ import annotations

from typing import Any

import pytest

from indextts.engine.hints import find_hints, stage_shares
from indextts.engine.telemetry import SegmentRecord, Telemetry

GPU = {"device": "cuda:0", "precision": "bf16", "use_accel": True, "cuda_graphs": True, "vocoder_graphs": True, "num_beams": 1}


def record(gpt: float, s2mel: float, vocoder: float, other: float, audio_s: float = 5.0, **more: Any) -> Telemetry:
    total = gpt + s2mel + vocoder + other
    settings = {**GPU, "diffusion_steps": 25, "inference_cfg_rate": 0.7, **more.pop("settings", {})}
    return Telemetry(total, gpt, s2mel, vocoder, other, audio_s=audio_s, rtf=total / audio_s, settings=settings, **more)


def texts(telemetry: Telemetry, **more: Any) -> str:
    return " | ".join(f"{hint.text} {hint.advice}" for hint in find_hints(telemetry, **more))


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"use_accel": False}, "static-cache decoder"),
        ({"cuda_graphs": False}, "CUDA graphs"),
        ({"precision": "fp32"}, "16 bits"),
        ({"num_beams": 3}, "1 beam instead of 3"),
        ({}, "Flash Attention"),
        ({"device": "cpu"}, "A GPU"),
    ],
)
def test_gpt_bound_runs_get_the_next_thing_to_try(settings: dict[str, Any], advice: str) -> None:
    found = texts(record(7, 1, 1, 1, settings=settings))
    assert "GPT is the bottleneck: 70 %" in found
    assert advice in found


def test_thresholds_are_the_guides() -> None:
    assert "GPT is the bottleneck" not in texts(record(6, 2, 1, 1))
    assert "GPT is the bottleneck" in texts(record(6.1, 1.9, 1, 1))
    assert "Vocoder is the bottleneck: 41 %" in texts(record(3, 2, 4.1, 0.9, settings={"vocoder_graphs": False}))
    assert "Enable CUDA graphs" in texts(record(3, 2, 4.1, 0.9, settings={"vocoder_graphs": False}))
    assert "Vocoder" not in texts(record(3, 2, 4.0, 1))


def test_solver_bound_runs() -> None:
    assert "10 steps instead of 25" in texts(record(2, 6, 1, 1))
    assert "Guidance 0" in texts(record(2, 6, 1, 1, settings={"diffusion_steps": 8}))
    assert "tf32" in texts(record(2, 6, 1, 1, settings={"precision": "fp32"}))


def test_a_new_voice_is_named_as_the_cause() -> None:
    telemetry = record(1, 1, 1, 3, prompt_s=2.8)
    assert "new reference voice took 2.80 s" in texts(telemetry)
    telemetry.speaker_cache_hit = True
    assert "outside the three stages" in texts(telemetry)


def test_speed_memory_and_cut_off_speech() -> None:
    slow = record(4, 3, 2, 1, audio_s=5.0)
    assert find_hints(slow)[0].kind == "warning"
    assert "RTF 2.00" in find_hints(slow)[0].text
    fast = record(0.4, 0.3, 0.2, 0.1, peak_vram_mb=950, segments=[SegmentRecord(1, 9, 60, 103, 26368, True)])
    assert find_hints(fast)[-1].kind == "good"
    assert "95 % of the device's memory" in texts(fast, total_memory_mb=1000)
    assert "Segment 2 reached the limit" in texts(fast)
    assert find_hints(Telemetry()) == []


def test_shares_add_up() -> None:
    assert sum(stage_shares(record(1, 2, 3, 4)).values()) == pytest.approx(100)
    assert set(stage_shares(Telemetry()).values()) == {0.0}
