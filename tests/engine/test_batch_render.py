"""If this fails, a text sounds different in company than alone, comes back in another's place, or its record is wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.engine import batch_stages
from indextts.engine.batching import Utterance, plan_batches
from indextts.engine.telemetry import SegmentRecord
from tests.engine.test_decode import CPU, PretendedGraphs
from tests.speaking import SHORT, TEXT, VOICE, speak

OTHER_VOICE = made_up_clip(3.1)[0], made_up_clip(3.1)[1][::-1].copy()
VARIED: list[dict[str, Any]] = [
    {"text": "Hello there, my good old friend."},
    {"text": "Hi.", "seed": 7},
    {"text": "We counted one, two, three.", "spk_audio_prompt": OTHER_VOICE, "seed": 8},
    {"text": "So sad.", "emo_vector": [0, 0, 0.8, 0, 0, 0, 0, 0], "duration_factor": 1.4},
    {"text": "An angry voice.", "emo_audio_prompt": OTHER_VOICE, "emo_alpha": 0.6, "seed": 9},
]


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        tts.batch_size = 4
        yield tts


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


def requests(*changes: dict[str, Any], **common: Any) -> list[dict[str, Any]]:
    return [{"spk_audio_prompt": VOICE, **SHORT, **common, **change} for change in changes]


def single(tts: IndexTTS2, given: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """The oracle: the recipe, segment by segment."""
    size, tts.batch_size = tts.batch_size, 1
    try:
        samples = tts.infer(**given)[1]
    finally:
        tts.batch_size = size
    return samples.astype(int), [segment.codes for segment in tts.last_telemetry.segments]


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "common",
    [
        {"num_beams": 1, "do_sample": False},
        {"num_beams": 3, "repetition_penalty": 1.2, "temperature": 1.4, "max_mel_tokens": 25},
        {"forced_codes": 9, "inference_cfg_rate": 0.0},
    ],
    ids=str,
)
def test_requests_together_are_what_they_are_alone(engine: IndexTTS2, common: dict[str, Any]) -> None:
    given = requests(*VARIED, **common)
    together = engine.infer_batch(given)
    record = engine.last_telemetry
    assert {segment.batch for segment in record.segments} != {None}
    assert len({segment.batch for segment in record.segments}) < len(given), "some were rendered together"
    for request, (rate, samples) in zip(given, together, strict=True):
        forced = request.pop("forced_codes", None)
        expected = single(engine, request)[0] if forced is None else engine.infer_forced(forced, **request)[1]
        assert rate == 22050
        assert_alike(samples, expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_so_are_those_of_the_plain_path(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, beams: int) -> None:
    given = requests(*VARIED[:3], num_beams=beams)
    monkeypatch.setattr(engine, "use_accel", False)
    for request, (_, samples) in zip(given, engine.infer_batch(given), strict=True):
        assert_alike(samples, single(engine, request)[0])
    monkeypatch.setattr(engine, "_batch_size", None)
    assert engine.batch_size == 1


def test_a_request_sounds_the_same_in_any_company(engine: IndexTTS2) -> None:
    given = requests(*VARIED, num_beams=3)
    forwards, backwards = engine.infer_batch(given), engine.infer_batch(given[::-1])[::-1]
    for (_, one), (_, other) in zip(forwards, backwards, strict=True):
        assert_alike(one, other.astype(int))


def test_a_long_text_is_rendered_in_batches_by_itself(engine: IndexTTS2) -> None:
    given = requests({"text": TEXT}, max_text_tokens_per_segment=20, interval_silence=30)[0]
    samples = engine.infer(**given)[1]
    record = engine.last_telemetry
    expected, codes = single(engine, given)
    assert_alike(samples, expected)
    assert [segment.codes for segment in record.segments] == codes
    assert [segment.index for segment in record.segments] == list(range(len(codes)))
    assert max(time.rows for time in record.stages) > 1
    assert record.settings["batch_size"] == 4
    assert json.loads(json.dumps(record.to_dict()))["segments"][0]["batch"] is not None


def test_the_record_of_a_batch_adds_up(engine: IndexTTS2) -> None:
    engine.infer_batch(requests(*VARIED, max_text_tokens_per_segment=20))
    record = engine.last_telemetry
    assert record.requests == len(VARIED)
    assert record.gpt_s + record.s2mel_s + record.bigvgan_s + record.other_s == pytest.approx(record.total_s)
    assert min(record.gpt_s, record.s2mel_s, record.bigvgan_s) > 0
    assert record.other_s >= 0
    assert 0 < record.first_audio_s <= record.total_s
    assert {(time.request, time.segment) for time in record.stages if time.stage == "gpt"} == {
        (segment.request, segment.index) for segment in record.segments
    }


def test_each_request_has_its_part_of_the_record(engine: IndexTTS2) -> None:
    checked = [engine._bound_request(given) for given in requests(*VARIED)]
    rendered = engine._worker.call(lambda job: engine._render_many(checked, job))
    whole = engine.last_telemetry
    parts = [record for _, record in rendered]
    assert sum(part.total_s for part in parts) == pytest.approx(whole.total_s)
    for request, (wave, part) in zip(checked, rendered, strict=True):
        assert part.text == request.text
        assert part.seed == request.seed
        assert part.audio_s == pytest.approx(wave.shape[1] / 22050)
        assert part.gpt_s + part.s2mel_s + part.bigvgan_s + part.other_s == pytest.approx(part.total_s)
        assert part.tokens == sum(segment.codes for segment in part.segments) > 0
        assert 0 < part.first_audio_s <= whole.total_s


def test_results_come_in_order_and_where_they_belong(engine: IndexTTS2, tmp_path: Path) -> None:
    given = requests({"text": "A much, much longer text than the other one."}, {"text": "Hi.", "output_path": tmp_path / "b.wav"})
    first, second = engine.infer_batch(given)
    assert first[1].size > 0
    assert second == tmp_path / "b.wav"
    assert second.exists()
    assert engine.infer_batch([]) == []


def test_progress_rises_to_1_and_can_cancel_in_every_stage(engine: IndexTTS2, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    given = requests(*VARIED, max_text_tokens_per_segment=20)
    given[0]["output_path"] = path
    seen: list[tuple[float, str]] = []
    engine.infer_batch(given, progress=lambda *report: seen.append(report))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    path.unlink()
    for where in ("reading", "10 codes", "mel, step 1 "):
        assert any(where in message for _, message in seen)

        def stop(fraction: float, message: str, where: str = where) -> None:
            if where in message:
                raise InterruptedError(where)

        with pytest.raises(InterruptedError):
            engine.infer_batch(given, progress=stop)
        assert not path.exists()
    assert speak(engine).size


def test_a_failure_names_its_request(engine: IndexTTS2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = requests({"output_path": tmp_path / "a.wav"}, {"text": "Sad."}, text="Hi.")
    with pytest.raises(ValueError, match=r"^request 1: .*diffusion_steps"):
        engine.infer_batch([given[0], {**given[1], "diffusion_steps": 0}])

    merge = engine._stages.merge_emotion
    calls: list[int] = []

    def fail_the_second_time(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("broken")
        return merge(*arguments)

    monkeypatch.setattr(engine._stages, "merge_emotion", fail_the_second_time)
    with pytest.raises(RuntimeError, match=r"^request 1: broken"):
        engine.infer_batch(given)
    assert not (tmp_path / "a.wav").exists()


def test_a_segment_without_codes_is_silence_for_its_request_only(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = batch_stages.encode_batch

    def without_the_second(stages: Any, batch: list[Utterance], on_step: Any = None) -> list[batch_stages.CodedUtterance]:
        return [
            batch_stages.CodedUtterance(one.utterance, one.codes[:, :0], one.latents[:, :0], False) if one.utterance.request == 1 else one
            for one in encode(stages, batch, on_step)
        ]

    monkeypatch.setattr("indextts.rendering.encode_batch", without_the_second)
    given = requests({"text": "Hello there."}, {"text": "Hi."})
    with pytest.raises(RuntimeError, match=r"^request 1: the model ended every segment at once"):
        engine.infer_batch(given)
    two = {**given[0], "text": TEXT, "max_text_tokens_per_segment": 20}
    assert engine.infer_batch([two])[0][1].size


def test_texts_with_marks_of_their_own_keep_the_full_latent_pass(engine: IndexTTS2) -> None:
    stages, request = engine._stages, engine._bound_request(requests({"text": "Hi."}, num_beams=1)[0])
    job: Any = None
    with stages.running():
        from indextts.engine.telemetry import Stopwatch, Telemetry
        from indextts.rendering import Run

        (plain,) = engine._utterances(Run(request, job, Stopwatch(stages.device), 5), Telemetry())
        marked = Utterance(**{**vars(plain), "ids": (*plain.ids, stages.gpt.config.stop_text_token)})
        coded = batch_stages.encode_batch(stages, [plain, marked])[1]
        expected = stages.codes_to_latents(torch.tensor([marked.ids]), marked.speaker, marked.emotion, coded.codes)
    torch.testing.assert_close(coded.latents, expected, atol=1e-4, rtol=1e-4)


def test_the_size_is_a_switch_that_is_checked(engine: IndexTTS2) -> None:
    assert engine.batch_size == 4
    for bad in (0, -1, 1.5, True, "4"):
        with pytest.raises(ValueError, match="batch_size"):
            engine.batch_size = bad  # type: ignore[assignment]
    engine.batch_size = None  # type: ignore[assignment]
    try:
        assert engine.batch_size == 4
    finally:
        engine.batch_size = 4


def test_only_equal_settings_share_a_batch(engine: IndexTTS2) -> None:
    mixed = requests({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 1}, {"diffusion_steps": 3}, {"num_beams": 3}, text="Hi.")
    together = engine.infer_batch(mixed)
    by_batch: dict[int | None, set[int]] = {}
    for segment in engine.last_telemetry.segments:
        by_batch.setdefault(segment.batch, set()).add(segment.request)
    assert sorted(map(sorted, by_batch.values())) == [[0, 2], [1, 4], [3]]
    for given, (_, samples) in zip(mixed, together, strict=True):
        assert_alike(samples, single(engine, given)[0])


def test_with_graphs_batches_are_filled_up_to_few_sizes(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph for every number of rows would cost more than it saves."""
    given = requests(*VARIED[:3], num_beams=1)
    expected = [single(engine, request)[0] for request in given]
    decoder = engine._stages.decoder
    assert decoder is not None
    decoder.clear()
    monkeypatch.setattr(decoder, "use_graphs", True)
    monkeypatch.setattr(decoder, "_graphs", PretendedGraphs(CPU, warmup_steps=1))
    for samples, (_, found) in zip(expected, engine.infer_batch(given), strict=True):
        assert_alike(found, samples)
    assert {bucket.rows for bucket in decoder.buckets} <= {1, 2, 4}
    decoder.clear()


def test_no_batch_is_larger_than_asked_for() -> None:
    class Words(tuple[int, ...]):
        settings = ("same",)

    utterances: Any = [Words(range(n)) for n in (5, 9, 6, 30, 5, 5)]
    batches = plan_batches(utterances, 2)
    assert sorted(place for batch in batches for place in batch) == list(range(6))
    assert max(map(len, batches)) == 2
    assert [3] in batches, "a text six times as long is not worth waiting for"


def test_a_record_of_segments_still_reads_as_before() -> None:
    record = SegmentRecord(0, 4, 10, 17, 4410, False)
    assert (record.request, record.batch) == (0, None)
