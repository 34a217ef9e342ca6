"""Figures for the worker pool: ``python -m tests.pool_trial [--gpus 2] [--size release] [--requests 40] [--kills 10]``.

Without ``--gpus`` the workers run on the CPU with one thread each. Tables: throughput of two workers against one; kill -9 at random
moments and whether every result is there, in order and bit-equal; many threads at once.

With ``--gpus`` (untried) one worker a GPU, at release size with random weights unless told otherwise, and ``--codes`` semantic codes a
request; ``--batch`` is what a worker renders together. Kills and threads want batches of one there: in larger ones a request's neighbours
decide its last bits.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.parallel import WorkerPool

TEXT = "The ferry came in at a quarter to eight, and number {} was waiting on the pier."
VOICE = made_up_clip(3.0)
MOST_S = 300.0  # for a killed worker to be back


def requests(count: int, **options: Any) -> list[dict[str, Any]]:
    return [{"spk_audio_prompt": VOICE, "text": TEXT.format(i), "seed": i, **options} for i in range(count)]


def pool_of(workers: int, arguments: argparse.Namespace) -> WorkerPool:
    make: Callable[[], IndexTTS2]
    if arguments.gpus:
        make = functools.partial(IndexTTS2.from_random, arguments.size, use_fp16=True)
        return WorkerPool(workers, engine=make, batch_size=arguments.batch)
    make = functools.partial(IndexTTS2.from_random, arguments.size, device="cpu")
    return WorkerPool(workers, engine=make, threads=1, batch_size=arguments.batch)


def throughput(arguments: argparse.Namespace, most: int) -> dict[str, Any]:
    """Seconds for the same requests on one worker and on all."""
    given = requests(arguments.requests, **arguments.options)
    found: dict[str, Any] = {}
    for workers in (1, most):
        with pool_of(workers, arguments) as pool:
            # The voice's prompt is cached by then; on a GPU graphs of all lengths are captured too.
            list(pool.map(given if arguments.gpus else given[:workers]))
            times = []
            for _ in range(arguments.rounds):
                begin = time.perf_counter()
                audio_s = sum(len(samples) / rate for rate, samples in pool.map(given))
                times.append(time.perf_counter() - begin)
            rows = pool.stats()["workers"]
        seconds = statistics.median(times)
        devices = [[row[key] for key in ("device", "architecture", "precision")] for row in rows]
        found[f"{workers} workers"] = {"seconds": seconds, "all": times, "audio_s": audio_s, "audio_s_per_s": audio_s / seconds}
        found[f"{workers} workers"]["devices"] = devices
    found["speed-up"] = found["1 workers"]["seconds"] / found[f"{most} workers"]["seconds"]
    return found


class Killer(threading.Thread):
    """Kills a worker now and then, and the next one when the first is back: a request that loses two is given up, as promised."""

    def __init__(self, pool: WorkerPool, chance: random.Random, most: int) -> None:
        super().__init__()
        self.pool, self.chance, self.most = pool, chance, most
        self.killed, self.before = 0, pool.stats()["restarts"]
        self.back_s: list[float] = []  # from a kill to all workers being ready
        self.over = threading.Event()

    def run(self) -> None:
        while self.killed < self.most and not self.over.wait(self.chance.uniform(0.2, 3.0)):
            rows = [row for row in self.pool.stats()["workers"] if row["state"] in ("ready", "busy") and row["pid"]]
            if rows:
                os.kill(self.chance.choice(rows)["pid"], signal.SIGKILL)
                self.killed += 1
                begin, done = time.perf_counter(), self.pool.stats()["done"]
                while time.perf_counter() - begin < MOST_S:
                    time.sleep(0.2)
                    if self._are_back(len(rows)) and (self.over.is_set() or self.pool.stats()["done"] > done + 4):
                        break
                self.back_s.append(time.perf_counter() - begin)

    def _are_back(self, workers: int) -> bool:
        stats = self.pool.stats()
        return bool(stats["restarts"] >= self.before + self.killed and stats["ready"] == workers)


def kills(arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    """The same requests without and with workers killed at random moments."""
    given = requests(arguments.requests, **arguments.options)
    chance = random.Random(arguments.seed)
    with pool_of(workers, arguments) as pool:
        expected = [samples for _, samples in pool.map(given)]
        killed = rounds = 0
        right, back_s = True, []
        while killed < arguments.kills and rounds < 50:
            rounds += 1
            killer = Killer(pool, chance, arguments.kills - killed)
            killer.start()
            results = [samples for _, samples in pool.map(given)]
            killer.over.set()
            killer.join()
            killed += killer.killed
            back_s += killer.back_s
            right = right and len(results) == len(expected) and all(map(np.array_equal, results, expected))
        stats = pool.stats()
    return {
        "killed": killed,
        "rounds": rounds,
        "all present, in order, bit-equal": right,
        "seconds until all were ready again, median": statistics.median(back_s) if back_s else None,
        "restarts": stats["restarts"],
        "failed": stats["failed"],
    }


def crowd(arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    """100 threads with 10 requests each, then the same requests one after the other: every answer must have the same bits.

    That holds for batches of one, as on the CPU; in larger ones a sample may differ by a 16-bit step.
    """
    places = [(client, i) for client in range(arguments.threads) for i in range(arguments.each)]

    def one(client: int, i: int) -> dict[str, Any]:
        codes = 4 + (client * 7 + i) % 12
        return {"spk_audio_prompt": VOICE, "text": f"Client {client}.", "seed": 10 * client + i, "max_mel_tokens": codes, **QUICK}

    def digest(result: Any) -> str:
        return hashlib.sha256(result[1].tobytes()).hexdigest()

    with pool_of(workers, arguments) as pool:

        def ask(client: int) -> list[str]:
            futures = [pool.submit(one(client, i), wait_s=None) for i in range(arguments.each)]
            return [digest(future.result()) for future in futures]

        begin = time.perf_counter()
        with ThreadPoolExecutor(arguments.threads) as clients:
            answers = [answer for client in clients.map(ask, range(arguments.threads)) for answer in client]
        seconds = time.perf_counter() - begin
        done = pool.stats()["done"]
        alone = [digest(result) for result in pool.map(one(*place) for place in places)]
    return {
        "requests": len(places),
        "answered": len(answers),
        "done by the workers": done,
        "different answers": len(set(answers)),
        "unlike the same request alone": sum(a != b for a, b in zip(answers, alone, strict=True)),
        "seconds": seconds,
    }


QUICK: dict[str, Any] = {"diffusion_steps": 1, "num_beams": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=0, help="workers, one a GPU")
    parser.add_argument("--size", choices=("small", "release"))
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--threads", type=int, default=100)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--codes", type=int, default=250, help="of each request on a GPU")
    parser.add_argument("--beams", type=int, default=3, help="on a GPU")
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds of the throughput, whose median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("throughput", "kills", "crowd"))
    arguments = parser.parse_args()
    arguments.size = arguments.size or ("release" if arguments.gpus else "small")
    on_gpus = {"forced_codes": arguments.codes, "num_beams": arguments.beams}
    arguments.options = on_gpus if arguments.gpus else {"max_mel_tokens": 40, "diffusion_steps": 5}
    workers = arguments.gpus or 2
    for name, trial in (("throughput", throughput), ("kills", kills), ("crowd", crowd)):
        if arguments.only in (None, name):
            print(name, json.dumps(trial(arguments, workers)), f"load {os.getloadavg()[0]:.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
