"""If this fails, programs that speak the speech API get wrong sound or no answer, or the service shows what it must not."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from indextts.parallel_jobs import Ticket, WorkerDiedError
from indextts.serve_audio import PCM_RATE, encode, encode_pieces, formats
from tests.parallel.fakes import FakeWorker, until
from tests.serve.asgi import Answer, ask, call

Make = Callable[..., Any]
KEY = "a-key-of-sixteen-characters"
SPEECH = "/v1/audio/speech"


def speak(app: Any, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    return call(app, "POST", SPEECH, {"model": "tts-1", "input": "hello", "voice": "anna", **fields}, headers=headers)


def error_of(answer: Answer, status: int) -> str:
    assert answer.status == status, answer.body
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return str(error["message"])


class TestFormats:
    WAVE = (8000 * np.sin(np.arange(22050) / 20)).astype(np.int16)

    @pytest.mark.parametrize("kind", ["wav", "flac"])
    def test_lossless_files_hold_the_samples(self, kind: str) -> None:
        samples, rate = soundfile.read(io.BytesIO(encode(self.WAVE, 22050, kind)), dtype="int16")
        assert rate == 22050
        assert np.array_equal(samples, self.WAVE)

    def test_a_streamed_wav_is_readable_and_holds_the_samples(self) -> None:
        data = b"".join(encode_pieces(np.array_split(self.WAVE, 7), 22050, "wav"))
        assert np.array_equal(np.frombuffer(data[44:], "<i2"), self.WAVE)
        assert soundfile.info(io.BytesIO(data)).samplerate == 22050

    def test_raw_pcm_has_the_rate_that_clients_assume(self) -> None:
        whole = encode(self.WAVE, 22050, "pcm")
        pieces = b"".join(encode_pieces(np.array_split(self.WAVE, 7), 22050, "pcm"))
        assert len(whole) == 2 * PCM_RATE
        assert pieces == whole
        samples = np.frombuffer(whole, "<i2").astype(float)
        expected = 8000 * np.sin(np.arange(PCM_RATE) * 22050 / PCM_RATE / 20)
        assert np.abs(samples - expected)[500:-500].max() < 20

    @pytest.mark.parametrize("pieces", [1, 5])
    def test_mp3(self, pieces: int) -> None:
        if "mp3" not in formats():
            pytest.skip("this libsndfile has no MP3")
        data = b"".join(encode_pieces(np.array_split(self.WAVE, pieces), 22050, "mp3"))
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert rate == 22050
        assert abs(len(samples) - len(self.WAVE)) < 4000
        assert 6000 < np.abs(samples[4000:12000]).max() < 10000


class TestSpeech:
    def test_a_file(self, app_of: Make) -> None:
        answer = speak(app_of(), response_format="wav")
        assert (answer.status, answer.headers["content-type"]) == (200, "audio/wav")
        samples, _ = soundfile.read(io.BytesIO(answer.body), dtype="int16")
        assert bytes(samples.astype(np.uint8)) == b"hello"

    def test_what_the_engine_is_asked_for(self, app_of: Make, folder: Path) -> None:
        tickets: list[Ticket] = []
        worker = FakeWorker(lambda _, batch: tickets.extend(batch))
        app = app_of(worker)
        emotion = [0, 0, 0.5, 0, 0, 0, 0, 0]
        fields = {"speed": 2, "seed": 7, "emotion": emotion, "emotion_strength": 0.5, "voice": {"id": "bob"}}
        assert speak(app, response_format="wav", **fields).status == 200
        assert tickets[0].arguments == {"text": "hello", "duration_factor": 0.5, "seed": 7, "emo_vector": emotion, "emo_alpha": 0.5}
        speak(app, response_format="wav", instructions="tired")
        assert tickets[1].arguments["emo_text"] == "tired"

    def test_streams_send_sound_before_the_end(self, app_of: Make) -> None:
        answer = speak(app_of(), response_format="wav", stream_format="audio")
        assert bytes(np.frombuffer(answer.body[44:], "<i2").astype(np.uint8)) == b"hello"
        assert "content-length" not in answer.headers

    def test_events(self, app_of: Make) -> None:
        answer = speak(app_of(), response_format="wav", stream_format="sse")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.body.decode().split("\n\n") if line]
        sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
        assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
        assert events[-1]["type"] == "speech.audio.done"
        assert bytes(np.frombuffer(sound[44:], "<i2").astype(np.uint8)) == b"hello"

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"input": ""}, "input is empty"),
            ({"input": None}, "input must be a string"),
            ({"input": "x" * 4097}, "4097 characters; at most 4096"),
            ({"voice": "nobody"}, "no voice 'nobody'; known: anna, bob"),
            ({"voice": 3}, "voice must be the name"),
            ({"response_format": "opus"}, "response_format must be one of wav, flac"),
            ({"speed": 5}, "speed must be a number from 0.25 to 4"),
            ({"speed": "fast"}, "speed must be"),
            ({"speed": float("nan")}, "speed must be"),
            ({"seed": -1}, "seed must be"),
            ({"emotion": [1, 2]}, "emotion must be 8 numbers"),
            ({"spk_audio_prompt": "/etc/passwd"}, "unknown field 'spk_audio_prompt'"),
            ({"model": 3}, "model must be a string"),
            ({"stream_format": "x"}, "stream_format must be one of"),
        ],
    )
    def test_a_wrong_field_is_named(self, app_of: Make, fields: dict[str, Any], why: str) -> None:
        assert why in error_of(speak(app_of(), **fields), 400)

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 5000, b'{"input": "\\ud800", "voice": "anna", "voice": 1}']
    )
    def test_a_body_that_is_no_request(self, app_of: Make, body: bytes) -> None:
        error_of(call(app_of(), "POST", SPEECH, body=body), 400)

    def test_a_body_that_is_too_large_or_of_another_kind(self, app_of: Make) -> None:
        app = app_of()
        assert "64 KiB" in error_of(call(app, "POST", SPEECH, body=b" " * 70_000), 413)
        error_of(call(app, "POST", SPEECH, body=b"{}", headers={"content-type": "text/plain"}), 415)

    def test_other_paths_and_methods(self, app_of: Make) -> None:
        app = app_of()
        error_of(call(app, "GET", "/nowhere"), 404)
        error_of(call(app, "GET", SPEECH), 405)


class TestVoices:
    @pytest.mark.parametrize(
        "name", ["../secret", "link", "notes", ".hidden", "anna.wav", "/etc/passwd", "..", "", "anna\0", "ANNA", "%2e%2e/x"]
    )
    def test_no_name_leads_out_of_the_folder(self, app_of: Make, name: str) -> None:
        message = error_of(speak(app_of(), voice=name), 400)
        assert "secret" not in message.replace("../secret", "")

    def test_the_list_follows_the_folder(self, app_of: Make, folder: Path) -> None:
        app = app_of()
        assert call(app, "GET", "/v1/voices").json()["voices"] == ["anna", "bob"]
        (folder / "bob.flac").rename(folder / "carl.flac")
        assert call(app, "GET", "/v1/voices").json()["voices"] == ["anna", "carl"]

    def test_a_damaged_clip_is_one_clear_error(self, app_of: Make, folder: Path) -> None:
        app = app_of()
        (folder / "anna.wav").write_bytes(b"no audio")
        assert "cannot be decoded" in error_of(speak(app), 400)


class TestAccess:
    def test_the_key(self, app_of: Make, caplog: pytest.LogCaptureFixture) -> None:
        app = app_of(api_key=KEY, hosts=None)
        with caplog.at_level(logging.DEBUG):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer \xe9"}):
                assert "API key" in error_of(speak(app, headers), 401)
                assert call(app, "GET", "/metrics", headers=headers).status == 401
            assert speak(app, {"authorization": f"Bearer {KEY}"}).status == 200
            assert call(app, "GET", "/health").status == 200
        assert KEY not in caplog.text
        assert "hello" not in caplog.text

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1"])
    def test_a_page_of_another_site_cannot_use_a_service_without_key(self, app_of: Make, host: str) -> None:
        error_of(speak(app_of(), {"host": host}), 403)
        assert speak(app_of(), {"host": "[::1]:8000"}).status == 200

    def test_listening_for_others_needs_a_key(self) -> None:
        pytest.importorskip("starlette")
        from indextts.serve import check_listening

        check_listening("127.0.0.1", None)
        check_listening("0.0.0.0", KEY)
        with pytest.raises(ValueError, match="set an API key"):
            check_listening("0.0.0.0", None)
        with pytest.raises(ValueError, match="at least 16"):
            check_listening("0.0.0.0", "short")


class TestTrouble:
    def test_a_full_queue_is_503_with_a_hint_when_to_come_back(self, app_of: Make) -> None:
        opened = threading.Event()
        entered = threading.Event()

        def wait(*_: Any) -> None:
            entered.set()
            assert opened.wait(20)

        app = app_of(FakeWorker(wait), pool_options={"max_queue": 1})

        async def crowd() -> list[Answer]:
            body = json.dumps({"input": "hello", "voice": "anna", "response_format": "wav"}).encode()
            headers = {"content-type": "application/json"}
            first = asyncio.create_task(ask(app, "POST", SPEECH, body, headers))
            await asyncio.to_thread(entered.wait, 20)
            others = [asyncio.create_task(ask(app, "POST", SPEECH, body, headers)) for _ in range(3)]
            while sum(other.done() for other in others) < 2:  # one waits, two are refused
                await asyncio.sleep(0.01)
            opened.set()
            return await asyncio.gather(first, *others)

        answers = asyncio.run(crowd())
        assert sorted(answer.status for answer in answers) == [200, 200, 503, 503]
        assert all(answer.headers["retry-after"] == "5" for answer in answers if answer.status == 503)

    def test_a_fault_shows_nothing_of_the_inside(self, app_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        app = app_of()

        def broken(*_: Any, **__: Any) -> None:
            raise KeyError("/home/user/secret")

        monkeypatch.setattr(app.state.service.pool, "submit", broken)
        assert error_of(speak(app, response_format="wav"), 500) == "internal error"

    def test_a_worker_that_dies_twice(self, app_of: Make) -> None:
        def die(*_: Any) -> None:
            raise WorkerDiedError("killed")

        assert "try again" in error_of(speak(app_of(FakeWorker(die)), response_format="wav"), 503)

    @pytest.mark.parametrize("stream", [None, "audio"])
    def test_a_request_that_takes_too_long_is_given_up(self, app_of: Make, stream: str | None) -> None:
        opened = threading.Event()
        worker = FakeWorker(lambda *_: opened.wait(20) and None)
        answer = speak(app_of(worker, timeout_s=0.3), response_format="wav", stream_format=stream)
        opened.set()
        assert "too" in error_of(answer, 504) or "longer" in error_of(answer, 504)

    @pytest.mark.parametrize("stream", [None, "audio"])
    def test_a_client_that_leaves_frees_the_worker(self, app_of: Make, stream: str | None) -> None:
        opened = threading.Event()
        seen: list[Ticket] = []

        def wait(_: FakeWorker, batch: Sequence[Ticket]) -> None:
            seen.extend(batch)
            assert opened.wait(20)

        app = app_of(FakeWorker(wait))
        fields = {"input": "hello", "voice": "anna", "response_format": "wav", "stream_format": stream}
        answer = call(app, "POST", SPEECH, {name: value for name, value in fields.items() if value}, leave=True)
        assert answer.status == 499
        opened.set()
        until(lambda: seen[0].future.done())
        assert seen[0].future.cancelled()

    def test_health_and_metrics(self, app_of: Make) -> None:
        app = app_of()
        assert call(app, "GET", "/health").json() == {"status": "ok", "workers_ready": 1, "workers": 1}
        speak(app, response_format="wav")
        speak(app, voice="nobody")
        text = call(app, "GET", "/metrics").body.decode()
        assert f'indextts_http_answers_total{{path="{SPEECH}",status="200"}} 1' in text
        assert f'indextts_http_answers_total{{path="{SPEECH}",status="400"}} 1' in text
        assert "indextts_speech_seconds_count 1" in text
        assert "indextts_workers_ready 1" in text
        app.state.service.pool.close()
        assert call(app, "GET", "/health").status == 503
