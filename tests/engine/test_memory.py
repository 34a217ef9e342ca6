"""If this fails, a full GPU ends in a traceback, a half-written file or an engine that is of no use any more."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from indextts import IndexTTS2, rendering
from indextts.engine.memory import MemoryGauge, OutOfMemory, is_out_of_memory
from indextts.engine.offload import Offloaded
from tests.speaking import TEXT, VOICE
from tests.speaking import speak as speak_at_length

SHORT: dict[str, Any] = {"max_mel_tokens": 9, "diffusion_steps": 1, "num_beams": 1, "seed": 5}
LONG: dict[str, Any] = {"text": TEXT, "max_text_tokens_per_segment": 20}
PLAIN_STAGES = ["both_prompts", "merge_emotion", "text_to_codes", "codes_to_latents", "codes_to_mel", "mel_to_wave"]
BATCH_STAGES = ["encode_batch", "solve_batch", "vocode_batch"]


def speak(tts: IndexTTS2, **changes: Any) -> np.ndarray:
    return speak_at_length(tts, **{**SHORT, **changes})


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


def failing(work: Callable[..., Any], times: int, when: Callable[..., bool] = lambda *_, **__: True) -> Callable[..., Any]:
    """``work``, but memory runs out the first ``times`` times that ``when`` holds of its arguments."""
    left = [times]

    def call(*arguments: Any, **named: Any) -> Any:
        if left[0] and when(*arguments, **named):
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.5 GiB.\nmore lines")
        return work(*arguments, **named)

    return call


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and abs(one.astype(int) - other).max() <= 1


class TestRecovery:
    @pytest.mark.parametrize("stage", PLAIN_STAGES)
    def test_one_segment_is_done_again(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        expected = speak(engine)
        engine.clear_caches()
        monkeypatch.setattr(engine._stages, stage, failing(getattr(engine._stages, stage), 1))
        assert np.array_equal(speak(engine), expected)
        assert engine.last_telemetry.out_of_memory == 1
        assert np.array_equal(speak(engine), expected)
        assert engine.last_telemetry.out_of_memory == 0

    @pytest.mark.parametrize("stage", PLAIN_STAGES)
    def test_if_it_still_does_not_fit_the_error_says_what_to_do(
        self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
    ) -> None:
        expected = speak(engine)
        engine.clear_caches()
        path = tmp_path / "speech.wav"
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            patch.setattr(engine._stages, stage, failing(getattr(engine._stages, stage), 2))
            with pytest.raises(OutOfMemory, match=r"out of memory while .*What helps: low_memory=True; .*Tried to allocate") as caught:
                speak(engine, output_path=path)
        assert isinstance(caught.value, torch.OutOfMemoryError), "scripts that catch torch's error still do"
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
        assert np.array_equal(speak(engine), expected), "the engine can be used afterwards"

    @pytest.mark.parametrize("stage", BATCH_STAGES)
    def test_a_batch_is_halved_until_it_fits(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        expected = speak(engine, **LONG)
        sizes: list[int] = []

        def too_many(_: Any, batch: Any, *__: Any) -> bool:
            sizes.append(len(batch))
            return len(batch) > 1

        monkeypatch.setattr(rendering, stage, failing(getattr(rendering, stage), 99, too_many))
        assert alike(speak(engine, **LONG), expected)
        assert max(sizes) > 1
        assert sizes[-1] == 1
        assert engine.last_telemetry.out_of_memory >= 1

    def test_requests_that_were_done_are_not_done_again(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        given = [{"spk_audio_prompt": VOICE, **SHORT, "text": text, "output_path": tmp_path / f"{text}.wav"} for text in ("Hi", "Good day")]
        hopeless = failing(rendering.vocode_batch, 99)
        with monkeypatch.context() as patch:
            patch.setattr("indextts.rendering.vocode_batch", hopeless)
            with pytest.raises(OutOfMemory, match="speaking segment 1, of"):
                engine.infer_batch(given)
        assert list(tmp_path.iterdir()) == []
        assert len(engine.infer_batch(given)) == 2

    def test_a_stream_goes_on_where_it_was(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = torch.cat(list(engine.infer(VOICE, stream_return=True, **LONG, **SHORT)), 1)
        waves = engine._stages.mel_to_waves
        calls: list[int] = []

        def break_off_in_the_second_segment(mel: Tensor, frames: int | None) -> Iterator[Tensor]:
            calls.append(1)
            for number, wave in enumerate(waves(mel, frames)):
                if len(calls) == 2 and number == 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                yield wave

        monkeypatch.setattr(engine._stages, "mel_to_waves", break_off_in_the_second_segment)
        monkeypatch.setattr(engine, "_stream_chunk_s", 0.1)
        found = torch.cat(list(engine.infer(VOICE, stream_return=True, **LONG, **SHORT)), 1)
        assert engine.last_telemetry.out_of_memory == 1
        torch.testing.assert_close(found, expected, atol=1 / 32768, rtol=0)

    def test_other_errors_are_not_taken_for_a_lack_of_memory(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine._stages, "codes_to_mel", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            speak(engine)

    @pytest.mark.parametrize(
        ("error", "is_it"),
        [
            (torch.OutOfMemoryError("x"), True),
            (MemoryError(), True),
            (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"), True),
            (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
            (RuntimeError("shapes do not match"), False),
            (ValueError("out of memory"), False),
        ],
    )
    def test_what_counts_as_running_out(self, error: Exception, is_it: bool) -> None:
        assert is_out_of_memory(error) is is_it


class PretendedDevice:
    """A device of ``total`` MB on which the stages' tensors are pretended."""

    def __init__(self, total: float) -> None:
        self.total, self.held, self.peak = total, 0.0, 0.0

    def free_mb(self) -> float:
        return self.total - self.held

    def allocated_mb(self) -> float:
        return self.held

    def peak_mb(self) -> float:
        return self.peak

    def reset_peak(self) -> None:
        self.peak = self.held

    def use(self, mb: float) -> None:
        if self.held + mb > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = max(self.peak, self.held + mb)


