"""The stages of the system on one device: reference -> prompt, text -> codes, codes -> latents -> mel, mel -> wave.

On the plain path each stage calls its module as the papers describe it, one segment at a time. The accelerated path has the same results
up to float32 rounding: prompts from :class:`ReferencePass` on a GPU, codes from :class:`StaticDecoder`, whose prefix the latent pass uses
again, and mel from :class:`FastSolver`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from indextts.audio import emotion_waveform, speaker_waveforms
from indextts.config import IndexTTSConfig
from indextts.engine.chunks import vocode_in_chunks
from indextts.engine.decode import PrefixState
from indextts.engine.generate import GeneratedCodes, generate
from indextts.engine.memory import is_out_of_memory
from indextts.engine.offload import Offloaded
from indextts.engine.reference_cache import EmotionPrompt, SpeakerPrompt
from indextts.engine.sampling import SamplingParams
from indextts.engine.stage_switches import StageSwitches
from indextts.models.campplus import style_features
from indextts.models.length_regulator import target_frames
from indextts.models.mel import mel_spectrogram
from indextts.models.semantic_encoder import semantic_features_frontend, stack_features

if TYPE_CHECKING:
    from indextts.engine.reference_graphs import Heard
    from indextts.models.bigvgan import BigVGAN
    from indextts.models.campplus import CAMPPlus
    from indextts.models.emotion import EmotionMatrices
    from indextts.models.gpt import UnifiedVoice
    from indextts.models.griffin_lim import GriffinLim
    from indextts.models.s2mel import S2Mel
    from indextts.models.semantic_codec import SemanticCodec
    from indextts.models.semantic_encoder import SemanticEncoder

logger = logging.getLogger(__name__)
LOW_MEMORY_FRAMES = 256  # mel frames that the vocoder works on at once in the low-memory setting: 3 s, and the context a third more


@dataclass
class Models:
    """The networks of one voice system, in float32 on the CPU as loaded from its files."""

    config: IndexTTSConfig
    gpt: UnifiedVoice
    s2mel: S2Mel
    semantic_encoder: SemanticEncoder
    semantic_codec: SemanticCodec
    campplus: CAMPPlus
    vocoder: BigVGAN | GriffinLim
    emotion: EmotionMatrices

    def networks(self) -> dict[str, nn.Module]:
        """The torch modules by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}


