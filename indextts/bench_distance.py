"""How far a state's output is from that of the plain float32 path.

Sampled codes part for good at the first one that differs, so waves of whole calls say nothing about rounding. Each stage is therefore
given the plain path's input: the latents, mel and wave of fixed codes from fixed noise, compared by ``|a - b| / |b|`` (L2 norms); and
the sampled codes of one seed by the part of them that comes before the first difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from indextts.bench_switches import Switches

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

CODES = 48
TEXT = "The harbour was quiet when the ferry came in."


@dataclass(frozen=True)
class Reference:
    """What the plain float32 path gives for a fixed input: codes by number of beams, latents and mel; the wave of that mel."""

    clip: Any
    codes: dict[int, Tensor]
    latents: Tensor
    mel: Tensor
    wave: Tensor

    @classmethod
    def of(cls, tts: IndexTTS2, clip: Any, beams: list[int]) -> Reference:
        """Put ``tts`` on the plain path in float32 and run it; the caller puts it back."""
        Switches().apply(tts)
        probe = _Probe(tts, clip)
        codes = {count: probe.codes(count) for count in beams}
        fixed = probe.fixed_codes()
        latents = probe.latents(fixed)
        mel = probe.mel(fixed, latents, None)
        return cls(clip, codes, latents, mel, probe.wave(mel))

    def distance(self, tts: IndexTTS2, beams: int, steps: int | None) -> dict[str, float]:
        """Relative errors of ``latents``, ``mel`` and ``wave`` as ``tts`` is now, and ``codes``: the part that agrees, 0 to 1."""
        probe = _Probe(tts, self.clip)
        fixed, expected = probe.fixed_codes(), self.codes[beams]
        found = probe.codes(beams)
        shorter = min(found.numel(), expected.numel())
        differing = (found.flatten()[:shorter] != expected.flatten()[:shorter]).nonzero()
        agreeing = int(differing[0]) if len(differing) else shorter
        return {
            "codes": agreeing / max(found.numel(), expected.numel()),
            "latents": _relative(probe.latents(fixed), self.latents),
            "mel": _relative(probe.mel(fixed, self.latents, steps), self.mel),
            "wave": _relative(probe.wave(self.mel), self.wave),
        }


class _Probe:
    """The stages of one engine on a fixed input, each by itself; everything comes back on the CPU in float32."""

    def __init__(self, tts: IndexTTS2, clip: Any) -> None:
        self.tts, self.stages = tts, tts._stages
        self.request = tts._bound_request({"spk_audio_prompt": clip, "text": TEXT})
        voice = self.request.voice
        self.ids = torch.tensor([self.request.segments[0].ids], dtype=torch.int32, device=tts.device)
        self.speaker = self._run(lambda: self.stages.speaker_prompt(voice.samples, voice.rate))
        emotion = self._run(lambda: self.stages.emotion_prompt(voice.samples, voice.rate))
        self.emotion = self._run(lambda: self.stages.merge_emotion(self.speaker, emotion, 1.0))

    def fixed_codes(self) -> Tensor:
        vocabulary = self.tts.cfg.semantic_codec.codebook_size
        return torch.randint(vocabulary, (1, CODES), generator=torch.Generator().manual_seed(2)).to(self.tts.device)

    def codes(self, beams: int) -> Tensor:
        import dataclasses

        sampling, stages = dataclasses.replace(self.request.sampling, num_beams=beams), self.stages
        draws = torch.Generator(self.tts.device).manual_seed(3)
        made, _ = self._run(lambda: stages.text_to_codes(self.ids, self.speaker, self.emotion, sampling, draws, forced_codes=CODES))
        codes: Tensor = made.codes.cpu()
        return codes

    def latents(self, codes: Tensor) -> Tensor:
        found: Tensor = self._run(lambda: self.stages.codes_to_latents(self.ids, self.speaker, self.emotion, codes)).float().cpu()
        return found

    def mel(self, codes: Tensor, latents: Tensor, steps: int | None) -> Tensor:
        draws, given = torch.Generator(self.tts.device).manual_seed(4), latents.to(self.tts.device)
        length = {"steps": steps or self.request.diffusion_steps, "guidance": self.request.guidance, "duration_factor": 1.0}
        options: dict[str, Any] = {**length, "generator": draws}
        mel: Tensor = self._run(lambda: self.stages.codes_to_mel(codes, given, self.speaker, **options)).float().cpu()
        return mel

    def wave(self, mel: Tensor) -> Tensor:
        wave: Tensor = self._run(lambda: self.stages.mel_to_wave(mel.to(self.tts.device))).float().cpu()
        return wave

    def _run(self, function: Any) -> Any:
        """On the engine's own thread, as every use of its stages."""

        def work(_: object) -> Any:
            with self.stages.running():
                return function()

        return self.tts._worker.call(work)


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12))
