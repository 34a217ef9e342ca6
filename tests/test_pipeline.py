"""If this fails, a call of ``infer`` returns the wrong thing: another length, another voice, another sound for the same seed."""

from __future__ import annotations

import gc
import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.engine.controls import available_devices, resolve_device
from indextts.engine.precision import resolve_precision
from indextts.release import write_random_release
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


class TestResult:
    def test_array(self, engine: IndexTTS2) -> None:
        rate, samples = engine.infer(VOICE, "Hello there.", **SHORT)
        assert (rate, samples.dtype, samples.shape[1]) == (22050, np.int16, 1)
        record = engine.last_telemetry
        assert samples.shape[0] == 256 * int(1.72 * record.tokens) == record.segments[0].samples

    def test_file_equals_array(self, engine: IndexTTS2, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folder" / "speech.wav"
        assert engine.infer(VOICE, "Hello there.", path, **SHORT) == path
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        assert rate == 22050
        assert soundfile.info(path).subtype == "PCM_16"
        assert np.array_equal(samples, speak(engine))

    def test_a_path_given_as_text_comes_back_as_text(self, engine: IndexTTS2, tmp_path: Path) -> None:
        path = str(tmp_path / "speech.wav")
        assert engine.infer(VOICE, "Hello there.", path, **SHORT) == path

    def test_stream(self, engine: IndexTTS2) -> None:
        pieces = list(engine.infer(VOICE, TEXT, stream_return=True, max_text_tokens_per_segment=20, **SHORT))
        segments = len(engine.last_telemetry.segments)
        assert segments > 2
        assert len(pieces) == 2 * segments - 1, "one wave a segment and one pause between two"
        assert all(piece.dtype == torch.float32 and piece.shape[0] == 1 and piece.abs().max() <= 1 for piece in pieces)
        assert all(piece.shape[1] == 4410 and not piece.any() for piece in pieces[1::2])
        whole = speak(engine, text=TEXT, max_text_tokens_per_segment=20)
        joined = (32767 * torch.cat(pieces, dim=1)).to(torch.int16).reshape(-1, 1).numpy()
        assert joined.shape == whole.shape
        assert abs(joined.astype(int) - whole).max() <= 1, "one after the other or as a batch: the same but for rounding"

    def test_stream_to_a_file(self, engine: IndexTTS2, tmp_path: Path) -> None:
        path = tmp_path / "speech.wav"
        pieces = list(engine.infer(VOICE, TEXT, path, stream_return=True, max_text_tokens_per_segment=20, **SHORT))
        assert soundfile.info(path).frames == sum(piece.shape[1] for piece in pieces)

    def test_the_first_piece_comes_before_the_last_is_made(self, engine: IndexTTS2) -> None:
        stream = engine.infer(VOICE, TEXT, stream_return=True, max_text_tokens_per_segment=20, **SHORT)
        next(stream)
        stream.close()
        made = []
        engine._worker.call(lambda job: made.append("the engine is free again"))
        assert made

    @pytest.mark.parametrize(("milliseconds", "samples"), [(0, 0), (-5, 0), (200, 4410), (500, 11025)])
    def test_pause_between_segments(self, engine: IndexTTS2, milliseconds: int, samples: int) -> None:
        speak(engine, text=TEXT, max_text_tokens_per_segment=20, interval_silence=milliseconds)
        record = engine.last_telemetry
        silence = record.audio_s * 22050 - sum(segment.samples for segment in record.segments)
        assert round(silence) == samples * (len(record.segments) - 1)

    def test_the_release_generator_form(self, engine: IndexTTS2) -> None:
        (result,) = engine.infer_generator(VOICE, "Hello there.", **SHORT)
        assert np.array_equal(result[1], speak(engine))

    def test_batch_equals_single(self, engine: IndexTTS2, tmp_path: Path) -> None:
        requests = [
            {"spk_audio_prompt": VOICE, "text": "Hello there.", **SHORT},
            {"spk_audio_prompt": VOICE, "text": "Good bye.", "output_path": tmp_path / "b.wav", **SHORT},
        ]
        first, second = engine.infer_batch(requests)
        assert abs(first[1].astype(int) - speak(engine)).max() <= 1
        assert second == tmp_path / "b.wav"
        written = soundfile.read(second, dtype="int16", always_2d=True)[0].astype(int)
        assert abs(written - speak(engine, text="Good bye.")).max() <= 1


class TestArguments:
    def test_the_same_seed_gives_the_same_sound_and_another_does_not(self, engine: IndexTTS2) -> None:
        first = speak(engine)
        assert np.array_equal(first, speak(engine))
        other = speak(engine, seed=6)
        assert first.shape != other.shape or not np.array_equal(first, other)

    def test_without_a_seed_the_one_that_was_drawn_is_on_record(self, engine: IndexTTS2) -> None:
        first = speak(engine, seed=None)
        assert np.array_equal(first, speak(engine, seed=engine.last_telemetry.seed))

    def test_seeds_leave_the_global_generator_alone(self, engine: IndexTTS2) -> None:
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        speak(engine)
        assert torch.rand(1) == expected

    def test_duration_factor_stretches_the_speech(self, engine: IndexTTS2) -> None:
        assert speak(engine, duration_factor=2.0).shape[0] == pytest.approx(2 * speak(engine).shape[0], abs=512)

    def test_the_guides_older_spelling_of_the_segment_limit(self, engine: IndexTTS2) -> None:
        new = speak(engine, text=TEXT, max_text_tokens_per_segment=20)
        assert np.array_equal(new, speak(engine, text=TEXT, max_text_tokens_per_sentence=20))

    def test_quick_streaming_keeps_the_first_segment_short(self, engine: IndexTTS2) -> None:
        speak(engine, text=TEXT, max_text_tokens_per_segment=40)
        whole = engine.last_telemetry.segments[0].text_tokens
        speak(engine, text=TEXT, max_text_tokens_per_segment=40, quick_streaming_tokens=30)
        assert engine.last_telemetry.segments[0].text_tokens < whole

    def test_do_sample_is_honoured(self, engine: IndexTTS2) -> None:
        greedy = {"do_sample": False, "num_beams": 1, "seed": None}
        stages, request = engine._stages, engine._bound_request({"spk_audio_prompt": VOICE, "text": "Hi.", **SHORT, **greedy})
        made = []
        with stages.running():
            speaker = stages.speaker_prompt(request.voice.samples, request.voice.rate)
            emotion = stages.merge_emotion(speaker, stages.emotion_prompt(request.voice.samples, request.voice.rate), 1.0)
            ids = torch.tensor([request.segments[0].ids])
            for seed in (1, 2):
                generator = torch.Generator().manual_seed(seed)
                made.append(stages.text_to_codes(ids, speaker, emotion, request.sampling, generator)[0].codes)
        assert torch.equal(*made)

    def test_defaults_come_from_the_configuration(self, engine: IndexTTS2) -> None:
        request = engine._bound_request({"spk_audio_prompt": VOICE, "text": "Hi."})
        inference = engine.cfg.inference
        assert request.diffusion_steps == inference.diffusion_steps
        assert request.guidance == inference.inference_cfg_rate
        assert request.sampling.num_beams == inference.num_beams

    def test_stopping_at_the_limit_is_warned_of(self, engine: IndexTTS2) -> None:
        with pytest.warns(RuntimeWarning, match="max_mel_tokens=3"):
            speak(engine, max_mel_tokens=3, seed=1)

    @pytest.mark.parametrize(
        "given",
        [
            lambda rate, samples: (rate, samples),
            lambda rate, samples: (rate, (32767 * samples).astype(np.int16)),
            lambda rate, samples: (rate, np.stack([samples, samples])),
        ],
    )
    def test_the_same_clip_in_other_clothes_is_the_same_voice(self, engine: IndexTTS2, given: Any) -> None:
        plain, other = speak(engine).astype(int), speak(engine, spk_audio_prompt=given(*VOICE)).astype(int)
        assert plain.shape == other.shape
        assert abs(plain - other).mean() < 0.02 * abs(plain).mean() + 20

    def test_a_tensor_with_its_rate(self, engine: IndexTTS2) -> None:
        rate, samples = VOICE
        assert np.array_equal(speak(engine, spk_audio_prompt=torch.from_numpy(samples), sample_rate=rate), speak(engine))

    def test_progress_goes_from_0_to_1(self, engine: IndexTTS2) -> None:
        seen = []
        speak(engine, text=TEXT, max_text_tokens_per_segment=20, progress=lambda fraction, message: seen.append((fraction, message)))
        fractions = [fraction for fraction, _ in seen]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0, 1)
        assert all(message for _, message in seen)

    def test_the_release_progress_attribute(self, engine: IndexTTS2) -> None:
        seen = []
        engine.gr_progress = lambda fraction, desc: seen.append((fraction, desc))
        try:
            speak(engine)
        finally:
            engine.gr_progress = None
        assert seen[-1][0] == 1


