"""Many mixed inferences in one process: ``python -m tests.soak --count 1000``. Memory must stay flat within 1 % after the warm-up.

Voices, texts, emotions, seeds, beams, steps, streams, batches, precisions, cancelled and refused calls take turns. After each switch of
precision one fixed call must sound as it did the first time in that precision. Every tenth of the count one line with the resident memory
of the process and, on a GPU, what torch has allocated.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.utils.resource_monitor import get_process_memory_mb

TEXTS = (
    "Good morning.", "The ferry came in at 7:45, and nobody was waiting.", "One. Two. Three. Four.", "你好，世界。", "It costs $3.50!",
    "A longer sentence, with commas, and a few more words than the others have, so that it takes longer.",
)  # fmt: skip


FIXED: dict[str, Any] = {"text": TEXTS[1], "seed": 7, "num_beams": 1, "diffusion_steps": 2, "max_mel_tokens": 24}
LOUDEST = 32767


class Precisions:
    """Switches between what the device has, and remembers how the fixed call sounded in each."""

    def __init__(self, tts: IndexTTS2, clip: Any) -> None:
        self.names = ["fp32", "tf32", "bf16", "fp16"] if tts.device.type == "cuda" else ["fp32", "bf16"]
        self.first: dict[str, np.ndarray] = {}
        self.worst = 0.0  # largest difference of a sample between two renderings of the fixed call, in parts of full scale
        self._tts, self._clip = tts, clip

    def switch(self, name: str) -> None:
        """Set a precision and make the fixed call."""
        self._tts.set_precision(name)
        _, samples = self._tts.infer(self._clip, **FIXED)
        known = self.first.setdefault(name, samples)
        same = len(known) == len(samples)
        self.worst = max(self.worst, float(np.abs(known.astype(int) - samples).max()) / LOUDEST if same else 1.0)


def voices() -> list[tuple[int, np.ndarray]]:
    """More than one, with different contents."""
    rate, clip = made_up_clip(3.0)
    return [(rate, np.roll(clip, 1000 * i) * (1 - 0.1 * i)) for i in range(4)]


def call(tts: IndexTTS2, chance: random.Random, clips: list[Any], folder: Path, precisions: Precisions) -> str:
    """One inference of some kind; which."""
    given: dict[str, Any] = {
        "spk_audio_prompt": chance.choice(clips),
        "text": chance.choice(TEXTS),
        "seed": chance.randrange(1000),
        "num_beams": chance.choice((1, 1, 3)),
        "diffusion_steps": chance.choice((1, 2, 5)),
        "max_mel_tokens": chance.choice((12, 24, 40)),
    }
    kind = chance.choice(("plain", "precision", "emotion", "clip", "file", "stream", "batch", "cancelled", "left", "refused"))
    if kind == "precision":
        precisions.switch(chance.choice(precisions.names))
    elif kind == "emotion":
        tts.infer(**given, emo_vector=[chance.random() for _ in range(8)], use_random=chance.random() < 0.5)
    elif kind == "clip":
        tts.infer(**given, emo_audio_prompt=chance.choice(clips), emo_alpha=0.7)
    elif kind == "file":
        tts.infer(**given, output_path=folder / "speech.wav")
    elif kind == "stream":
        for _ in tts.infer(**given, stream_return=True):
            pass
    elif kind == "batch":
        tts.infer_batch([{**given, "text": text} for text in TEXTS[:2]])
    elif kind == "cancelled":
        reports = itertools.count()

        def stop(*_: Any) -> None:
            if next(reports) == 2:
                raise InterruptedError

        with contextlib.suppress(InterruptedError):
            tts.infer(**given, progress=stop)
    elif kind == "left":
        next(iter(tts.infer(**{**given, "text": TEXTS[2]}, stream_return=True, max_text_tokens_per_segment=8)))
    elif kind == "refused":
        with contextlib.suppress(ValueError):
            tts.infer(**{**given, "num_beams": 0})
    else:
        tts.infer(**given)
    return kind


def memory(tts: IndexTTS2) -> tuple[float, float]:
    """MiB resident (what the allocator keeps for itself handed back) and allocated on the GPU."""
    gc.collect()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    device_mb = 0.0
    if tts.device.type == "cuda":
        import torch

        device_mb = torch.cuda.memory_allocated(tts.device) / 2**20
    return get_process_memory_mb(), device_mb


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", choices=("small", "release"), default="small")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after that time, however many calls were made")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chance, clips = random.Random(arguments.seed), voices()
    kinds: dict[str, int] = {}
    rows: list[dict[str, float]] = []
    with IndexTTS2.from_random(arguments.size, device=arguments.device) as tts, tempfile.TemporaryDirectory() as folder:
        precisions, usual = Precisions(tts, clips[0]), tts.precision
        begin = time.perf_counter()
        for number in range(1, arguments.count + 1):
            try:
                kind = call(tts, chance, clips, Path(folder), precisions)
            except RuntimeError as error:
                if "ended every segment" not in str(error):
                    raise
                kind = "no sound"
            kinds[kind] = kinds.get(kind, 0) + 1
            over = time.perf_counter() - begin > arguments.seconds
            if over or number % max(1, arguments.count // 10) == 0:
                precisions.switch(usual)  # what the weights take depends on it
                resident, device = memory(tts)
                rows.append({"calls": number, "resident_mb": resident, "device_mb": device, "s": time.perf_counter() - begin})
                print(f"{number:6} calls  {resident:9.1f} MB resident  {device:9.1f} MB on the GPU  {rows[-1]['s']:6.0f} s", flush=True)
            if over:
                break
    warm = rows[len(rows) * 3 // 10 :]  # the first three tenths warm up: caches, buffers, lazy imports
    growth = {}
    for name in ("resident_mb", "device_mb"):
        growth[name] = 100 * (max(row[name] for row in warm) / warm[0][name] - 1) if warm[0][name] else 0.0
    flat = max(growth.values()) <= 1
    print(f"kinds: {kinds}")
    verdict = "flat" if flat else "NOT flat"
    print(f"growth after the warm-up: {growth['resident_mb']:.2f} % resident, {growth['device_mb']:.2f} % on the GPU: {verdict}")
    same = precisions.worst <= 0.02  # rounding: which kernel a library takes for a shape may change
    print(f"the fixed call in {len(precisions.first)} precisions: farthest from its first rendering {precisions.worst:.1e} of full scale")
    if arguments.json:
        report = {"worst_difference": precisions.worst, "rows": rows, "growth_percent": growth, "kinds": kinds, "pid": os.getpid()}
        Path(arguments.json).write_text(json.dumps(report, indent=2), encoding="utf-8")
    return 0 if flat and same else 1


if __name__ == "__main__":
    sys.exit(main())
