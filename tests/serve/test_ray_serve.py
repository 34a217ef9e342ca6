"""If this fails, the service does not come up behind Ray Serve, or shows what the plain server hides."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

KEY = "a-key-of-sixteen-characters"


def ask(url: str, body: dict[str, str] | None = None, key: str = KEY) -> tuple[int, bytes]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.slow
def test_the_command_behind_ray_serve(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra cluster")
    import soundfile

    from tests.parallel.fakes import VOICE

    soundfile.write(tmp_path / "anna.wav", VOICE[1], VOICE[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "indextts.cli", "serve", "--voices", str(tmp_path), "--random-weights", "--ray-serve"]
    options = ["--workers", "1", "--device", "cpu", "--port", str(port)]
    environment = {**os.environ, "INDEXTTS_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen([*command, *options], cwd=Path(__file__).parents[2], env=environment, stdout=log, stderr=log) as server:
        try:
            end = time.monotonic() + 300
            while "listening" not in (tmp_path / "log").read_text():
                assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
                assert time.monotonic() < end
                time.sleep(0.5)
            url = f"http://127.0.0.1:{port}"
            assert ask(f"{url}/health")[0] == 200
            status, sound = ask(f"{url}/v1/audio/speech", {"input": "Hello there.", "voice": "anna", "response_format": "wav"})
            assert (status, sound[:4]) == (200, b"RIFF")
            assert ask(f"{url}/v1/audio/speech", {"input": "Hi.", "voice": "anna"}, key="wrong")[0] == 401
            assert ask(f"{url}/v1/audio/speech", {"input": "Hi.", "voice": "nobody"})[0] == 400
        finally:
            server.send_signal(signal.SIGTERM)
    assert KEY not in (tmp_path / "log").read_text()