class TestEmotion:
    def test_a_vector_changes_the_sound_and_zero_weight_does_not(self, engine: IndexTTS2) -> None:
        sad = [0, 0, 0.8, 0, 0, 0, 0, 0]
        plain = speak(engine)
        assert np.array_equal(plain, speak(engine, emo_vector=sad, emo_alpha=0.0))
        other = speak(engine, emo_vector=sad)
        assert plain.shape != other.shape or not np.array_equal(plain, other)

    def test_a_second_clip_changes_the_sound_by_alpha(self, engine: IndexTTS2) -> None:
        clip = made_up_clip(3.0)[0], made_up_clip(3.0)[1][::-1].copy()
        plain = speak(engine)
        other = speak(engine, emo_audio_prompt=clip)
        assert plain.shape != other.shape or not np.array_equal(plain, other)
        none = speak(engine, emo_audio_prompt=clip, emo_alpha=0.0)
        assert none.size

    def test_random_rows_follow_the_seed(self, engine: IndexTTS2) -> None:
        call = {"emo_vector": [0.1] * 8, "use_random": True}
        assert np.array_equal(speak(engine, **call), speak(engine, **call))

    def test_text_decides_the_emotion(self, engine: IndexTTS2) -> None:
        asked = []

        class Classifier:
            def classify(self, text: str) -> dict[str, float]:
                asked.append(text)
                return dict.fromkeys(("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm"), 0.1)

        engine.emotion_classifier = Classifier()  # type: ignore[assignment]
        try:
            from_text = speak(engine, use_emo_text=True, emo_text="so sad")
            speak(engine, use_emo_text=True)
        finally:
            engine.emotion_classifier = None
        assert asked == ["so sad", "Hello there."]
        assert np.array_equal(from_text, speak(engine, emo_vector=[0.1] * 8))


