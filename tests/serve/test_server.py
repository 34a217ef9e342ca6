"""If this fails, the public client library of the speech API, or the command, cannot use the service."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from indextts import cli
from tests.parallel.fakes import VOICE, FakeWorker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client and the server, about each other's parts


@pytest.fixture
def url(app_of: Any) -> Iterator[str]:
    """A server on a port of its own."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra cluster")
    from indextts.cli_serve import server_options

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app_of(FakeWorker()), **server_options("127.0.0.1", port)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(20)


def test_the_public_client_works_unchanged(url: str) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        made = client.audio.speech.create(model="tts-1", voice="anna", input="hello", response_format="wav")
        samples, rate = soundfile.read(io.BytesIO(made.content), dtype="int16")
        assert (rate, bytes(samples.astype(np.uint8))) == (22050, b"hello")
        streaming = client.audio.speech.with_streaming_response
        with streaming.create(model="tts-1", voice="anna", input="hello", response_format="wav", stream_format="audio") as answer:
            data = b"".join(answer.iter_bytes())
        assert bytes(np.frombuffer(data[44:], "<i2").astype(np.uint8)) == b"hello"
        with pytest.raises(openai.BadRequestError, match="no voice 'nobody'; known: anna, bob"):
            client.audio.speech.create(model="tts-1", voice="nobody", input="hello")
        assert [model.id for model in client.models.list()] == ["indextts-2"]


def test_requests_that_are_no_http(url: str) -> None:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    for junk in (b"\x16\x03\x01\x00\xff" * 20, b"GET " + b"x" * 70_000, b"POST /v1/audio/speech HTTP/1.1\r\ncontent-length: -5\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in connection.makefile("rb").read()
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=url, api_key="any") as client:
        assert client.models.list().data


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "code", "why"),
        [
            (("--voices", "nowhere"), 2, "there is no folder of voices 'nowhere'"),
            (("--voices", "."), 2, "holds no .wav"),
            (("--voices", "v", "--host", "0.0.0.0"), 2, "set an API key"),
            (("--voices", "v", "--port", "0"), 2, "--port must be"),
            (("--voices", "v", "--workers", "0"), 2, "--workers must be"),
            (("--voices", "v", "--timeout", "0"), 2, "--timeout must be above 0"),
            (("--voices", "v", "--api-key-file", "nowhere"), 2, "--api-key-file 'nowhere' cannot be read"),
        ],
    )
    def test_bad_options_are_one_line(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        options: tuple[str, ...],
        code: int,
        why: str,
    ) -> None:
        pytest.importorskip("starlette", reason="needs the extra cluster")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("INDEXTTS_API_KEY", raising=False)
        (tmp_path / "v").mkdir()
        soundfile.write(tmp_path / "v" / "anna.wav", VOICE[1], VOICE[0])
        assert cli.main(["serve", "--random-weights", *options]) == code
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1

    def test_without_the_extra_one_line_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
        soundfile.write(tmp_path / "anna.wav", VOICE[1], VOICE[0])
        assert cli.main(["serve", "--random-weights", "--voices", str(tmp_path)]) == 1
        assert "pip install 'indextts2-lab[cluster]'" in capsys.readouterr().err
