"""If this fails, a fault in the middle of the work leaves a half file, a wrong next result, or an engine that answers no more."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.audio import replace_file
from indextts.bench import made_up_clip
from indextts.engine.stages import Stages
from indextts.utils.resource_monitor import ResourceMonitor, get_vram_summary, predict_oom_risk

CALL: dict[str, Any] = {"text": "Hello there.", "max_mel_tokens": 8, "diffusion_steps": 1, "num_beams": 1, "seed": 5}
STAGES = ("both_prompts", "merge_emotion", "text_to_codes", "codes_to_latents", "codes_to_mel", "mel_to_wave")


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture(scope="module")
def expected(engine: IndexTTS2) -> np.ndarray:
    return speak(engine)


def speak(tts: IndexTTS2, **changes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped", RuntimeWarning)
        result = tts.infer(**{"spk_audio_prompt": made_up_clip(1.0), **CALL, **changes})
    return result[1] if isinstance(result, tuple) else result


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
FAULTS = [
    *((stage, OUT_OF_MEMORY) for stage in STAGES),
    ("codes_to_mel", RuntimeError("CUDA error: device-side assert triggered")),
    ("text_to_codes", MemoryError()),
    ("mel_to_wave", KeyboardInterrupt()),
]


@pytest.mark.parametrize(("stage", "fault"), FAULTS, ids=lambda part: part if isinstance(part, str) else type(part).__name__)
def test_a_fault_in_a_stage(
    engine: IndexTTS2, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, fault: BaseException
) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(b"old")
    engine.clear_caches()  # or the prompts would not be made again
    fired = []

    def fail(*_: Any, **__: Any) -> Any:
        fired.append(1)
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(Stages, stage, fail)
        with pytest.raises((type(fault), RuntimeError)):
            speak(engine, output_path=path)
        assert fired
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert np.array_equal(speak(engine), expected)


def test_a_fault_of_one_caller_is_not_the_next_ones(engine: IndexTTS2, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Stages.text_to_codes, []

    def sometimes(self: Stages, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) % 2:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Stages, "text_to_codes", sometimes)
    outcomes: list[Any] = []

    def caller() -> None:
        try:
            outcomes.append(engine.infer(made_up_clip(1.0), **CALL)[1])
        except Exception as error:
            outcomes.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=caller) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sum(isinstance(outcome, RuntimeError) for outcome in outcomes) == 3
    assert sum(np.array_equal(outcome, expected) for outcome in outcomes if isinstance(outcome, np.ndarray)) == 3


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(b"old")

    def interrupt(self: Path, *_: Any) -> None:
        with self.open("ab") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_gauges_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest about an NVML that lies is in ``test_resource_monitor``."""
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    if not torch.cuda.is_available():
        assert ResourceMonitor().get_gpu_stats(0) is None
        assert get_vram_summary() == (0.0, 0.0, 0.0)
        assert predict_oom_risk() is False
