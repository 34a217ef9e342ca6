"""The stages of the system on one device: reference -> prompt, text -> codes, codes -> latents -> mel, mel -> wave.

This is the plain path: each stage calls its module as the papers describe it, one segment at a time. Faster ways of running a stage
replace methods of this class from outside and are compared with it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from indextts.audio import emotion_waveform, speaker_waveforms
from indextts.config import IndexTTSConfig
from indextts.engine.attention import attention_kernel
from indextts.engine.generate import GeneratedCodes, generate
from indextts.engine.graphs import GraphedCall
from indextts.engine.precision import dtype_of, matmul_mode
from indextts.engine.reference_cache import EmotionPrompt, SpeakerPrompt
from indextts.engine.sampling import SamplingParams
from indextts.models.campplus import style_features
from indextts.models.gpt2 import Conv1D
from indextts.models.length_regulator import target_frames
from indextts.models.mel import mel_spectrogram
from indextts.models.semantic_encoder import semantic_features_frontend

if TYPE_CHECKING:
    from indextts.models.bigvgan import BigVGAN
    from indextts.models.campplus import CAMPPlus
    from indextts.models.emotion import EmotionMatrices
    from indextts.models.gpt import UnifiedVoice
    from indextts.models.s2mel import S2Mel
    from indextts.models.semantic_codec import SemanticCodec
    from indextts.models.semantic_encoder import SemanticEncoder

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)


@dataclass
class Models:
    """The networks of one voice system, in float32 on the CPU as loaded from its files."""

    config: IndexTTSConfig
    gpt: UnifiedVoice
    s2mel: S2Mel
    semantic_encoder: SemanticEncoder
    semantic_codec: SemanticCodec
    campplus: CAMPPlus
    vocoder: BigVGAN
    emotion: EmotionMatrices

    def networks(self) -> dict[str, nn.Module]:
        """The torch modules by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}


