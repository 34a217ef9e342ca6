"""Fewer kernels in training on CUDA; nothing here changes results beyond rounding."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from indextts.models.bigvgan import Activation, BigVGAN

T = TypeVar("T")
_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


def fuse_activations(vocoder: nn.Module, device: torch.device) -> None:
    """Let every activation of a vocoder in training be one kernel each way, where there are CUDA and Triton; elsewhere nothing happens."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return
    from indextts.training.snake import activate

    for module in vocoder.modules():
        if isinstance(module, Activation):
            module.forward = functools.partial(_forward, module, activate)  # type: ignore[method-assign]


def _forward(module: Activation, activate: object, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    if lengths is not None:
        raise ValueError("training pieces are not padded")
    out: Tensor = activate(x, module)  # type: ignore[operator]
    return out


def side_by_side(calls: Sequence[Callable[[Tensor], T]], x: Tensor) -> list[T]:
    """What each of ``calls`` makes of ``x``; on CUDA each on a stream of its own, and autograd goes back the same ways.

    Most kernels of a small network leave most of a GPU idle. Recorded (:mod:`indextts.training.replay`), the streams are branches of the
    graph. The next such call waits for everything before it, so what one of them frees is not taken too early.
    """
    if not x.is_cuda:
        return [call(x) for call in calls]
    here = torch.cuda.current_stream(x.device)
    streams = _streams.setdefault(x.device, [])
    while len(streams) < len(calls):
        streams.append(torch.cuda.Stream(x.device))
    made = []
    for call, stream in zip(calls, streams, strict=False):
        stream.wait_stream(here)
        x.record_stream(stream)
        with torch.cuda.stream(stream):
            made.append(call(x))
    for stream in streams[: len(calls)]:
        here.wait_stream(stream)
    return made


def branch_blocks(vocoder: BigVGAN) -> None:
    """Let the residual blocks of each of a vocoder's stages, which all read the same, run side by side in training."""
    vocoder.unclamped = functools.partial(_unclamped, vocoder)  # type: ignore[method-assign]


def _unclamped(vocoder: BigVGAN, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
    if lengths is not None:
        raise ValueError("training pieces are not padded")
    x = vocoder.conv_pre(mel)
    for i, up in enumerate(vocoder.ups):
        first, *others = side_by_side(list(vocoder.resblocks[i * vocoder.blocks_per_stage : (i + 1) * vocoder.blocks_per_stage]), up(x))
        x = sum(others, first) / vocoder.blocks_per_stage
    out: Tensor = vocoder.conv_post(vocoder.activation_post(x))
    return out
