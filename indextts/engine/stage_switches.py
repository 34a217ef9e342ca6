"""The switches of the stages: each says how a network is run, takes effect on a loaded engine, and drops what was captured before.

What a switch needs is derived anew from the float32 weights as they were loaded, so that changes never compound, and what it replaces is
free at once. The GPT's wait on the CPU, and so do those of which 16-bit copies are what runs (:mod:`indextts.engine.originals`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from indextts.engine.attention import attention_kernel
from indextts.engine.content import ContentProjection
from indextts.engine.decode import PLAIN_SEARCHES, Feed, StaticDecoder, feed
from indextts.engine.deepspeed import with_deepspeed
from indextts.engine.flow_weights import FlowWeights
from indextts.engine.fusion import Fusion
from indextts.engine.host_feed import HostFeed
from indextts.engine.originals import Originals
from indextts.engine.precision import copy_to, dtype_of, inputs_inside, matmul_mode, vocoder_dtype
from indextts.engine.quantise import quantise
from indextts.engine.reference_graphs import ReferencePass
from indextts.engine.solver import FastSolver
from indextts.engine.solver_ops import SolverOps
from indextts.engine.vocoder import VocoderRunner, channels_last_pays, convolutions, fused_activation

if TYPE_CHECKING:
    from indextts.config import IndexTTSConfig
    from indextts.engine.graphs import GraphedCall
    from indextts.models.campplus import CAMPPlus
    from indextts.models.flow_matching import FlowMatching
    from indextts.models.gpt import UnifiedVoice
    from indextts.models.s2mel import S2Mel
    from indextts.models.semantic_codec import SemanticCodec
    from indextts.models.semantic_encoder import SemanticEncoder

logger = logging.getLogger(__name__)
MB = 1024 * 1024
WARMUP_STEPS = 3


class StageSwitches:
    """The half of :class:`Stages` that decides how its networks run; the other half runs them."""

    device: torch.device
    config: IndexTTSConfig
    gpt: UnifiedVoice
    s2mel: S2Mel
    semantic_encoder: SemanticEncoder
    semantic_codec: SemanticCodec
    campplus: CAMPPlus
    vocoder: Any

    def _start_switches(self, gpt: UnifiedVoice, precision: str, attention: str, use_accel: bool) -> None:
        self._source_gpt = gpt  # float32, so that a change of precision never compounds rounding
        self.attention = attention
        self.decoder: StaticDecoder | None = None
        self.solver: FastSolver | None = None
        self.content: ContentProjection | None = None
        self.reference: ReferencePass | None = None  # None: clips are read by eager launches
        self.fusion = Fusion()
        self.weights = "full"
        self.compiled = self.compiled_decode = self.deepspeed = False
        self.whole_loop = False
        self.channels_last_wish: bool | None = None  # None: where it pays
        self.cudnn_benchmark: bool | None = None  # None: as torch is set
        self._accel_graphs, self._voice_graphs, self._warmup_steps = True, False, WARMUP_STEPS
        self._voice_originals = Originals(convolutions(self.vocoder), self.device)
        self._flow_weights = FlowWeights(self.s2mel.cfm, self.device)
        self.voice = VocoderRunner(self.vocoder, self.device)
        self.set_precision(precision)
        self.set_accel(use_accel)

    # ------------------------------------------------------------------------------------------------------------ switches

    def set_precision(self, precision: str) -> None:
        """Convert every stage from its float32 weights."""
        compiled = self.compiled
        self.compile_s2mel(False)
        self.precision, self.dtype = precision, dtype_of(precision)
        self._renew_voice()  # this and the solver may make room, which the GPT takes
        self._renew_solver(self.use_accel)
        self._renew_gpt()
        self.compile_s2mel(compiled)

    def set_attention(self, attention: str) -> None:
        """Choose the attention kernel; graphs have recorded the old one."""
        self.clear_buffers()
        self.attention = attention

    def set_accel(self, on: bool) -> None:
        """Take the accelerated path, newly set up, or the plain one."""
        self.clear_buffers()
        self.decoder = None
        self._renew_solver(on)
        if on:
            self.decoder = self._new_decoder()
        self._renew_reference()
        if self.device.type == "cpu":
            self._renew_voice()

    def set_fusion(self, fusion: Fusion) -> None:
        """Choose the stages that run on fused kernels."""
        self.fusion = fusion
        self._renew_voice()
        self.set_accel(self.use_accel)

    def set_weights(self, kind: str) -> None:
        """Keep the GPT's large weights in full, or in 8 bits; see :mod:`indextts.engine.quantise`."""
        self.weights = kind
        self._renew_gpt()

    def set_deepspeed(self, on: bool) -> None:
        """Run the plain path's GPT through DeepSpeed."""
        self.deepspeed = on
        self._renew_gpt()

    def set_channels_last(self, on: bool | None) -> None:
        """Keep the vocoder's signals with the channels innermost, or not, in every precision; None: where that was measured to pay."""
        self.channels_last_wish = on
        if self.channels_last != self._wants_channels_last:
            self._renew_voice()

    def set_whole_loop(self, on: bool) -> None:
        """Capture all Euler steps of a solve in one graph instead of replaying one step's graph."""
        self.whole_loop = on
        self.set_accel(self.use_accel)

    def compile_s2mel(self, on: bool) -> None:
        """Run the flow-matching estimator through ``torch.compile`` (shapes dynamic; the first call compiles), or stop doing so.

        While on, the plain solver drives the compiled estimator in place of the fast solver, which has no use for it.
        """
        if on and not self.compiled:
            self.flow.estimator.compile(dynamic=True)
        elif self.compiled and not on:
            self.flow.estimator._compiled_call_impl = None  # how torch undoes Module.compile
        self.compiled = on
        self._settle_tables()

    def compile_decode(self, on: bool) -> None:
        """Run the accelerated decoder's stack through ``torch.compile``, inside its graphs where they are in use."""
        self.compiled_decode = on
        self.set_accel(self.use_accel)

    def use_graphs(self, warmup_steps: int) -> bool:
        """Replay reading, decode steps, Euler steps and the vocoder from CUDA graphs; False if a trial capture of the vocoder fails."""
        self._accel_graphs, self._voice_graphs, self._warmup_steps = True, True, warmup_steps
        self.set_accel(self.use_accel)
        self._renew_voice()
        return self._voice_graphs

    def drop_graphs(self) -> None:
        """Eager launches everywhere."""
        self._accel_graphs = self._voice_graphs = False
        self._renew_voice()
        self.set_accel(self.use_accel)

    def set_low_memory(self, on: bool) -> None:
        """See :class:`Stages`."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------------- gauges

    @property
    def low_memory(self) -> bool:
        """See :class:`Stages`."""
        raise NotImplementedError

    @property
    def use_accel(self) -> bool:
        """Whether the accelerated path is taken."""
        return self.solver is not None

    @property
    def channels_last(self) -> bool:
        """Whether the vocoder's signals have the channels innermost at present."""
        return self.voice.channels_last

    @property
    def graphs(self) -> GraphedCall | None:
        """The vocoder's graphs, if in use; the other stages have their own."""
        return self.voice.graphs

    @property
    def graphs_in_use(self) -> bool:
        """Whether any stage is replayed from CUDA graphs."""
        decoder, solver = self.decoder, self.solver  # once, since panels ask from other threads
        decoding = decoder is not None and decoder.use_graphs
        solving = solver is not None and solver.graphs is not None
        return decoding or solving or self.graphs is not None or self.reference is not None

    @property
    def fused(self) -> dict[str, bool]:
        """Which stages run on fused kernels at present."""
        decoder = self.decoder
        decoding = decoder is not None and decoder.run is not None and not self.compiled_decode
        choosing = decoder is not None and decoder.searches != PLAIN_SEARCHES
        solving = self.solver is not None and self.solver.ops is not SolverOps
        whole = decoding and getattr(decoder and decoder.run, "whole_step", False)
        return {"decode": decoding, "one_kernel": whole, "sampler": choosing, "solver": solving, "vocoder": self.voice.fused is not None}

    @property
    def buffer_memory_mb(self) -> float:
        """Megabytes that :meth:`clear_buffers` gives back: graph pools, KV buffers, tables. Prepared weights are not among them."""
        solver = self.solver
        held = sum(each.memory_mb for each in (self.decoder, solver and solver.graphs, self.graphs, self.reference) if each is not None)
        return held + (solver.step.times.memory_bytes / MB if solver is not None else 0.0)

    def clear_buffers(self) -> None:
        """Drop captured graphs, KV buffers and tables; they are made again when needed."""
        for holder in (self.decoder, self.solver, self.voice, self.reference):
            if holder is not None:
                holder.clear()

    # -------------------------------------------------------------------------------------------------------------- in use

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """What must be in force around every use of the stages."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before if self.cudnn_benchmark is None else self.cudnn_benchmark
        try:
            with contextlib.ExitStack() as stack:
                if self.device.type == "cuda":
                    stack.enter_context(torch.cuda.device(self.device))  # where fused kernels are launched
                stack.enter_context(torch.inference_mode())
                stack.enter_context(matmul_mode(self.precision, self.device))
                stack.enter_context(attention_kernel(self.attention, self.device))
                yield
        finally:
            torch.backends.cudnn.benchmark = before

    @property
    def flow(self) -> FlowMatching:
        """The plain solver, its products in the format of the precision."""
        return self._flow_weights.plain(self.dtype)

    @contextlib.contextmanager
    def float32_originals(self) -> Iterator[None]:
        """While the body runs, ``s2mel`` and ``vocoder`` are complete on the device and can be called, in whatever precision."""
        voice, flow = self._voice_originals, self._flow_weights.originals
        before = voice.away, flow.away
        self._flow_weights.visit(False)
        try:
            voice.bring_back()
            flow.bring_back()
            yield
        finally:
            voice.settle(before[0] and self.voice.dtype != torch.float32)  # it may have overflowed meanwhile
            flow.settle(before[1])
            self._settle_tables()

    @property
    def solve(self) -> Callable[..., Tensor]:
        """The flow-matching solver in force; arguments as for :meth:`FlowMatching.solve`."""
        return self._solve_plainly if self.solver is None or self.compiled else self.solver.solve

    def _solve_plainly(self, *given: Any, **named: Any) -> Tensor:
        mel = self.flow.solve(*given, **named)
        if self.dtype != torch.float16 or bool(torch.isfinite(mel).all()):
            return mel
        logger.warning("float16 overflowed in the plain mel solver, which multiplies in bfloat16 from now on")
        compiled = self.compiled
        self.compile_s2mel(False)
        self._flow_weights.forget()
        self._flow_weights.plain(torch.bfloat16)
        self.compile_s2mel(compiled)
        return self.flow.solve(*given, **named)

    # -------------------------------------------------------------------------------------------------------------- inside

    @property
    def _captures(self) -> bool:
        return self._accel_graphs and self.device.type == "cuda"

    @property
    def _spares_memory(self) -> bool:
        """Whether what the device does not need waits on the CPU; on other devices than CUDA both are the same memory."""
        return self.device.type == "cuda"

    @property
    def _wants_channels_last(self) -> bool:
        pays = channels_last_pays(self.device, vocoder_dtype(self.precision, self.device))
        return pays if self.channels_last_wish is None else self.channels_last_wish

    def _settle_tables(self) -> None:
        """Keep what only tables need where it costs nothing, if the fast solver is all that runs, in 16 bits."""
        alone = self.solver is not None and self.solver.savings.time_tables and not self.compiled
        self._flow_weights.visit(alone and self.dtype is not None and self._spares_memory)

    def _renew_gpt(self) -> None:
        for holder in (self.decoder, self.reference):
            if holder is not None:
                holder.clear()
        low_memory = self.low_memory
        self.set_low_memory(False)
        # Only training asks what text comes next, and a text takes few rows of its table.
        left = self._source_gpt.text_head, self._source_gpt.text_embedding
        self.gpt = copy_to(self._source_gpt, self.device, self.dtype or torch.float32, left=left)
        self.set_low_memory(low_memory)
        if self.weights != "full":
            quantise(self.gpt.gpt, self.weights)
        if self.device.type == "cuda":
            inputs_inside(self.gpt.gpt)
        if self.deepspeed:
            self.gpt.gpt = with_deepspeed(self.gpt.gpt, self.dtype or torch.float32)
        if self.decoder is not None:
            self.decoder = self._new_decoder()
        self._renew_reference()

    def _renew_reference(self) -> None:
        self.reference = None
        if self.use_accel and self._captures:
            self.reference = ReferencePass(self.semantic_encoder, self.semantic_codec, self.campplus, self.gpt, self.dtype)

    def _renew_voice(self) -> None:
        self.voice.clear()
        dtype, originals = vocoder_dtype(self.precision, self.device), self._voice_originals
        originals.settle(away=self._spares_memory and dtype != torch.float32)
        self.voice = VocoderRunner(
            self.vocoder, self.device, dtype, fused=fused_activation(self.fusion, self.device, dtype),
            channels_last=self._wants_channels_last, before_float32=originals.bring_back,
            on_host=self.use_accel and self.fusion.vocoder is not False,
        )  # fmt: skip
        if self._voice_graphs:
            try:
                with self.running():
                    self.voice.use_graphs(self._warmup_steps)
            except RuntimeError as error:
                logger.warning("CUDA graphs could not be captured on %s: %s", self.device, error)
                self._voice_graphs = False

    def _renew_solver(self, on: bool) -> None:
        if self.solver is not None:
            self.solver.clear()
        self.solver = self.content = None
        if not self.compiled:
            self._flow_weights.forget()
        self._flow_weights.originals.settle(away=self._spares_memory and self.dtype is not None)
        if on:
            self._make_solver()
        self._settle_tables()

    def _make_solver(self) -> None:
        dtype, ops = self.dtype or torch.float32, SolverOps
        if self.fusion.usable("solver", self.device, dtype):
            from indextts.engine.kernels.solver import FusedSolverOps

            ops = FusedSolverOps
        # Weights are multiplied into each other once, so in true float32 whatever the products of a run may use.
        with torch.no_grad(), matmul_mode("fp32", self.device):
            graphs: dict[str, Any] = {"use_graphs": self._captures, "warmup_steps": self._warmup_steps, "whole_loop": self.whole_loop}
            self.solver = FastSolver(self.s2mel, self.device, dtype, ops=ops, **graphs)
            self.content = ContentProjection(self.s2mel, self.semantic_codec, self.device)

    def _new_decoder(self) -> StaticDecoder:
        searches = PLAIN_SEARCHES
        if self.fusion.usable("sampler", self.device, torch.float32):
            from indextts.engine.kernels import sampler

            searches = sampler.FusedSearch, sampler.FusedBeamSearch
        return StaticDecoder(
            self.gpt, self.device, self.dtype,
            use_graphs=self._captures, warmup_steps=self._warmup_steps, run=self._decoder_feed(), searches=searches,
            stack=HostFeed() if self.device.type == "cpu" else feed,
        )  # fmt: skip

    def _decoder_feed(self) -> Feed | None:
        stack = self.gpt.config
        width = stack.model_dim // stack.heads
        if self.compiled_decode:
            return functools.partial(_compiled_feed())
        fits = width >= 16 and width & (width - 1) == 0  # what a tensor core and a kernel's tile take
        if fits and self.fusion.usable("decode", self.device, self.dtype or torch.float32):
            from indextts.engine.kernels import decode

            if self.dtype is None or not self.fusion.usable("one_kernel", self.device, self.dtype):
                return decode.feed
            from indextts.engine.kernels import one_kernel

            launch, blocks = one_kernel.launcher(self.device)
            if problem := one_kernel.unsuitable(self.gpt, blocks):
                logger.info("a decode step takes several kernels: one is not made for these weights: %s", problem)
                return decode.feed
            return one_kernel.OneKernel(self.gpt, launch, blocks, decode.feed)
        return None


@functools.cache
def _compiled_feed() -> Feed:
    compiled: Feed = torch.compile(feed, dynamic=False)
    return compiled
