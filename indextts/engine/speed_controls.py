"""The switches of a loaded engine: how it computes, not what. Each acts at once, on the engine's own thread, and reloads no file."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from indextts.engine import deepspeed
from indextts.engine.attention import check_attention
from indextts.engine.compiling import compile_report
from indextts.engine.fusion import Fusion, Wish
from indextts.engine.precision import resolve_precision
from indextts.engine.quantise import check_weights
from indextts.engine.reference_cache import ReferenceCache
from indextts.engine.stages import Stages
from indextts.engine.worker import EngineWorker

logger = logging.getLogger(__name__)


class SpeedControls:
    """Switching precision, attention, kernels, graphs and compilation."""

    device: torch.device
    reference_cache: ReferenceCache
    _worker: EngineWorker

    @property
    def _stages(self) -> Stages:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype | None:
        """``torch.float16``, ``torch.bfloat16``, or None for the float32 modes."""
        return self._stages.dtype

    @property
    def precision(self) -> str:
        """The precision in force: ``fp32``, ``tf32``, ``bf16`` or ``fp16``."""
        return self._stages.precision

    def set_precision(self, precision: str) -> None:
        """Change the number format of a loaded engine; cached prompts and captured graphs of the old one are dropped."""
        name = resolve_precision(precision, True, self.device)

        def change(_: object) -> None:
            self.reference_cache.clear()
            self._stages.set_precision(name)

        self._worker.call(change)

    @property
    def attention(self) -> str:
        """The attention kernel in force: ``auto``, ``flash``, ``efficient`` or ``math``."""
        return self._stages.attention

    def set_attention(self, attention: str) -> None:
        """Choose the attention kernel; see :mod:`indextts.engine.attention`."""
        name = check_attention(attention, self.device)
        self._change(lambda stages: stages.set_attention(name))

    @property
    def use_accel(self) -> bool:
        """Whether the static-cache decoder and the fast mel solver are in use; off is the plain path, with the same results."""
        return self._stages.use_accel

    @use_accel.setter
    def use_accel(self, on: bool) -> None:
        def change(stages: Stages) -> None:
            self.reference_cache.clear()  # its prompts came by the other path, and the plain one is to be an oracle from the clip on
            stages.set_accel(bool(on))

        self._change(change, bool(on) != self._stages.use_accel)

    # ------------------------------------------------------------------------------------------------------------- kernels

    @property
    def fusion(self) -> bool:
        """Whether fused kernels are wanted anywhere; :attr:`fused` says where they run. Setting it speaks for all stages."""
        return any(wish is not False for wish in self._stages.fusion.to_dict().values())

    @fusion.setter
    def fusion(self, on: bool) -> None:
        self.set_fusion(**dict.fromkeys(Fusion.names(), "auto" if on else False))

    def set_fusion(
        self,
        decode: Wish | None = None,
        solver: Wish | None = None,
        vocoder: Wish | None = None,
        sampler: Wish | None = None,
        one_kernel: Wish | None = None,
    ) -> None:
        """Fused kernels per stage: True, False, or ``"auto"``; None leaves a stage as it is. ``one_kernel``: a decode step's layers.

        They run only where the device has shown that it computes them right; see :mod:`indextts.engine.fusion`.
        """
        given = {"decode": decode, "one_kernel": one_kernel, "solver": solver, "vocoder": vocoder, "sampler": sampler}
        wish = dataclasses.replace(self._stages.fusion, **{name: value for name, value in given.items() if value is not None})
        self._change(lambda stages: stages.set_fusion(wish), wish != self._stages.fusion)

    @property
    def one_kernel(self) -> bool:
        """Whether a decode step's layers may run as one kernel; :attr:`fused` says whether they do."""
        fusion = self._stages.fusion
        return fusion.decode is not False and fusion.one_kernel is not False

    @one_kernel.setter
    def one_kernel(self, on: bool) -> None:
        self.set_fusion(one_kernel="auto" if on else False)

    @property
    def fused(self) -> dict[str, bool]:
        """Which of ``decode``, ``one_kernel``, ``sampler``, ``solver`` and ``vocoder`` run on fused kernels at present."""
        return self._stages.fused

    @property
    def gpt_weights(self) -> str:
        """How the GPT's large weights are kept: ``full``, ``int8`` or ``fp8``."""
        return self._stages.weights

    def set_gpt_weights(self, kind: str) -> None:
        """Keep the weights of the GPT's linear layers in 8 bits, or in full; this changes the codes. See :mod:`.quantise`."""
        name = check_weights(kind, self.device)

        def change(_: object) -> None:
            self.reference_cache.clear()
            self._stages.set_weights(name)

        self._worker.call(change)

    @property
    def channels_last(self) -> bool:
        """Whether the vocoder keeps channels innermost in memory at present.

        Until it is set: where that was measured to pay, in 16 bits on recent GPUs; see :mod:`indextts.utils.gpu_config`.
        """
        return self._stages.channels_last

    @channels_last.setter
    def channels_last(self, on: bool) -> None:
        self.set_channels_last(bool(on))

    @property
    def channels_last_wish(self) -> bool | None:
        """What :attr:`channels_last` was set to; None until it is."""
        return self._stages.channels_last_wish

    def set_channels_last(self, on: bool | None) -> None:
        """Set :attr:`channels_last`, or leave it to the device and the precision again (None)."""
        self._change(lambda stages: stages.set_channels_last(on), on is not self.channels_last_wish)

    @property
    def cudnn_benchmark(self) -> bool:
        """Whether cuDNN times its convolutions for every new shape and keeps the fastest, which a first run pays for.

        As ``torch.backends.cudnn.benchmark`` says, which ``GPUConfig.apply_optimal_settings`` sets too, until it is set here.
        """
        own = self._stages.cudnn_benchmark
        return torch.backends.cudnn.benchmark if own is None else own

    @cudnn_benchmark.setter
    def cudnn_benchmark(self, on: bool) -> None:
        def change(stages: Stages) -> None:
            stages.clear_buffers()
            stages.cudnn_benchmark = bool(on)

        self._change(change)

    # ----------------------------------------------------------------------------------------------- compilers and graphs

    @property
    def use_torch_compile(self) -> bool:
        """Whether the flow-matching estimator runs through ``torch.compile``, which takes the place of the fast mel solver."""
        return self._stages.compiled

    @use_torch_compile.setter
    def use_torch_compile(self, on: bool) -> None:
        self._change(lambda stages: stages.compile_s2mel(bool(on)))

    @property
    def compile_decode(self) -> bool:
        """Whether the accelerated decoder's stack runs through ``torch.compile`` instead of fused kernels."""
        return self._stages.compiled_decode

    @compile_decode.setter
    def compile_decode(self, on: bool) -> None:
        self._change(lambda stages: stages.compile_decode(bool(on)), bool(on) != self._stages.compiled_decode)

    @property
    def use_deepspeed(self) -> bool:
        """Whether the plain path's GPT runs through DeepSpeed (untried on a GPU); one warning where it is not installed."""
        return self._stages.deepspeed

    @use_deepspeed.setter
    def use_deepspeed(self, on: bool) -> None:
        if on and not deepspeed.deepspeed_available():
            deepspeed.warn_without_deepspeed(stacklevel=2)
            return
        self._change(lambda stages: stages.set_deepspeed(bool(on)), bool(on) != self._stages.deepspeed)

    @property
    def cuda_graphs_available(self) -> bool:
        """Whether this engine's device can capture CUDA graphs."""
        return self.device.type == "cuda"

    @property
    def cuda_graphs_enabled(self) -> bool:
        """Whether graphs are in use. The accelerated path captures decode and Euler steps from the start where the device can."""
        return self._stages.graphs_in_use

    @property
    def cuda_graphs_everywhere(self) -> bool:
        """Whether the vocoder is replayed too, as after :meth:`enable_cuda_graphs`."""
        return self._stages.graphs is not None

    def enable_cuda_graphs(self, warmup_steps: int = 3) -> bool:
        """Replay all that can be captured: the vocoder too, once per bucket of mel lengths, and on the accelerated path prefill, decode
        and Euler steps.

        False, with one log line, where that is impossible.
        """
        if not self.cuda_graphs_available:
            logger.info("CUDA graphs need a CUDA device; this engine runs on %s", self.device)
            return False
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1, got {warmup_steps}")
        return bool(self._worker.call(lambda _: self._stages.use_graphs(warmup_steps)))

    def disable_cuda_graphs(self) -> None:
        """Eager launches in every stage until graphs are enabled again; frees the graphs' memory."""
        self._change(lambda stages: stages.drop_graphs())

    @property
    def whole_loop_graph(self) -> bool:
        """Whether a solve is one graph of all its Euler steps: fewer launches, but it cannot be cancelled in between."""
        return self._stages.whole_loop

    @whole_loop_graph.setter
    def whole_loop_graph(self, on: bool) -> None:
        self._change(lambda stages: stages.set_whole_loop(bool(on)), bool(on) != self._stages.whole_loop)

    def _speed_settings(self) -> dict[str, Any]:
        """The switches as they are, for records."""
        return {
            "precision": self.precision,
            "attention": self.attention,
            "use_accel": self.use_accel,
            "cuda_graphs": self.cuda_graphs_enabled,
            "vocoder_graphs": self.cuda_graphs_everywhere,
            "whole_loop_graph": self.whole_loop_graph,
            "fused": self.fused,
            "gpt_weights": self.gpt_weights,
            "channels_last": self.channels_last,
            "cudnn_benchmark": self.cudnn_benchmark,
            "deepspeed": self.use_deepspeed,
            "torch_compile": self.use_torch_compile,
            "compile_decode": self.compile_decode,
            **(compile_report() if self.use_torch_compile or self.compile_decode else {}),
        }

    def _change(self, change: Callable[[Stages], object], needed: bool = True) -> None:
        if needed:
            self._worker.call(lambda _: change(self._stages))


def resolve_deepspeed(asked: bool | None) -> bool:
    """Whether DeepSpeed is to be used: the argument, else ``INDEXTTS_USE_DEEPSPEED``; one warning if it is not installed."""
    if asked is None:
        asked = os.environ.get("INDEXTTS_USE_DEEPSPEED", "0").strip() == "1"
    if asked and not deepspeed.deepspeed_available():
        deepspeed.warn_without_deepspeed(stacklevel=5)
        return False
    return asked
