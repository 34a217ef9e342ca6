"""If this fails, the fast path says something else than the plain one, or leaves memory behind."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from tests.speaking import SHORT, TEXT, VOICE, speak


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


@pytest.fixture(scope="module")
def plain_engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu", use_accel=False) as tts:
        yield tts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 3},
        {"num_beams": 1, "do_sample": False},
        {"typical_sampling": True},
        {"text": TEXT, "max_text_tokens_per_segment": 20},
        {"text": TEXT, "max_text_tokens_per_segment": 20, "num_beams": 1, "emo_vector": [0.2, 0, 0.5, 0, 0, 0, 0, 0]},
        {"emo_vector": [0.1] * 8, "use_random": True},
        {"inference_cfg_rate": 0.0, "duration_factor": 1.3},
    ],
    ids=str,
)
def test_the_sound_is_that_of_the_plain_path(engine: IndexTTS2, plain_engine: IndexTTS2, changes: dict[str, Any]) -> None:
    fast, plain = (speak(tts, max_mel_tokens=30, **changes).astype(int) for tts in (engine, plain_engine))
    assert fast.shape == plain.shape
    assert abs(fast - plain).max() <= 1


def test_records_differ_in_the_switch_and_in_times_only(
    engine: IndexTTS2, plain_engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_batch_size", 1)  # what the plain path chooses
    records = []
    for tts in (engine, plain_engine):
        speak(tts, text=TEXT, max_text_tokens_per_segment=20)
        record = tts.last_telemetry.to_dict()
        counts = {key: value for key, value in record.items() if key in ("seed", "text", "tokens", "mel_frames", "audio_s")}
        segments = [{k: v for k, v in segment.items() if not k.endswith("_s")} for segment in record["segments"]]
        records.append((record["settings"].pop("use_accel"), record["settings"], counts, segments))
    (fast, *facts), (plain, *plain_facts) = records
    assert (fast, plain) == (True, False)
    assert facts == plain_facts


def test_it_can_be_switched_on_a_loaded_engine(engine: IndexTTS2, plain_engine: IndexTTS2) -> None:
    assert engine.use_accel
    assert engine.settings.use_accel
    fast = speak(engine)
    engine.use_accel = False
    try:
        # The prompts stay those that were cached, encoded as one batch on the accelerated path.
        assert abs(speak(engine).astype(int) - speak(plain_engine)).max() <= 1
        assert engine.last_telemetry.settings["use_accel"] is False
    finally:
        engine.use_accel = True
    assert np.array_equal(speak(engine), fast)
    assert not engine.cuda_graphs_enabled


def test_an_engine_made_plain_can_be_accelerated(engine: IndexTTS2, plain_engine: IndexTTS2) -> None:
    assert not plain_engine.use_accel
    plain_engine.use_accel = True
    try:
        assert abs(speak(plain_engine).astype(int) - speak(engine)).max() <= 1
    finally:
        plain_engine.use_accel = False


def test_it_follows_a_change_of_precision(engine: IndexTTS2, plain_engine: IndexTTS2) -> None:
    made = []
    for tts in (engine, plain_engine):
        tts.set_precision("bf16")
        try:
            made.append(speak(tts, num_beams=1, do_sample=False).astype(int))
        finally:
            tts.set_precision("fp32")
    assert made[0].shape == made[1].shape
    assert abs(made[0] - made[1]).mean() < 0.05 * abs(made[1]).mean() + 20


def test_its_buffers_count_as_cache_and_can_be_cleared(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    first = speak(engine)
    buffers = engine._stages.buffer_memory_mb
    assert buffers > 0
    assert engine.cache_memory_mb == pytest.approx(engine.reference_cache.memory_mb + buffers)
    monkeypatch.setattr("indextts.infer_v2_modded.MAX_CACHE_SIZE_MB", 0.5 * buffers)
    engine.evict_cache()
    assert engine.cache_memory_mb <= 0.5 * buffers
    engine.clear_caches()
    assert engine.cache_memory_mb == 0
    assert np.array_equal(speak(engine), first)


def test_buffers_that_every_call_needs_are_given_back_once(
    engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given_back: list[float] = []
    clear = engine._stages.clear_buffers
    monkeypatch.setattr(engine._stages, "clear_buffers", lambda: (given_back.append(engine._stages.buffer_memory_mb), clear())[1])
    monkeypatch.setattr("indextts.infer_v2_modded.CACHE_CHECK_INTERVAL", 1)
    engine.clear_caches()
    given_back.clear()
    first = speak(engine, num_beams=1)
    needed, prompts = engine._stages.buffer_memory_mb, engine.reference_cache.memory_mb
    monkeypatch.setattr("indextts.infer_v2_modded.MAX_CACHE_SIZE_MB", max(0.9 * needed, 25 * prompts))
    monkeypatch.setattr(type(engine._stages), "buffer_memory_mb", property(lambda _: needed + 25 * prompts))
    for _ in range(4):
        assert np.array_equal(speak(engine, num_beams=1), first)
    assert len(given_back) == 1  # and what was needed again stays
    assert len([record for record in caplog.records if "MAX_CACHE_SIZE_MB" in record.message]) == 1
    assert len(engine.reference_cache) > 0  # a voice in use is not read anew for every call
    monkeypatch.setattr(type(engine._stages), "buffer_memory_mb", property(lambda _: 2 * (needed + 25 * prompts)))
    speak(engine, num_beams=1)
    assert len(given_back) == 2  # grown: calls of another kind have left something
    monkeypatch.setattr("indextts.infer_v2_modded.MAX_CACHE_SIZE_MB", 0.5 * needed)
    speak(engine, num_beams=1)
    assert len(given_back) == 3  # a new limit
    monkeypatch.setattr("indextts.infer_v2_modded.MAX_CACHE_SIZE_MB", 1e6)
    speak(engine, num_beams=1)
    assert len(given_back) == 3
    assert engine._given_back is None


def test_cancelling_leaves_it_usable(engine: IndexTTS2) -> None:
    expected = speak(engine)
    for where in ("10 codes", "mel, step 1 "):

        def stop(fraction: float, message: str, where: str = where) -> None:
            if where in message:
                raise InterruptedError(message)

        with pytest.raises(InterruptedError, match=where):
            speak(engine, progress=stop)
        assert np.array_equal(speak(engine), expected)


def test_the_prefix_is_used_again_unless_the_text_holds_marks(engine: IndexTTS2) -> None:
    stages, request = engine._stages, engine._bound_request({"spk_audio_prompt": VOICE, "text": "Hi.", **SHORT})
    with stages.running():
        speaker = stages.speaker_prompt(request.voice.samples, request.voice.rate)
        emotion = stages.merge_emotion(speaker, stages.emotion_prompt(request.voice.samples, request.voice.rate), 1.0)
        ids = torch.tensor([request.segments[0].ids])
        made, prefix = stages.text_to_codes(ids, speaker, emotion, request.sampling, torch.Generator().manual_seed(0))
        assert prefix is not None
        again = stages.codes_to_latents(ids, speaker, emotion, made.codes, prefix)
        torch.testing.assert_close(again, stages.codes_to_latents(ids, speaker, emotion, made.codes), atol=1e-4, rtol=1e-4)
        for mark in (stages.gpt.config.start_text_token, stages.gpt.config.stop_text_token):
            marked = torch.cat([ids, torch.full((1, 1), mark)], dim=1)
            assert stages.text_to_codes(marked, speaker, emotion, request.sampling, torch.Generator().manual_seed(0))[1] is None


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_code_outside_the_codebook_is_spoken_not_fatal(engine: IndexTTS2, plain_engine: IndexTTS2, accelerated: bool) -> None:
    stages = (engine if accelerated else plain_engine)._stages
    last = stages.config.semantic_codec.codebook_size - 1
    settings: dict[str, Any] = {"steps": 1, "guidance": 0.7, "duration_factor": 1.0}
    with stages.running():
        speaker = stages.speaker_prompt(VOICE[1], VOICE[0])
        latents = torch.zeros(1, 4, stages.gpt.config.model_dim)
        codes = torch.tensor([[1, 2, last, 3]]), torch.tensor([[1, 2, stages.gpt.config.start_mel_token, 3]])
        assert codes[1].max() > last
        mels = [stages.codes_to_mel(c, latents, speaker, **settings, generator=torch.Generator().manual_seed(0)) for c in codes]
    assert torch.equal(*mels)


def test_the_compiled_estimator_is_the_one_that_runs(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, used = engine._stages, []
    plain_solve = stages.s2mel.cfm.solve

    def solve(*given: Any, **named: Any) -> torch.Tensor:
        used.append("plain")
        return plain_solve(*given, **named)

    monkeypatch.setattr(stages.s2mel.cfm, "solve", solve)
    speak(engine)
    assert used == []
    monkeypatch.setattr(stages, "compiled", True)
    speak(engine)
    assert used == ["plain"]


def test_what_a_switch_replaces_is_freed_at_once(engine: IndexTTS2) -> None:
    """Weights of the old precision that wait for the garbage collector would be gigabytes on a GPU."""
    speak(engine)
    gc.collect()
    gc.disable()
    try:
        stages = engine._stages
        old = [weakref.ref(stages.gpt), weakref.ref(stages.decoder)]
        engine.set_precision("bf16")
        old += [weakref.ref(stages.decoder), weakref.ref(stages.solver)]
        engine.use_accel = False
        alive = [reference() is not None for reference in old]
    finally:
        gc.enable()
        engine.set_precision("fp32")
        engine.use_accel = True
    assert not any(alive), alive
