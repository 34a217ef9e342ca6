"""One sentence through the system stage by stage, with every tensor between the stages at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from indextts.audio import pcm16
from indextts.engine.batching import segment_generators
from indextts.engine.telemetry import Telemetry
from indextts.runs import RunRecord
from widgets.lessons.engine import SEED, SENTENCE

if TYPE_CHECKING:
    from indextts.engine.stages import Stages
    from indextts.pipeline import IndexTTS2

T = TypeVar("T")


class Walk:
    """The first segment of a text on its way through ``tts``; each step may be taken again with other settings.

    ``settings`` are arguments of ``infer``. The steps call the engine's own stages in the order of its recipe and draw what it draws, so
    the wave at the end is that of ``tts.infer`` with the same seed.
    """

    def __init__(self, tts: IndexTTS2, text: str = SENTENCE, seed: int = SEED, **settings: Any) -> None:
        self.tts = tts
        arguments = {"spk_audio_prompt": tts.default_voice(), **settings, "text": text, "seed": seed}
        self.request = tts._bound_request(arguments)
        self.segment = self.request.segments[0]
        self.seed = seed
        voice = self.request.voice

        def prompts(stages: Stages) -> Any:
            speaker, emotion = stages.speaker_prompt(voice.samples, voice.rate), stages.emotion_prompt(voice.samples, voice.rate)
            return speaker, stages.merge_emotion(speaker, emotion, 1.0)

        self.speaker, self.emotion = self.on_engine(prompts)

    def on_engine(self, step: Callable[[Stages], T]) -> T:
        """Run ``step`` in the engine's thread, with the engine's settings in force."""
        stages = self.tts._stages

        def work(_: object) -> T:
            with stages.running():
                return step(stages)

        result: T = self.tts._worker.call(work)
        return result

    @property
    def ids(self) -> Tensor:
        """Text ids (1, L)."""
        return torch.tensor([self.segment.ids], dtype=torch.int32, device=self.tts.device)

    def codes(self, forced: int | None = None) -> Tensor:
        """Semantic codes (1, n): 50 of them are one second. ``forced``: exactly so many."""
        draws = segment_generators(self.seed, 0, self.tts.device)[0]

        def step(stages: Stages) -> Tensor:
            made, _ = stages.text_to_codes(self.ids, self.speaker, self.emotion, self.request.sampling, draws, forced_codes=forced)
            return made.codes[:, : int(made.lengths[0])]

        return self.on_engine(step)

    def latents(self, codes: Tensor) -> Tensor:
        """What the GPT knows at each code, (1, n, D)."""
        return self.on_engine(lambda stages: stages.codes_to_latents(self.ids, self.speaker, self.emotion, codes))

    def mel(self, codes: Tensor, latents: Tensor, steps: int | None = None, guidance: float | None = None) -> Tensor:
        """Mel spectrogram (1, 80, N) by flow matching, from noise that is the same for every call."""
        request = self.request
        noise = segment_generators(self.seed, 0, self.tts.device)[1]
        return self.on_engine(
            lambda stages: stages.codes_to_mel(
                codes,
                latents,
                self.speaker,
                steps=request.diffusion_steps if steps is None else steps,
                guidance=request.guidance if guidance is None else guidance,
                duration_factor=request.duration_factor,
                generator=noise,
            )
        )

    def wave(self, mel: Tensor) -> Tensor:
        """Waveform (1, 256 N) in [-1, 1]."""
        return self.on_engine(lambda stages: stages.mel_to_wave(mel)).float().cpu()

    def record(self, wave: Tensor, label: str) -> RunRecord:
        """A wave as a run record, for the players."""
        return RunRecord(0, label, 0.0, {"text": self.segment.text}, Telemetry(), self.tts.sample_rate, pcm16(32767 * wave).reshape(-1))


def log_mel_distance_db(first: Tensor, second: Tensor) -> float:
    """Root mean square difference of two log-mels (1, 80, N) in decibels, over the frames that both have."""
    frames = min(first.shape[-1], second.shape[-1])
    difference = (first[..., :frames] - second[..., :frames]).float()
    return float(difference.square().mean().sqrt()) * 20 / float(np.log(10))
