"""If this fails, streamed speech clicks, differs from the file, comes late, or comes in the wrong order."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts import IndexTTS2
from indextts.engine.chunks import context_frames, vocode_in_chunks
from indextts.engine.telemetry import Stopwatch
from indextts.models.bigvgan import CONTEXT_FRAMES, BigVGAN
from indextts.models.griffin_lim import GriffinLim
from tests.speaking import SHORT, TEXT, VOICE, speak

LONG: dict[str, Any] = {"text": TEXT, "max_text_tokens_per_segment": 20, "interval_silence": 30}


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        tts.batch_size = 1
        yield tts


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


def stream(tts: IndexTTS2, **changes: Any) -> list[Tensor]:
    return list(tts.infer(**{"spk_audio_prompt": VOICE, **LONG, **SHORT, **changes, "stream_return": True}))


@dataclass
class SlowTicket:
    """A wave that arrives a while after it was asked for."""

    wave: Tensor
    lane: SlowLane
    place: int

    def ready(self) -> bool:
        self.lane.asked += 1
        return self.lane.asked % 5 == 0

    def wait(self) -> None:
        self.lane.log.append(f"waited {self.place}")


class SlowLane:
    """A second stream, pretended: everything is made at once but seems to be on its way."""

    def __init__(self) -> None:
        self.asked, self.made, self.finished = 0, 0, 0
        self.log: list[str] = []

    def running(self) -> Any:
        return contextlib.nullcontext()

    def to_host(self, wave: Tensor) -> SlowTicket:
        self.made += 1
        return SlowTicket(wave.float().cpu(), self, self.made)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def lane(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> SlowLane:
    lane = SlowLane()
    monkeypatch.setattr(engine, "_side_lane", lambda: lane)
    return lane


class TestOverlap:
    def test_the_pieces_are_those_of_the_recipe(self, engine: IndexTTS2, lane: SlowLane, monkeypatch: pytest.MonkeyPatch) -> None:
        overlapped = stream(engine)
        records = [engine.last_telemetry]
        monkeypatch.setattr(engine, "_side_lane", lambda: None)
        plain = stream(engine)
        records.append(engine.last_telemetry)
        assert [piece.shape for piece in overlapped] == [piece.shape for piece in plain]
        torch.testing.assert_close(torch.cat(overlapped, 1), torch.cat(plain, 1), atol=1 / 32768, rtol=0)
        ours, plains = ([(s.index, s.codes, s.mel_frames, s.samples) for s in record.segments] for record in records)
        assert ours == plains
        assert lane.finished == 1

    def test_sound_arrives_while_the_next_segment_is_decoded(self, engine: IndexTTS2, lane: SlowLane) -> None:
        seen: list[str] = []
        request = engine._bound_request({"spk_audio_prompt": VOICE, **LONG, **SHORT})

        class Job:
            def check(self) -> None:
                pass

            def progress(self, fraction: float, message: str) -> None:
                seen.append(message)

        engine._worker.call(lambda _: engine._render_stream(request, Job(), lambda piece: seen.append("sound")))  # type: ignore[arg-type]
        first = seen.index("sound")
        assert "segment 2 of" in seen[first - 1], "the first wave leaves in the middle of the second segment's codes"
        assert "segment 3 of" not in " ".join(seen[:first])

    def test_the_record_says_when_sound_left(self, engine: IndexTTS2, lane: SlowLane) -> None:
        stream(engine)
        record = engine.last_telemetry
        assert 0 < record.first_audio_s < record.total_s
        sums = record.gpt_s + record.s2mel_s + record.bigvgan_s + record.other_s - record.overlapped_s
        assert sums == pytest.approx(record.total_s)

    def test_a_stream_that_is_closed_early_frees_the_engine(self, engine: IndexTTS2, lane: SlowLane) -> None:
        pieces = engine.infer(VOICE, stream_return=True, **LONG, **SHORT)
        next(pieces)
        pieces.close()
        assert engine._worker.call(lambda _: "free") == "free"
        assert lane.finished == 1, "what still ran was waited for"

    def test_an_error_in_a_stage_reaches_the_caller(self, engine: IndexTTS2, lane: SlowLane, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine._stages, "mel_to_waves", lambda *_: iter([1 / 0]))
        with pytest.raises(ZeroDivisionError):
            stream(engine)
        monkeypatch.undo()
        assert speak(engine).size

    def test_it_is_for_gpus_and_can_be_switched_off(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
        assert engine.stream_overlap is False, "on a CPU there is nothing to overlap"
        monkeypatch.setattr(engine, "device", torch.device("cuda"))
        assert engine.stream_overlap is True
        engine.stream_overlap = False
        assert engine.stream_overlap is False
        engine.stream_overlap = True


class TestChunks:
    @pytest.mark.parametrize("seconds", [0.1, 0.2])
    def test_pieces_of_a_segment_join_to_its_wave(self, engine: IndexTTS2, seconds: float) -> None:
        whole = stream(engine)
        engine.stream_chunk_s = seconds
        try:
            pieces = stream(engine)
        finally:
            engine.stream_chunk_s = 0
        assert len(pieces) > len(whole)
        assert engine.last_telemetry.settings["stream_chunk_s"] == seconds
        torch.testing.assert_close(torch.cat(pieces, 1), torch.cat(whole, 1), atol=1 / 32768, rtol=0)

    def test_the_first_piece_leaves_before_the_second_is_made(self, engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[int] = []
        voice = engine._stages.voice
        run = voice._network
        monkeypatch.setattr(voice, "_network", lambda mel: made.append(1) or run(mel))
        monkeypatch.setattr(engine, "_stream_chunk_s", 0.05)
        request = engine._bound_request({"spk_audio_prompt": VOICE, "text": "Hello there.", **SHORT})
        left: list[int] = []

        class Job:
            def check(self) -> None:
                pass

            def progress(self, fraction: float, message: str) -> None:
                pass

        engine._worker.call(lambda _: engine._render_stream(request, Job(), lambda piece: left.append(len(made))))  # type: ignore[arg-type]
        assert len(left) > 2
        assert left[0] < left[-1]

    def test_there_is_no_click_where_pieces_join(self, engine: IndexTTS2) -> None:
        """The step of the wave at a join is no larger than the steps beside it in the wave that was made in one go."""
        whole = torch.cat(stream(engine, text="Hello there."), 1)[0]
        engine.stream_chunk_s = 0.05
        try:
            pieces = stream(engine, text="Hello there.")
        finally:
            engine.stream_chunk_s = 0
        joins = torch.tensor([piece.shape[1] for piece in pieces[:-1]]).cumsum(0)
        steps = torch.cat(pieces, 1)[0].diff().abs()
        assert len(joins) > 3
        assert (steps[joins - 1] - whole.diff().abs()[joins - 1]).abs().max() < 1 / 32768
        assert steps[joins - 1].max() <= whole.diff().abs().max()

    def test_the_context_is_no_smaller_than_what_a_frame_reaches(self, engine: IndexTTS2) -> None:
        vocoder = engine._stages.vocoder
        assert isinstance(vocoder, BigVGAN)
        mel = torch.randn(1, 80, 200, requires_grad=True)
        middle = 100 * vocoder.hop
        seen = []
        for sample in (middle, middle + vocoder.hop - 1):
            (gradient,) = torch.autograd.grad(vocoder.unclamped(mel)[0, 0, sample], mel)
            frames = gradient.abs().sum((0, 1)).nonzero().flatten() - 100
            seen += [int(-frames.min()), int(frames.max())]
        assert max(seen) <= context_frames(vocoder) <= CONTEXT_FRAMES + 1

    def test_a_vocoder_that_looks_at_everything_is_not_cut(self) -> None:
        from indextts.config import SpectConfig

        vocoder = GriffinLim(SpectConfig(), iterations=1)
        mel = torch.randn(1, 80, 60) - 5
        (only,) = vocode_in_chunks(vocoder, lambda piece: vocoder(piece)[0], mel, 16)
        assert only.shape[1] == 60 * vocoder.hop

    @pytest.mark.parametrize("bad", [-1, True, "1", float("nan")])
    def test_a_wrong_length_is_refused(self, engine: IndexTTS2, bad: Any) -> None:
        with pytest.raises(ValueError, match="stream_chunk_s"):
            engine.stream_chunk_s = bad


def test_side_by_side_counts_once() -> None:
    watch = Stopwatch(torch.device("cpu"))
    zero = watch._start
    watch._marks = [
        ("gpt", (0,), zero, zero + 2),
        ("s2mel", (0,), zero + 2, zero + 3),
        ("gpt", (1,), zero + 2, zero + 4),
        ("prompt", (0,), zero, zero + 4),
    ]
    assert watch.overlapped() == pytest.approx(1)
