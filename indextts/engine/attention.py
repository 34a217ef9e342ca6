"""Which scaled-dot-product kernel runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

ATTENTION = ("auto", "flash", "efficient", "math")


def check_attention(name: str, device: torch.device) -> str:
    """Return ``name`` if ``device`` can run it, else raise ``ValueError`` with the choices."""
    if name not in ATTENTION:
        raise ValueError(f"attention is {name!r}; choose one of {', '.join(ATTENTION)}")
    if name == "flash" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ValueError(f"attention 'flash' needs a GPU of compute capability 8.0 or newer, not {device}; use 'auto'")
    return name


@contextlib.contextmanager
def attention_kernel(name: str) -> Iterator[None]:
    """Restrict torch's attention to one kernel; where a call does not suit it (a mask, float32), the exact fallback runs."""
    if name == "auto":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
        "efficient": [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
        "math": [SDPBackend.MATH],
    }[name]
    with sdpa_kernel(backends, set_priority=True):
        yield