class Stages:
    """Runs :class:`Models` on ``device`` in a given precision; every method takes and returns tensors on that device."""

    def __init__(self, models: Models, device: torch.device, precision: str = "fp32", attention: str = "auto") -> None:
        self.device = device
        self.config = models.config
        self.attention = attention
        self._source_gpt = models.gpt  # float32, so that a change of precision never compounds rounding
        self.semantic_encoder = models.semantic_encoder.to(device)
        self.semantic_codec = models.semantic_codec.to(device)
        self.campplus = models.campplus.to(device)
        self.s2mel = models.s2mel.to(device)
        self.vocoder = models.vocoder.to(device)
        self.emotion = models.emotion.to(device)
        self.graphs: GraphedCall | None = None
        self.compiled = False
        self.set_precision(precision)

    def set_precision(self, precision: str) -> None:
        """Convert the GPT from its float32 weights."""
        self.precision = precision
        self.dtype = dtype_of(precision)
        self.gpt = copy_to(self._source_gpt, self.device, self.dtype or torch.float32)

    def compile_s2mel(self, on: bool) -> None:
        """Run the flow-matching estimator through ``torch.compile`` (shapes dynamic; the first call compiles), or stop doing so."""
        if on and not self.compiled:
            self.s2mel.cfm.estimator.compile(dynamic=True)
        elif self.compiled and not on:
            self.s2mel.cfm.estimator._compiled_call_impl = None  # how torch undoes Module.compile
        self.compiled = on

    def graph_vocoder(self, warmup_steps: int) -> bool:
        """Replay the vocoder from CUDA graphs, one per mel length; False if a trial capture fails."""
        graphs = GraphedCall(self.vocoder, warmup_steps)
        try:
            with self.running():
                graphs(torch.zeros(1, self.config.s2mel.DiT.in_channels, 64, device=self.device))
        except RuntimeError as error:
            logger.warning("CUDA graphs could not be captured on %s: %s", self.device, error)
            return False
        graphs.clear()
        self.graphs = graphs
        return True

    def drop_graphs(self) -> int:
        """Back to eager launches; returns the warm-up steps that were in use, 0 if there were no graphs."""
        steps = self.graphs.warmup_steps if self.graphs else 0
        self.graphs = None
        return steps

    @property
    def graph_memory_mb(self) -> float:
        """Megabytes held by graph pools."""
        return self.graphs.memory_mb if self.graphs else 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What must be in force around every use of the stages."""
        with torch.inference_mode(), matmul_mode(self.precision, self.device), attention_kernel(self.attention):
            yield

    # ------------------------------------------------------------------------------------------------------- prompts

    def speaker_prompt(self, mono: np.ndarray, rate: int) -> SpeakerPrompt:
        """Everything that the speaker's clip (n,) contributes."""
        wav_22k, wav_16k = speaker_waveforms(mono, rate)
        features = self._semantic_features(wav_16k)
        spect = self.config.s2mel.preprocess_params
        mel = mel_spectrogram(wav_22k.to(self.device)[None], spect.spect_params, spect.sr)
        style = self.campplus(style_features(wav_16k.to(self.device)))
        _, quantised = self.semantic_codec.quantize(features)
        condition = self.s2mel.length_regulator(quantised, torch.tensor([mel.shape[-1]], device=self.device))
        with self._gpt_autocast():
            latents = self.gpt.speaker_latents(features)
        return SpeakerPrompt(features, style, condition, mel, latents)

    def emotion_prompt(self, mono: np.ndarray, rate: int) -> EmotionPrompt:
        """Features and emotion vector e(features) of a clip (n,) in the role of emotion reference."""
        return self._emotion_of(self._semantic_features(emotion_waveform(mono, rate)))

    def merge_emotion(self, speaker: SpeakerPrompt, emotion: EmotionPrompt, alpha: float) -> Tensor:
        """``e(speaker) + alpha (e(emotion) - e(speaker))``, (1, D)."""
        base = self._emotion_of(speaker.features).vector
        return base + alpha * (emotion.vector - base)

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
    ) -> GeneratedCodes:
        """Generate semantic codes for one segment of ids (1, L)."""
        with self._gpt_autocast():
            prefix, mask = self.gpt.prefix(self.gpt.conditioning(speaker.latents, emotion), text_ids)
            return generate(self.gpt, prefix, mask, params, generator=generator, on_step=on_step, forced_codes=forced_codes)

    def codes_to_latents(self, text_ids: Tensor, speaker: SpeakerPrompt, emotion: Tensor, codes: Tensor) -> Tensor:
        """One latent per code, (1, n, D) float32: a second pass over the whole sequence, since its positions differ."""
        lengths = [torch.tensor([t.shape[1]], device=self.device) for t in (text_ids, codes)]
        with self._gpt_autocast():
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
        content = self.s2mel.gpt_layer(latents) + self.semantic_codec.vq2emb(codes).transpose(1, 2)
        condition = self.s2mel.length_regulator(content, torch.tensor([frames], device=self.device))
        mu = torch.cat([speaker.condition, condition], dim=1)
        noise = torch.randn(1, speaker.mel.shape[1], mu.shape[1], device=self.device, generator=generator)
        mel = self.s2mel.cfm.solve(mu, speaker.mel, speaker.style, steps=steps, guidance=guidance, noise=noise, on_step=on_step)
        return mel[:, :, speaker.mel.shape[-1] :]

    def mel_to_wave(self, mel: Tensor) -> Tensor:
        """Waveform (1, 256 N) in [-1, 1] of a mel (1, 80, N)."""
        return (self.graphs or self.vocoder)(mel).squeeze(1)

    # ------------------------------------------------------------------------------------------------------------- inside

    def _emotion_of(self, features: Tensor) -> EmotionPrompt:
        with self._gpt_autocast():
            return EmotionPrompt(features, self.gpt.emotion_vector(features).float())

    def _semantic_features(self, wav_16k: Tensor) -> Tensor:
        inputs, mask = semantic_features_frontend(wav_16k.to(self.device))
        return self.semantic_encoder(inputs, mask)

    def _gpt_autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def copy_to(module: M, device: torch.device, matrices: torch.dtype) -> M:
    """A copy of ``module`` on ``device`` with the weights of linear layers and convolutions in ``matrices``.

    Embeddings, norms and tables stay in float32, so that the residual stream they feed does too. Shares storage where nothing changes.
    """
    dtypes: dict[int, torch.dtype] = {}
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)):
            dtypes.update({id(parameter): matrices for parameter in layer.parameters(recurse=False)})
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        moved = tensor.detach().to(device, dtypes.get(id(tensor), tensor.dtype))
        memo[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(module, memo)
