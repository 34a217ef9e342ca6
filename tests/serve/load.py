"""``python -m tests.serve.load --count 1000 --clients 8``: the service under load, over HTTP on this machine; latency percentiles.

A small engine with random weights in this process, so the figures say what the service adds, not how fast a voice is. Every client sends
its next request when it has its answer; an answer 503 (queue full) is counted and sent again after a second.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
import uvicorn

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.cli_serve import server_options
from indextts.parallel import WorkerPool
from indextts.serve import make_app
from indextts.serve_voices import VoiceFolder


def one(url: str, number: int, counts: Counter[int]) -> float:
    """Seconds until the whole answer is there."""
    body = {"input": f"Number {number}.", "voice": "anna", "response_format": "wav", "seed": number}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    begin = time.perf_counter()
    while True:
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                assert answer.read(4) == b"RIFF"
                answer.read()
                counts[answer.status] += 1
                return time.perf_counter() - begin
        except urllib.error.HTTPError as error:
            with error:
                counts[error.code] += 1
                if error.code != 503:
                    raise
            time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, WorkerPool(engine=lambda: IndexTTS2.from_random("small", device="cpu")) as pool:
        rate, clip = made_up_clip(3.0)
        soundfile.write(Path(folder) / "anna.wav", clip, rate)
        server = uvicorn.Server(uvicorn.Config(make_app(pool, VoiceFolder(folder)), **server_options("127.0.0.1", port)))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        url, counts = f"http://127.0.0.1:{port}/v1/audio/speech", Counter[int]()
        one(url, 0, Counter())
        begin, busy_before = time.perf_counter(), pool.stats()["busy_s"]
        with ThreadPoolExecutor(arguments.clients) as clients:
            seconds = list(clients.map(lambda number: one(url, number, counts), range(arguments.count)))
        total = time.perf_counter() - begin
        busy = pool.stats()["busy_s"] - busy_before
        server.should_exit = True
        thread.join(20)
    cuts = statistics.quantiles(seconds, n=100)
    print(f"{len(seconds)} answers, {arguments.clients} clients, {total:.0f} s; statuses {dict(counts)}; load {os.getloadavg()[0]:.1f}")
    print(f"latency s: p50 {cuts[49]:.2f}, p90 {cuts[89]:.2f}, p99 {cuts[98]:.2f}, most {max(seconds):.2f}")
    print(f"engine busy {100 * busy / total:.0f} % of the time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
