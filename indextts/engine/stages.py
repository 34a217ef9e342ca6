"""The stages of the system on one device: reference -> prompt, text -> codes, codes -> latents -> mel, mel -> wave.

On the plain path each stage calls its module as the papers describe it, one segment at a time. The accelerated path has the same results
up to float32 rounding: codes from :class:`StaticDecoder`, whose prefix the latent pass uses again, and mel from :class:`FastSolver`.
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
from indextts.engine.chunks import vocode_in_chunks
from indextts.engine.content import ContentProjection
from indextts.engine.decode import PrefixState, StaticDecoder
from indextts.engine.generate import GeneratedCodes, generate
from indextts.engine.graphs import GraphedCall
from indextts.engine.precision import dtype_of, matmul_mode
from indextts.engine.reference_cache import EmotionPrompt, SpeakerPrompt
from indextts.engine.sampling import SamplingParams
from indextts.engine.solver import FastSolver
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
    from indextts.models.griffin_lim import GriffinLim
    from indextts.models.s2mel import S2Mel
    from indextts.models.semantic_codec import SemanticCodec
    from indextts.models.semantic_encoder import SemanticEncoder

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)
MB = 1024 * 1024
WARMUP_STEPS = 3


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


class Stages:
    """Runs :class:`Models` on ``device`` in a given precision; every method takes and returns tensors on that device."""

    def __init__(
        self, models: Models, device: torch.device, precision: str = "fp32", attention: str = "auto", *, use_accel: bool = True
    ) -> None:
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
        self.decoder: StaticDecoder | None = None
        self.solver: FastSolver | None = None
        self.content: ContentProjection | None = None
        self.graphs: GraphedCall | None = None  # of the vocoder; decoder and solver have their own
        self._accel_graphs, self._warmup_steps = True, WARMUP_STEPS
        self.compiled = False
        self.vocoder_frames: int | None = None  # most mel frames that the vocoder works on at once; None: all
        self._side_stream: torch.cuda.Stream | None = None
        self.set_precision(precision)
        self.set_accel(use_accel)

    # ------------------------------------------------------------------------------------------------------- switches

    def set_precision(self, precision: str) -> None:
        """Convert the GPT from its float32 weights."""
        self.clear_buffers()
        self.precision = precision
        self.dtype = dtype_of(precision)
        self.gpt = copy_to(self._source_gpt, self.device, self.dtype or torch.float32)
        if self.decoder is not None:
            self.decoder = self._new_decoder()

    def set_attention(self, attention: str) -> None:
        """Choose the attention kernel; graphs have recorded the old one."""
        self.clear_buffers()
        self.attention = attention

    def set_accel(self, on: bool) -> None:
        """Take the accelerated path, newly set up, or the plain one."""
        self.clear_buffers()
        self.decoder = self.solver = self.content = None
        if on:
            self.decoder = self._new_decoder()
            # Weights are multiplied into each other once, so in true float32 whatever the products of a run may use.
            with torch.no_grad(), matmul_mode("fp32", self.device):
                self.solver = FastSolver(self.s2mel, self.device, torch.float32, use_graphs=self._captures, warmup_steps=self._warmup_steps)
                self.content = ContentProjection(self.s2mel, self.semantic_codec, self.device)

    @property
    def use_accel(self) -> bool:
        """Whether the accelerated path is taken."""
        return self.decoder is not None

    def compile_s2mel(self, on: bool) -> None:
        """Run the flow-matching estimator through ``torch.compile`` (shapes dynamic; the first call compiles), or stop doing so.

        While on, the plain solver drives the compiled estimator in place of the fast solver, which has no use for it.
        """
        if on and not self.compiled:
            self.s2mel.cfm.estimator.compile(dynamic=True)
        elif self.compiled and not on:
            self.s2mel.cfm.estimator._compiled_call_impl = None  # how torch undoes Module.compile
        self.compiled = on

    def use_graphs(self, warmup_steps: int) -> bool:
        """Replay decode steps, Euler steps and the vocoder from CUDA graphs; False if a trial capture of the vocoder fails."""
        self._accel_graphs, self._warmup_steps = True, warmup_steps
        self.set_accel(self.use_accel)
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

    def drop_graphs(self) -> None:
        """Eager launches everywhere."""
        self.clear_buffers()
        self.graphs = None
        self._accel_graphs = False
        self.set_accel(self.use_accel)

    @property
    def graphs_in_use(self) -> bool:
        """Whether any stage is replayed from CUDA graphs."""
        decoder, solver = self.decoder, self.solver  # once, since panels ask from other threads
        decoding = decoder is not None and decoder.use_graphs
        solving = solver is not None and solver.graphs is not None
        return decoding or solving or self.graphs is not None

    @property
    def buffer_memory_mb(self) -> float:
        """Megabytes that :meth:`clear_buffers` gives back: graph pools, KV buffers, tables. Prepared weights are not among them."""
        decoder, solver, vocoder = self.decoder, self.solver, self.graphs
        held = sum(holder.memory_mb for holder in (decoder, vocoder, solver and solver.graphs) if holder is not None)
        return held + (solver.step.times.memory_bytes / MB if solver is not None else 0.0)

    def clear_buffers(self) -> None:
        """Drop captured graphs, KV buffers and tables; they are made again when needed."""
        for holder in (self.decoder, self.solver, self.graphs):
            if holder is not None:
                holder.clear()

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
        with self.gpt_autocast():
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
        condition = self.s2mel.length_regulator(self.content_of(codes, latents), torch.tensor([frames], device=self.device))
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

    @property
    def solve(self) -> Callable[..., Tensor]:
        """The flow-matching solver in force; arguments as for :meth:`FlowMatching.solve`."""
        return self.s2mel.cfm.solve if self.solver is None or self.compiled else self.solver.solve

    def mel_to_wave(self, mel: Tensor) -> Tensor:
        """Waveform (1, 256 N) in [-1, 1] of a mel (1, 80, N)."""
        return torch.cat(list(self.mel_to_waves(mel, self.vocoder_frames)), dim=1)

    def mel_to_waves(self, mel: Tensor, frames: int | None) -> Iterator[Tensor]:
        """The same in pieces of ``frames`` mel frames, made one by one; None: in one piece."""
        yield from vocode_in_chunks(self.vocoder, lambda piece: (self.graphs or self.vocoder)(piece).squeeze(1), mel, frames)

    @property
    def side_stream(self) -> torch.cuda.Stream | None:
        """On a GPU, the stream on which solver and vocoder run beside the decoder; one for all, since libraries keep memory per stream."""
        if self._side_stream is None and self.device.type == "cuda":
            self._side_stream = torch.cuda.Stream(self.device, priority=-1)
        return self._side_stream

    # ------------------------------------------------------------------------------------------------------------- inside

    @property
    def _captures(self) -> bool:
        return self._accel_graphs and self.device.type == "cuda"

    def _new_decoder(self) -> StaticDecoder:
        return StaticDecoder(self.gpt, self.device, self.dtype, use_graphs=self._captures, warmup_steps=self._warmup_steps)

    def _emotion_of(self, features: Tensor) -> EmotionPrompt:
        with self.gpt_autocast():
            return EmotionPrompt(features, self.gpt.emotion_vector(features).float())

    def _semantic_features(self, wav_16k: Tensor) -> Tensor:
        inputs, mask = semantic_features_frontend(wav_16k.to(self.device))
        return self.semantic_encoder(inputs, mask)

    def gpt_autocast(self) -> contextlib.AbstractContextManager[object]:
        """What must be in force around every use of the GPT."""
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
