"""Which number format runs where.

| precision | GPT and its conditioners | S2Mel, encoders, vocoder | matrix products in float32 |
|---|---|---|---|
| ``fp32``  | float32  | float32 | true float32, convolutions too |
| ``tf32``  | float32  | float32 | TF32 tensor cores (sm_80 and newer) |
| ``bf16``  | bfloat16 | float32 | true float32 |
| ``fp16``  | float16  | float32 | true float32 |

In the 16-bit modes weights and matrix products are 16-bit while the residual stream, norms, softmax and logits stay in float32, as
in the release's half-precision mode; everything after the GPT runs in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_16_bit(device: torch.device) -> str:
    """The best 16-bit precision of a device: bf16 from sm_80 on, fp16 on sm_70 and sm_75, otherwise none (``fp32``)."""
    if device.type == "xpu":
        return "bf16"
    if device.type != "cuda":
        return "fp32"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return "bf16"
    return "fp16" if capability >= (7, 0) else "fp32"


def resolve_precision(precision: str, use_fp16: bool, device: torch.device) -> str:
    """The precision in force: ``precision`` unless it is ``"auto"``, which follows ``use_fp16``.

    Errors: ``ValueError`` for a name that does not exist or that ``device`` cannot run.
    """
    if precision == "auto":
        return best_16_bit(device) if use_fp16 else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose 'auto' or one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ValueError(f"precision 'tf32' needs a GPU of compute capability 8.0 or newer, not {device}; use 'fp32'")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' is not supported on the CPU; use 'bf16' or 'fp32'")
    return precision


def dtype_of(precision: str) -> torch.dtype | None:
    """``torch.float16``, ``torch.bfloat16``, or None for the float32 modes."""
    return _DTYPES[precision]


@contextlib.contextmanager
def matmul_mode(precision: str, device: torch.device) -> Iterator[None]:
    """Set what float32 products may use on a CUDA device while the body runs; other devices have no such switch."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
