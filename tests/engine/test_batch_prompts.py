"""If this fails, a voice sounds different when its emotion clip is new too, or every call pays again for what the cache holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.models.semantic_encoder import SemanticEncoder
from tests.speaking import VOICE
from tests.speaking import speak as speak_at_length

pytestmark = pytest.mark.filterwarnings("ignore:generation was stopped at max_mel_tokens")
SHORT: dict[str, Any] = {"max_mel_tokens": 5, "diffusion_steps": 1, "num_beams": 1, "seed": 5}
RATE, CLIP = made_up_clip(3.3)
OTHER = (24000, made_up_clip(1.7, 24000)[1][::-1].copy())


def speak(tts: IndexTTS2, **changes: Any) -> np.ndarray:
    return speak_at_length(tts, **{**SHORT, **changes})


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


def assert_same(one: Any, other: Any) -> None:
    for field in fields(one):
        if getattr(other, field.name) is not None:
            torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("swapped", [False, True], ids=["the shorter clip is the emotion", "the longer clip is the emotion"])
def test_two_clips_as_one_batch_are_what_each_is_alone(engine: IndexTTS2, swapped: bool) -> None:
    stages = engine._stages
    voice, emotion = ((RATE, CLIP), OTHER)[:: -1 if swapped else 1]
    with stages.running():
        speaker, felt = stages.both_prompts(voice[::-1], emotion[::-1])
        alone = stages.speaker_prompt(*voice[::-1]), stages.emotion_prompt(*emotion[::-1])
        assert_same(speaker, alone[0])
        assert_same(felt, alone[1])
        assert speaker.features.shape[1] != felt.features.shape[1]
        merged = [stages.merge_emotion(one, alone[1], 0.6) for one in (speaker, alone[0])]
        torch.testing.assert_close(*merged, atol=2e-5, rtol=1e-4)


def test_a_new_voice_and_a_new_emotion_pass_the_encoder_once(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = SemanticEncoder.forward
    monkeypatch.setattr(SemanticEncoder, "forward", lambda self, x, mask: rows.append(len(x)) or forward(self, x, mask))
    for use_accel, expected in ((True, [2]), (False, [1, 1])):
        engine.use_accel = use_accel
        for change in ({}, {"emo_audio_prompt": OTHER}):
            engine.clear_caches()
            rows.clear()
            speak(engine, **change)
            assert rows == expected
            speak(engine, **change)
            assert rows == expected, "the second time everything is in the cache"
    engine.use_accel = True
    engine.clear_caches()
    speak(engine)
    rows.clear()
    speak(engine, emo_audio_prompt=OTHER)
    assert rows == [1], "only what is new"


def test_nothing_of_a_prompt_is_computed_again(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"text": "One here. Two there. Three.", "max_text_tokens_per_segment": 10, "emo_audio_prompt": OTHER, "emo_alpha": 0.5}
    first = speak(engine, **given)
    assert len(engine.last_telemetry.segments) > 1
    for name in ("speaker_latents", "emotion_vector"):
        monkeypatch.setattr(engine._stages.gpt, name, lambda *_, **__: pytest.fail("computed again"))
    assert np.array_equal(speak(engine, **given), first)
    assert engine.reference_cache.latest("speaker").emotion is not None  # type: ignore[union-attr]


def test_the_encoder_has_no_layers_above_the_one_that_is_used(engine: IndexTTS2) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        SemanticEncoder({"num_hidden_layers": 3}, hidden_state=4)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 5}
    assert len(SemanticEncoder(sizes, hidden_state=2).encoder.layers) == 2


def test_eight_threads_with_four_calls_each_get_their_own_sound(engine: IndexTTS2) -> None:
    short = {"spk_audio_prompt": VOICE, **SHORT}
    jobs = [(f"Word {i % 4}.", i % 3) for i in range(32)]
    expected = {job: engine.infer(**{**short, "text": job[0], "seed": job[1]})[1] for job in set(jobs)}
    found: dict[int, np.ndarray] = {}

    def run(thread: int) -> None:
        for i in range(thread, 32, 8):
            text, seed = jobs[i]
            given = {**short, "text": text, "seed": seed}
            if i % 4 == 1:
                found[i] = engine.infer_batch([given])[0][1]
            elif i % 4 == 2:
                found[i] = (torch.cat(list(engine.infer(**given, stream_return=True)), 1) * 32767).to(torch.int16).reshape(-1, 1).numpy()
            else:
                found[i] = engine.infer(**given)[1]

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(32))
    for i, job in enumerate(jobs):
        assert found[i].shape == expected[job].shape
        assert abs(found[i].astype(int) - expected[job]).max() <= 1