class TestPrediction:
    def test_a_batch_that_is_known_not_to_fit_is_not_tried(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
        encode, device, sizes = rendering.encode_batch, PretendedDevice(1000.0), []

        def encode_with(stages: Any, batch: Any, *more: Any) -> Any:
            sizes.append(len(batch))
            device.use(300.0 * len(batch))
            return encode(stages, batch, *more)

        monkeypatch.setattr("indextts.rendering.encode_batch", encode_with)
        monkeypatch.setattr(engine, "_batch_size", 8)
        monkeypatch.setattr(engine, "_gauge", MemoryGauge(device))
        given = [{"spk_audio_prompt": VOICE, **SHORT, "text": "Hi there.", "seed": seed} for seed in range(5)]
        first = engine.infer_batch(given)
        assert sizes[0] == 5, "nothing is known yet"
        assert engine.last_telemetry.out_of_memory == 1
        sizes.clear()
        second = engine.infer_batch(given)
        assert engine.last_telemetry.out_of_memory == 0
        assert max(sizes) in (2, 3)
        assert all(alike(one[1], other[1]) for one, other in zip(first, second, strict=True))

    def test_the_peak_of_the_run_is_that_of_its_worst_stage(self) -> None:
        device = PretendedDevice(1000.0)
        gauge = MemoryGauge(device)
        gauge.begin()
        for name, mb in (("gpt", 50.0), ("s2mel", 400.0), ("bigvgan", 100.0)):
            with gauge.stage(name, 10):
                device.use(mb)
        assert gauge.read_peak() == 400.0
        assert gauge.unit_mb == {"gpt": 5.0, "s2mel": 40.0, "bigvgan": 10.0}
        gauge.begin()
        assert gauge.read_peak() == 0.0

    def test_without_a_gauge_for_the_device_everything_is_tried(self) -> None:
        gauge = MemoryGauge.of(torch.device("cpu"))
        with gauge.stage("gpt", 1):
            pass
        assert gauge.lacking_mb([], 8) == 0.0
        assert gauge.unit_mb == {}


class TestLowMemory:
    def test_the_sound_is_the_same(self, engine: IndexTTS2) -> None:
        expected = speak(engine)
        engine.clear_caches()
        engine.low_memory = True
        try:
            assert engine.low_memory
            assert engine.batch_size == 1
            assert alike(speak(engine), expected)
            assert engine.last_telemetry.settings["low_memory"] is True
            engine.set_precision("bf16")
            assert engine.low_memory, "it outlives a change of precision"
            engine.set_precision("fp32")
            assert alike(speak(engine), expected)
        finally:
            engine.low_memory = False
        engine.clear_caches()
        assert np.array_equal(speak(engine), expected)

    def test_it_can_be_asked_for_from_the_start(self) -> None:
        with IndexTTS2.from_random("small", device="cpu", low_memory=True) as tts:
            assert tts.low_memory
            assert speak(tts).size

    def test_weights_visit_the_device_for_their_layer_only(self) -> None:
        """Kept at twice their value and halved when fetched: whoever looks at them elsewhere than in their layer computes nonsense."""

        class Kept(Offloaded):
            def _to_cpu(self, value: Tensor) -> Tensor:
                return 2 * value

        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(1, 2, 3))
        x = torch.randn(1, 3)

        def run() -> Tensor:
            with torch.inference_mode():
                return network[2](network[1](network[0](x))[:, None])

        expected, weight = run(), network[0].weight.clone()
        offloaded = Kept(network, torch.device("cpu"), load=lambda kept: kept / 2)
        assert torch.equal(network[0].weight, 2 * weight)
        assert torch.equal(run(), expected)
        assert torch.equal(network[0].weight, 2 * weight), "sent away again"
        with pytest.raises(RuntimeError):
            network(torch.randn(1, 7))
        assert torch.equal(network[0].weight, 2 * weight), "also after an error"
        offloaded.restore()
        assert not network[0]._forward_hooks

    def test_no_part_of_the_reference_side_is_used_while_it_is_away(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = speak(engine)
        monkeypatch.setattr(Offloaded, "_to_cpu", lambda _, value: 2 * value)
        monkeypatch.setattr(Offloaded, "_fetch", halving)
        engine.clear_caches()
        engine.low_memory = True
        try:
            assert np.array_equal(speak(engine), expected)
        finally:
            for offloaded in engine._stages._offloaded:
                for kept in offloaded._kept.values():
                    for parameter in kept.values():
                        parameter.data /= 2
            engine.low_memory = False
        engine.clear_caches()
        assert np.array_equal(speak(engine), expected)


def halving(offloaded: Offloaded, layer: nn.Module, _: object) -> None:
    layer._parameters.update({name: nn.Parameter(value / 2, requires_grad=False) for name, value in offloaded._kept[layer].items()})
