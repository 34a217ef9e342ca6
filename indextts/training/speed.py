"""Fewer kernels in training on CUDA; nothing here changes results beyond rounding."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor, nn

from indextts.models.bigvgan import Activation


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
