"""Copy synthesis: a source's own speech through ever more of the system, which shows the part that costs the words.

``source`` -> ``mel + Griffin-Lim`` (the mel's own loss) -> ``mel + vocoder`` -> ``codes copy`` (the source's own codes and text through
S2Mel and vocoder; no choice of the language model in it) -> ``clone``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from indextts.audio import speaker_waveforms
from indextts.evaluate.render import Clip
from indextts.evaluate.sound import floats
from indextts.evaluate.sources import Sound
from indextts.models.griffin_lim import GriffinLim
from indextts.models.mel import mel_spectrogram

if TYPE_CHECKING:
    from indextts.engine.stages import Stages
    from indextts.pipeline import IndexTTS2

ITERATIONS = 60
COPIES = ("mel + Griffin-Lim", "mel + vocoder", "codes copy")


def copies(tts: IndexTTS2, sound: Sound, text: str, prompt: Sound, seed: int = 0) -> dict[str, Clip]:
    """Copies of ``sound``, which says ``text``, by name; ``prompt`` is a clip of the same voice. Runs on the engine's own thread."""

    def work(_: Any) -> dict[str, Clip]:
        stages = tts._stages
        with stages.running():
            makers: dict[str, Callable[[], torch.Tensor]] = {
                "mel + Griffin-Lim": lambda: _griffin_lim(stages, sound),
                "mel + vocoder": lambda: stages.mel_to_wave(_mel(stages, sound)),
                "codes copy": lambda: _recoded(tts, stages, sound, text, prompt, seed),
            }
            return {name: Clip(floats(make().float().cpu().numpy()).clip(-1, 1), tts.sample_rate) for name, make in makers.items()}

    result: dict[str, Clip] = tts._worker.call(work)
    return result


def vocoded(tts: IndexTTS2, sound: Sound) -> Clip:
    """``sound`` as a mel, which the vocoder makes sound again."""

    def work(_: Any) -> torch.Tensor:
        stages = tts._stages
        with stages.running():
            return stages.mel_to_wave(_mel(stages, sound))

    wave: torch.Tensor = tts._worker.call(work)
    return Clip(floats(wave.float().cpu().numpy()).clip(-1, 1), tts.sample_rate)


def _mel(stages: Stages, sound: Sound) -> torch.Tensor:
    spect = stages.config.s2mel.preprocess_params
    wave, _ = speaker_waveforms(*sound)
    return mel_spectrogram(wave.to(stages.device)[None], spect.spect_params, spect.sr)


def _griffin_lim(stages: Stages, sound: Sound) -> torch.Tensor:
    spect = stages.config.s2mel.preprocess_params
    wave: torch.Tensor = GriffinLim(spect.spect_params, spect.sr, ITERATIONS).to(stages.device)(_mel(stages, sound))
    return wave


def _recoded(tts: IndexTTS2, stages: Stages, sound: Sound, text: str, prompt: Sound, seed: int) -> torch.Tensor:
    """Codes of ``sound`` with the latents of ``text``, in the voice of ``prompt``."""
    features = stages.speaker_prompt(*sound).features
    codes = stages.semantic_codec.quantize(features)[0].reshape(1, -1)
    speaker = stages.speaker_prompt(*prompt)
    emotion = stages.merge_emotion(speaker, stages.emotion_prompt(*prompt), 1.0)
    ids = torch.tensor([[i for segment in tts.frontend.segments(text) for i in segment.ids]], dtype=torch.int32, device=stages.device)
    codes = codes[:, : stages.config.gpt.max_mel_tokens - 1]
    inference = stages.config.inference
    mel = stages.codes_to_mel(
        codes,
        stages.codes_to_latents(ids, speaker, emotion, codes),
        speaker,
        steps=inference.diffusion_steps,
        guidance=inference.inference_cfg_rate,
        duration_factor=1.0,
        generator=torch.Generator(stages.device).manual_seed(seed),
    )
    return stages.mel_to_wave(mel)
