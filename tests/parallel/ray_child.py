"""Two worker processes, put to every test at once; prints what happened as one line of JSON. See ``test_ray.py``."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.parallel import WorkerPool

MAKE = functools.partial(IndexTTS2.from_random, "small", device="cpu")
QUICK: dict[str, Any] = {"max_mel_tokens": 20, "diffusion_steps": 2}
VOICE = made_up_clip(1.0)
REQUESTS = [{"spk_audio_prompt": VOICE, "text": f"Hello there, number {i}.", "seed": i, **QUICK} for i in range(10)]


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def killed_in_stages() -> dict[str, Any]:
    """A worker killed while it makes codes, and one while it makes mel: whether the result is the same as without."""
    text = " ".join(f"The ferry came in at {i} and left again." for i in range(8))
    long = {"spk_audio_prompt": VOICE, "text": text, "seed": 3, "max_text_tokens_per_segment": 20}
    found: dict[str, Any] = {}
    with WorkerPool(2, engine=MAKE, threads=1) as pool:
        expected = pool.submit(long).result()[1]
        for stage in ("codes", "mel"):
            killed: list[int] = []

            def kill(_: float, message: str, stage: str = stage, killed: list[int] = killed) -> None:
                if stage in message and not killed:
                    killed.append(next(row["pid"] for row in pool.stats()["workers"] if row["load"]))
                    os.kill(killed[0], signal.SIGKILL)

            same = bool(np.array_equal(pool.submit({**long, "progress": kill}).result()[1], expected))
            found[stage] = {"killed": len(killed), "same": same}
    return found


def main() -> dict[str, Any]:
    torch.set_num_threads(1)
    with MAKE() as tts:
        expected = [tts.infer(**given)[1] for given in REQUESTS]
    kept = Kept()
    logging.getLogger("indextts").addHandler(kept)
    with WorkerPool(2, engine=MAKE, threads=1) as pool:
        rows = pool.stats()["workers"]
        found: dict[str, Any] = {
            "processes": len({row["pid"] for row in rows} - {os.getpid(), None}),
            "threads": [row["threads"] for row in rows],
        }
        results = []
        for result in pool.map(REQUESTS):
            results.append(result[1])
            if len(results) == 3:
                os.kill(rows[0]["pid"], signal.SIGKILL)
        found["same"] = [bool(np.array_equal(a, b)) for a, b in zip(results, expected, strict=True)]
        found["failed"] = pool.stats()["failed"]
        found["stream_same"] = bool(np.array_equal(np.concatenate(list(pool.stream(REQUESTS[0]))), expected[0].reshape(-1)))
        try:
            pool.submit({**REQUESTS[0], "num_beams": 0}).result()
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
        reports: list[Any] = []
        future = pool.submit({**REQUESTS[0], "text": "One. " * 300, "progress": lambda *report: reports.append(report)})
        while len(reports) < 2:
            time.sleep(0.05)
        begin = time.monotonic()
        future.cancel()
        try:
            future.result(60)
        except CancelledError:
            found["cancelled_within_s"] = time.monotonic() - begin
        found["reports"] = len(reports)
        end = time.monotonic() + 120
        while pool.stats()["ready"] < 2 and time.monotonic() < end:
            time.sleep(0.1)
        found["restarts"] = pool.stats()["restarts"]
        again = [result[1] for result in pool.map(REQUESTS[:4])]
        found["same_afterwards"] = [bool(np.array_equal(a, b)) for a, b in zip(again, expected, strict=False)]
    found["logged"] = sorted(set(kept.lines))
    return found


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(killed_in_stages() if "--stages" in sys.argv else main()) + "\n")
