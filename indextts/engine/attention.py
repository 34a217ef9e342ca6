"""Which scaled-dot-product kernel runs.

``cudnn``: cuDNN's, in 16 bits from sm_80 on. ``flash``: FlashAttention-2 (arXiv 2307.08691) in 16 bits from sm_80 on: the ``flash-attn``
package for the mel solver's attention where it is installed and suits the call, else torch's own build of it, which the GPT always takes.
``efficient``: torch's memory-efficient kernel. ``math``: plain products and a softmax. Where a call does not suit the choice (a mask,
float32) the next of these runs. In 16 bits on a GPU the mel solver has kernels for its padded buckets that no choice replaces: with
fused kernels its own, else FlashAttention's for packed sequences. On an H200 the solver's 2 x 861 frames in 1,024 slots take 13.7 us in
its own and 29.6 packed; without padding 14.4 in ``cudnn``, 20 in ``flash``, 43 in ``efficient``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from indextts.utils.gpu_config import GPUConfig

ATTENTION = ("auto", "cudnn", "flash", "efficient", "math")
_PACKAGE: ContextVar[bool] = ContextVar("flash_attn", default=False)


def check_attention(name: str, device: torch.device) -> str:
    """Return ``name`` if ``device`` can run it, else raise ``ValueError`` with the choices."""
    if name not in ATTENTION:
        raise ValueError(f"attention is {name!r}; choose one of {', '.join(ATTENTION)}")
    if name in ("cudnn", "flash") and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ValueError(f"attention {name!r} needs a GPU of compute capability 8.0 or newer, not {device}; use 'auto'")
    return name


@functools.cache
def has_flash_attn() -> bool:
    """Whether the ``flash-attn`` package imports; asked once, since a broken build is slow to fail."""
    return GPUConfig.check_flash_attention()


@contextlib.contextmanager
def attention_kernel(name: str, device: torch.device | None = None) -> Iterator[None]:
    """Restrict attention to one kernel; where a call does not suit it (a mask, float32), the exact fallback runs."""
    if name == "auto":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
        "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
        "efficient": [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
        "math": [SDPBackend.MATH],
    }[name]
    token = _PACKAGE.set(name == "flash" and device is not None and device.type == "cuda" and has_flash_attn())
    try:
        with sdpa_kernel(backends, set_priority=True):
            yield
    finally:
        _PACKAGE.reset(token)


def flash_attn_suits(x: Tensor) -> bool:
    """Whether the package is to be used for queries ``x`` (..., heads, head_dim)."""
    return _PACKAGE.get() and x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] <= 256 and x.shape[-1] % 8 == 0