class Stages(StageSwitches):
    """Runs :class:`Models` on ``device`` in a given precision; every method takes and returns tensors on that device."""

    def __init__(
        self, models: Models, device: torch.device, precision: str = "fp32", attention: str = "auto", *, use_accel: bool = True
    ) -> None:
        self.device = device
        self.config = models.config
        self.semantic_encoder = models.semantic_encoder.to(device)
        self.semantic_codec = models.semantic_codec.to(device)
        self.campplus = models.campplus.to(device)
        self.s2mel = models.s2mel.to(device)
        self.vocoder = models.vocoder.to(device)
        self.emotion = models.emotion.to(device)
        self.vocoder_frames: int | None = None  # most mel frames that the vocoder works on at once; None: all
        self._offloaded: list[Offloaded] = []
        self._side_stream: torch.cuda.Stream | None = None
        self._start_switches(models.gpt, precision, attention, use_accel)

    def set_low_memory(self, on: bool) -> None:
        """Keep on the CPU what runs once per voice, each layer visiting the device while it runs, and vocode in chunks."""
        if on == self.low_memory:
            return
        if self.reference is not None:
            self.reference.clear()  # graphs have recorded where weights were
        self.vocoder_frames = LOW_MEMORY_FRAMES if on else None
        if not on:
            while self._offloaded:
                self._offloaded.pop().restore()
            return
        gpt = self.gpt
        once_per_voice = (
            self.semantic_encoder,
            self.semantic_codec.encoder,
            self.campplus,
            gpt.conditioning_encoder,
            gpt.perceiver_encoder,
            gpt.emo_conditioning_encoder,
            gpt.emo_perceiver_encoder,
        )
        self._offloaded = [Offloaded(module, self.device) for module in once_per_voice]

    @property
    def low_memory(self) -> bool:
        """Whether :meth:`set_low_memory` is on."""
        return bool(self._offloaded)

    # ------------------------------------------------------------------------------------------------------- prompts

    def speaker_prompt(self, mono: np.ndarray, rate: int) -> SpeakerPrompt:
        """Everything that the speaker's clip (n,) contributes."""
        wav_22k, wav_16k = (wav.to(self.device) for wav in speaker_waveforms(mono, rate))
        clip, fbank = semantic_features_frontend(wav_16k), style_features(wav_16k)
        if (heard := self._heard([clip], fbank)) is not None:
            return self._speaker_from(heard, wav_22k)
        (features,) = self._semantic_features(clip)
        return self._speaker_of(features, fbank, wav_22k)

    def emotion_prompt(self, mono: np.ndarray, rate: int) -> EmotionPrompt:
        """Features and emotion vector e(features) of a clip (n,) in the role of emotion reference."""
        clip = semantic_features_frontend(emotion_waveform(mono, rate).to(self.device))
        if (heard := self._heard([clip])) is not None:
            return EmotionPrompt(heard.features[0], heard.emotions)
        (features,) = self._semantic_features(clip)
        return EmotionPrompt(features, self._emotion_of(features))

    def both_prompts(self, voice: tuple[np.ndarray, int], emotion: tuple[np.ndarray, int]) -> tuple[SpeakerPrompt, EmotionPrompt]:
        """:meth:`speaker_prompt` and :meth:`emotion_prompt` of two clips with their rates, encoded as one batch."""
        wav_22k, wav_16k = (wav.to(self.device) for wav in speaker_waveforms(*voice))
        clips = [semantic_features_frontend(wav) for wav in (wav_16k, emotion_waveform(*emotion).to(self.device))]
        fbank = style_features(wav_16k)
        if (replayed := self._heard(clips, fbank)) is not None:
            return self._speaker_from(replayed, wav_22k), EmotionPrompt(replayed.features[1], replayed.emotions[1:])
        heard, felt = self._semantic_features(*clips)
        speaker = self._speaker_of(heard, fbank, wav_22k)
        vectors = self._emotion_of(heard, felt)
        speaker.emotion = vectors[:1]
        return speaker, EmotionPrompt(felt, vectors[1:])

    def merge_emotion(self, speaker: SpeakerPrompt, emotion: EmotionPrompt, alpha: float) -> Tensor:
        """``e(speaker) + alpha (e(emotion) - e(speaker))``, (1, D); e(speaker) is kept in the prompt."""
        if speaker.emotion is None:
            speaker.emotion = self._emotion_of(speaker.features)
        return speaker.emotion + alpha * (emotion.vector - speaker.emotion)

    def _heard(self, clips: list[tuple[Tensor, Tensor]], fbank: Tensor | None = None) -> Heard | None:
        """What graphs make of front-end features of clips and the speaker's filterbank; None where plain calls are to do it."""
        if self.reference is None or self.low_memory:
            return None
        try:
            return self.reference(clips, fbank)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            logger.warning("reading clips without CUDA graphs from now on: a capture failed on %s: %s", self.device, error)
            self.reference.clear()
            self.reference = None
            return None

    def _speaker_from(self, heard: Heard, wav_22k: Tensor) -> SpeakerPrompt:
        """The prompt of the first clip."""
        assert heard.voice is not None
        quantised, latents, style = heard.voice
        mel = self._mel_of(wav_22k)
        condition = self.s2mel.length_regulator(quantised, torch.tensor([mel.shape[-1]]))
        return SpeakerPrompt(heard.features[0], style, condition, mel, latents, heard.emotions[:1])

    def _speaker_of(self, features: Tensor, fbank: Tensor, wav_22k: Tensor) -> SpeakerPrompt:
        mel = self._mel_of(wav_22k)
        style = self.campplus(fbank)
        _, quantised = self.semantic_codec.quantize(features)
        condition = self.s2mel.length_regulator(quantised, torch.tensor([mel.shape[-1]]))
        with self.gpt_autocast():
            latents = self.gpt.speaker_latents(features)
        return SpeakerPrompt(features, style, condition, mel, latents)

    def _mel_of(self, wav_22k: Tensor) -> Tensor:
        spect = self.config.s2mel.preprocess_params
        return mel_spectrogram(wav_22k[None], spect.spect_params, spect.sr)

    def mix_emotion(self, speaker: SpeakerPrompt, merged: Tensor, weights: list[float], rows: list[int] | None) -> Tensor:
        """Eight emotion values over the matrices (rows by similarity to the speaker unless given) and the rest ``merged``, (1, D)."""
        chosen = self.emotion.choose_rows(speaker.style) if rows is None else rows
        return self.emotion.final_vector(merged, weights, chosen)

    # ----------------------------------------------------------------------------------------------- text -> codes -> mel

    def text_to_codes(
        self,
        text_ids: Tensor,
        speaker: SpeakerPrompt,
        emotion: Tensor,
        params: SamplingParams,
        generator: torch.Generator,
        on_step: Callable[[int], None] | None = None,
        forced_codes: int | None = None,
    ) -> tuple[GeneratedCodes, PrefixState | None]:
        """Generate semantic codes for one segment of ids (1, L); with them what :meth:`codes_to_latents` need not compute again."""
        with self.gpt_autocast():
            prefix, mask = self.gpt.prefix(self.gpt.conditioning(speaker.latents, emotion), text_ids)
            if self.decoder is None:
                return generate(self.gpt, prefix, mask, params, generator=generator, on_step=on_step, forced_codes=forced_codes), None
            state = self.decoder.prefill(prefix, mask)
            codes = self.decoder.decode(state, params, generator=generator, on_step=on_step, forced_codes=forced_codes)
        # A prefix drops start and stop ids from the text, the latent pass keeps them: with any, the two do not begin alike.
        marks = torch.tensor([self.gpt.config.start_text_token, self.gpt.config.stop_text_token], device=self.device)
        return codes, None if bool(torch.isin(text_ids, marks).any()) else state

    def codes_to_latents(
        self, text_ids: Tensor, speaker: SpeakerPrompt, emotion: Tensor, codes: Tensor, prefix: PrefixState | None = None
    ) -> Tensor:
        """One latent per code, (1, n, D) float32: a second pass, since the codes' positions differ.

        It covers the whole sequence, or just the codes where ``prefix`` is at hand from :meth:`text_to_codes`.
        """
        if prefix is not None and self.decoder is not None:
            return self.decoder.latents(prefix, codes)
        lengths = [torch.tensor([t.shape[1]], device=self.device) for t in (text_ids, codes)]
        with self.gpt_autocast():
            conditioning = self.gpt.conditioning(speaker.latents, emotion)
            return self.gpt.latents(conditioning, text_ids, lengths[0], codes, lengths[1]).float()

    def codes_to_mel(
        self,
        codes: Tensor,
        latents: Tensor,
        speaker: SpeakerPrompt,
        *,
        steps: int,
        guidance: float,
        duration_factor: float,
        generator: torch.Generator,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Mel (1, 80, N) of codes (1, n) in the speaker's voice; N = trunc(1.72 n) times the duration factor."""
        frames = target_frames(codes.shape[1], duration_factor)
        condition = self.s2mel.length_regulator(self.content_of(codes, latents), torch.tensor([frames]))
        mu = torch.cat([speaker.condition, condition], dim=1)
        noise = torch.randn(1, speaker.mel.shape[1], mu.shape[1], device=self.device, generator=generator)
        mel = self.solve(mu, speaker.mel, speaker.style, steps=steps, guidance=guidance, noise=noise, on_step=on_step)
        return mel[:, :, speaker.mel.shape[-1] :]

    def content_of(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Input of the length regulator, (B, n, in_channels): codes (B, n) and latents (B, n, D), frame by frame."""
        # Sampling does not rule out the start code, which the codebook lacks; a trained model does not choose it, random weights do.
        codes = codes.clamp(max=self.config.semantic_codec.codebook_size - 1)
        if self.content is not None:
            return self.content(codes, latents)
        content: Tensor = self.s2mel.gpt_layer(latents) + self.semantic_codec.vq2emb(codes).transpose(1, 2)
        return content

    def mel_to_wave(self, mel: Tensor) -> Tensor:
        """Waveform (1, 256 N) in [-1, 1] of a mel (1, 80, N)."""
        return torch.cat(list(self.mel_to_waves(mel, self.vocoder_frames)), dim=1)

    def mel_to_waves(self, mel: Tensor, frames: int | None) -> Iterator[Tensor]:
        """The same in pieces of ``frames`` mel frames, made one by one; None: in one piece."""
        yield from vocode_in_chunks(self.vocoder, lambda piece: self.voice(piece).squeeze(1), mel, frames)

    @property
    def side_stream(self) -> torch.cuda.Stream | None:
        """On a GPU, the stream on which solver and vocoder run beside the decoder; one for all, since libraries keep memory per stream."""
        if self._side_stream is None and self.device.type == "cuda":
            self._side_stream = torch.cuda.Stream(self.device, priority=-1)
        return self._side_stream

    # ------------------------------------------------------------------------------------------------------------- inside

    def _emotion_of(self, *features: Tensor) -> Tensor:
        """Emotion vectors (B, D) float32 of semantic features (1, T, 1024) each."""
        with self.gpt_autocast():
            if len(features) == 1:
                return self.gpt.emotion_vector(features[0]).float()
            padded = pad_sequence([one[0] for one in features], batch_first=True)
            lengths = torch.tensor([one.shape[1] for one in features], device=self.device)
            return self.gpt.emotion_vector(padded, lengths, isolate_padding=True).float()

    def _semantic_features(self, *clips: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Semantic features (1, T, 1024) of clips from :func:`semantic_features_frontend`."""
        features = self.semantic_encoder(*(clips[0] if len(clips) == 1 else stack_features(clips)))
        return [row[None, : clip.shape[1]] for row, (clip, _) in zip(features, clips, strict=True)]

    def gpt_autocast(self) -> contextlib.AbstractContextManager[object]:
        """What must be in force around every use of the GPT."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
