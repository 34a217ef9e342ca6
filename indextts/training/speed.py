"""Faster training steps on CUDA: repeated blocks through ``torch.compile``, and a form of the vocoder's activation that it can fuse.

Nothing here changes results beyond rounding, and what fails to compile runs as it is.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.models.bigvgan import Activation

logger = logging.getLogger(__name__)


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile each block in place, for any batch and length; on the CPU compiling costs more than it saves here, so nothing happens."""
    if device.type != "cuda":
        return
    torch._dynamo.config.suppress_errors = True  # an error of the compiler must not cost the run
    for block in blocks:
        block.compile(dynamic=True)


def fuse_activations(vocoder: nn.Module, device: torch.device) -> None:
    """Let every activation of a vocoder in training use :func:`activation`, compiled on CUDA."""
    run = activation
    if device.type == "cuda":
        torch._dynamo.config.suppress_errors = True
        run = torch.compile(activation, dynamic=True)
    for module in vocoder.modules():
        if isinstance(module, Activation):
            taps = tuple(float(tap) for tap in module.taps)
            module.forward = functools.partial(_forward, module, taps, run)  # type: ignore[method-assign]


def _forward(module: Activation, taps: tuple[float, ...], run: object, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    if lengths is not None:
        raise ValueError("training pieces are not padded")
    out: Tensor = run(x, module.act.alpha, module.act.beta, taps)  # type: ignore[operator]
    return out


def activation(x: Tensor, alpha: Tensor, beta: Tensor, taps: tuple[float, ...]) -> Tensor:
    """``Activation.forward`` as sums of shifted copies: (B, C, T) to (B, C, T).

    The samples at double rate are kept as two halves, those on the old grid and those between; each is six taps of the input.
    """
    frames = x.shape[-1]
    padded = F.pad(x, (3, 3), mode="replicate")
    shifted = [padded[..., q : q + frames] for q in range(7)]
    even = 2 * sum((taps[11 - 2 * q] * shifted[q] for q in range(1, 6)), taps[11] * shifted[0])
    odd = 2 * sum((taps[12 - 2 * q] * shifted[q] for q in range(2, 7)), taps[10] * shifted[1])
    frequency, scale = alpha.exp()[:, None], 1.0 / (beta.exp()[:, None] + 1e-9)
    even = even + scale * torch.sin(frequency * even).square()
    odd = odd + scale * torch.sin(frequency * odd).square()
    first, last = even[..., :1], odd[..., -1:]
    even = torch.cat([first, first, even, last, last, last], dim=-1)
    odd = torch.cat([first, first, first, odd, last, last], dim=-1)
    from_even = sum((taps[2 * q + 1] * even[..., q : q + frames] for q in range(1, 6)), taps[1] * even[..., :frames])
    from_odd = sum((taps[2 * q] * odd[..., q : q + frames] for q in range(1, 6)), taps[0] * odd[..., :frames])
    return (from_even + from_odd).to(x.dtype)