class TestRecords:
    def test_stages_add_up(self, engine: IndexTTS2) -> None:
        speak(engine, text=TEXT, max_text_tokens_per_segment=20)
        record = engine.last_telemetry
        assert record.gpt_s + record.s2mel_s + record.bigvgan_s + record.other_s == pytest.approx(record.total_s)
        assert min(record.gpt_s, record.s2mel_s, record.bigvgan_s) > 0
        assert record.other_s >= 0
        assert record.rtf == pytest.approx(record.total_s / record.audio_s)
        assert record.tokens_per_s == pytest.approx(record.tokens / record.gpt_s)
        assert 0 < record.first_audio_s < record.total_s

    def test_the_record_is_json(self, engine: IndexTTS2) -> None:
        speak(engine)
        record = json.loads(json.dumps(engine.last_telemetry.to_dict()))
        assert record["settings"]["precision"] == "fp32"
        assert record["segments"][0]["codes"] == engine.last_telemetry.tokens

    def test_the_second_use_of_a_voice_is_a_cache_hit(self, engine: IndexTTS2) -> None:
        engine.clear_caches()
        speak(engine)
        first = engine.last_telemetry
        speak(engine)
        assert (first.speaker_cache_hit, engine.last_telemetry.speaker_cache_hit) == (False, True)

    def test_a_file_that_changed_under_its_name_is_heard_anew(self, engine: IndexTTS2, tmp_path: Path) -> None:
        path, (rate, samples) = tmp_path / "voice.wav", VOICE
        soundfile.write(path, samples, rate)
        speak(engine, spk_audio_prompt=path)
        soundfile.write(path, samples[::-1], rate)
        speak(engine, spk_audio_prompt=path)
        assert not engine.last_telemetry.speaker_cache_hit
        soundfile.write(tmp_path / "copy.wav", samples[::-1], rate)
        speak(engine, spk_audio_prompt=tmp_path / "copy.wav")
        assert engine.last_telemetry.speaker_cache_hit

    def test_several_voices_stay_warm(self, engine: IndexTTS2) -> None:
        engine.clear_caches()
        voices = [made_up_clip(seconds) for seconds in (1.0, 1.5)]
        for voice in voices * 2:
            speak(engine, spk_audio_prompt=voice)
        assert engine.last_telemetry.speaker_cache_hit

    def test_the_cache_limit_is_live(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
        engine.clear_caches()
        speak(engine)
        assert engine.cache_memory_mb > 0
        monkeypatch.setattr("indextts.infer_v2_modded.MAX_CACHE_SIZE_MB", 0)
        engine.evict_cache()
        assert engine.cache_memory_mb == 0


class TestSwitches:
    def test_precision_can_be_changed_and_changed_back(self, engine: IndexTTS2) -> None:
        plain = speak(engine)
        engine.set_precision("bf16")
        try:
            assert engine.dtype is torch.bfloat16
            assert np.abs(speak(engine)).max() > 0
        finally:
            engine.set_precision("fp32")
        assert engine.dtype is None
        assert np.array_equal(plain, speak(engine))

    def test_attention_kernels_agree(self, engine: IndexTTS2) -> None:
        plain = speak(engine).astype(int)
        engine.set_attention("math")
        try:
            other = speak(engine).astype(int)
        finally:
            engine.set_attention("auto")
        assert plain.shape == other.shape
        assert abs(plain - other).max() <= 2

    def test_graphs_are_refused_politely_without_cuda(self, engine: IndexTTS2, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO"):
            assert engine.enable_cuda_graphs() is False
        assert len(caplog.records) == 1
        assert not engine.cuda_graphs_available
        engine.disable_cuda_graphs()

    def test_use_fp16_on_a_cpu_is_float32(self) -> None:
        cpu = torch.device("cpu")
        assert resolve_precision("auto", True, cpu) == "fp32"
        assert resolve_precision("bf16", False, cpu) == "bf16"
        with pytest.raises(ValueError, match="needs a GPU"):
            resolve_precision("tf32", False, cpu)

    def test_devices(self) -> None:
        assert resolve_device("cpu") == torch.device("cpu")
        assert str(resolve_device(None)) == available_devices()[0]
        with pytest.raises(ValueError, match=r"this machine has: .*cpu"):
            resolve_device("cuda:17")
        with pytest.raises(ValueError, match="this machine has"):
            resolve_device("toaster")


class TestLifetime:
    def test_threads_queue_and_get_their_own_results(self, engine: IndexTTS2) -> None:
        expected = {text: speak(engine, text=text) for text in ("One.", "Two.", "Three.")}
        results: dict[str, list[np.ndarray]] = {text: [] for text in expected}
        threads = [threading.Thread(target=lambda t=text: results[t].append(speak(engine, text=t))) for text in expected for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for text, samples in expected.items():
            assert len(results[text]) == 3
            assert all(np.array_equal(samples, result) for result in results[text])

    def test_cancelling_from_the_progress_callback(self, engine: IndexTTS2, tmp_path: Path) -> None:
        path = tmp_path / "speech.wav"
        path.write_bytes(b"old")

        def stop(fraction: float, message: str) -> None:
            if fraction > 0:
                raise InterruptedError("enough")

        with pytest.raises(InterruptedError):
            engine.infer(VOICE, TEXT, path, progress=stop, max_text_tokens_per_segment=20, **SHORT)
        assert path.read_bytes() == b"old"
        assert speak(engine).size

    def test_closing_ends_the_thread_and_forgets_the_networks(self) -> None:
        with IndexTTS2.from_random("small", device="cpu") as tts:
            speak(tts)
            thread = tts._worker._thread
        assert not thread.is_alive()
        with pytest.raises(RuntimeError, match="closed"):
            speak(tts)

    def test_an_engine_that_is_dropped_is_collected(self) -> None:
        tts = IndexTTS2.from_random("small", device="cpu")
        thread = tts._worker._thread
        del tts
        gc.collect()
        thread.join(5)
        assert not thread.is_alive()


class TestFromDisk:
    def test_a_written_release_speaks_like_the_one_in_memory(self, tmp_path: Path, engine: IndexTTS2) -> None:
        write_random_release(tmp_path, "small", seed=0)
        with IndexTTS2(model_dir=tmp_path, device="cpu") as tts:
            written, in_memory = speak(tts).astype(int), speak(engine).astype(int)
            assert abs(written - in_memory).max() <= 2  # weight norm splits and multiplies the weights, which rounds
            assert tts.model_version == "2.0"
            assert tts.stop_mel_token == tts.cfg.gpt.stop_mel_token

    def test_cfg_path_alone_implies_its_folder(self, tmp_path: Path) -> None:
        write_random_release(tmp_path, "small")
        with IndexTTS2(cfg_path=tmp_path / "config.yaml", device="cpu") as tts:
            assert tts.release is not None
            assert tts.release.model_dir == tmp_path

    def test_checkpoints_in_the_working_directory_are_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_random_release(tmp_path / "checkpoints", "small")
        monkeypatch.chdir(tmp_path)
        with IndexTTS2(device="cpu", name="mine") as tts:
            assert tts.name == "mine"
            assert speak(tts).size
