"""An engine that speaks at once: what panels need of ``IndexTTS2``, without networks. The front-end is the real one."""

from __future__ import annotations

import functools
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indextts.config import IndexTTSConfig, InferenceConfig
from indextts.engine.telemetry import SegmentRecord, StageTime, Telemetry
from indextts.release.tiny_bpe import tiny_tokenizer
from indextts.text import Glossary, TextFrontend, TextNormalizer, Tokenizer

VOICE = (22050, np.sin(np.arange(22050) / 20).astype(np.float32) * 0.3)


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer that engines with random weights use."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "bpe.model"
        model.write_bytes(tiny_tokenizer())
        return Tokenizer(model)


class FakeTTS:
    """Ten steps a call, each reported; ``hold`` keeps a call inside until it is set (or cancelled)."""

    sample_rate = 22050

    def __init__(self) -> None:
        self.name, self.seed, self.precision, self.release = "fake", None, "fp32", None
        self.device = torch.device("cpu")
        self.cfg = IndexTTSConfig(inference=InferenceConfig(max_mel_tokens=60, diffusion_steps=4), name="fake")
        self.frontend = TextFrontend(tokenizer(), TextNormalizer(Glossary(), "identity"))
        self.normalizer = self.frontend.normalizer
        self.emotion_classifier: Any = None
        self.last_telemetry = Telemetry()
        self.calls: list[dict[str, Any]] = []
        self.entered, self.hold = threading.Event(), threading.Event()
        self.hold.set()
        self.fail: BaseException | None = None
        self.warns: str | None = None

    def infer(
        self,
        spk_audio_prompt: Any,
        text: str,
        output_path: Any = None,
        stream_return: bool = False,
        seed: int | None = None,
        progress: Callable[[float, str], None] | None = None,
        **more: Any,
    ) -> Any:
        self.calls.append({"spk_audio_prompt": spk_audio_prompt, "text": text, "seed": seed, **more})
        if not text.strip():
            raise ValueError("the text is empty: nothing to say")
        if stream_return:
            return self._pieces(text, seed or 0, progress)
        self._work(text, seed or 0, progress)
        return self.sample_rate, self._sound(seed or 0).reshape(-1, 1)

    def default_voice(self) -> Any:
        return VOICE

    def _pieces(self, text: str, seed: int, progress: Any) -> Iterator[np.ndarray]:
        sound = self._sound(seed).astype(np.float32) / 32767
        yield sound[None, :1000]
        self._work(text, seed, progress)
        yield sound[None, 1000:]

    def _sound(self, seed: int) -> np.ndarray:
        return (np.random.default_rng(seed).standard_normal(4410) * 3000).astype(np.int16)

    def _work(self, text: str, seed: int, progress: Any) -> None:
        self.entered.set()
        if self.warns:
            warnings.warn(self.warns, stacklevel=3)  # of indextts.runs, as the engine's own are of indextts
        for step in range(10):
            while not self.hold.wait(0.01):
                self._report(progress, 0.1, "segment 1 of 1: 10 codes")
            if self.fail:
                raise self.fail
            self._report(progress, step / 10, f"segment 1 of 1: {step * 10} codes")
            time.sleep(0.001)
        self.last_telemetry = Telemetry(
            total_s=0.4, gpt_s=0.2, s2mel_s=0.1, bigvgan_s=0.05, other_s=0.05, audio_s=0.2, rtf=2.0, tokens=10, mel_frames=17, seed=seed,
            text=text, settings={"precision": self.precision, "num_beams": 3, "max_mel_tokens": 60, "device": "cpu"},
            segments=[SegmentRecord(0, 4, 10, 17, 4410, False)], stages=[StageTime("gpt", 0, 0.0, 0.2)],
        )  # fmt: skip
        self._report(progress, 1.0, "done")

    @staticmethod
    def _report(progress: Any, fraction: float, message: str) -> None:
        if progress is not None:
            progress(fraction, message)
