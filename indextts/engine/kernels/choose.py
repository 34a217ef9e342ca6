"""The codes that a draw could end with, of each sequence, in one kernel: ``choose.cu``, for GPUs with enough shared memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from indextts.engine.kernels import cuda_source

THREADS = 1024
_POINTERS = (
    "logits", "seen", "waits", "highest", "picked_code", "picked_score", "picked_wait", "filler_code", "filler_score",
)  # fmt: skip


class Choice(ctypes.Structure):
    """The kernel's one argument."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS), ("stop", ctypes.c_int),
        *((name, ctypes.c_float) for name in ("penalty", "temperature", "cut")),
    ]  # fmt: skip


Launch = Callable[[Mapping[str, int], Choice, int], None]  # run the kernel that these defines make, for so many sequences


def shared_bytes(vocabulary: int) -> int:
    """Shared memory of a block; as SHARED_BYTES in the kernel's source."""
    return 16 * vocabulary + 4 * (128 + 3 * 32 + 8)


@functools.cache
def launcher(device: torch.device, vocabulary: int) -> Launch | None:
    """What runs the kernel on a device, in the current stream; None where it cannot run."""
    if device.type != "cuda":
        return None
    try:
        import cuda.bindings.nvrtc  # noqa: F401
    except ImportError:
        return None
    architecture, limit = cuda_source.architecture_of(device)
    if shared_bytes(vocabulary) > limit:
        return None

    def launch(defines: Mapping[str, int], choice: Choice, sequences: int) -> None:
        size = shared_bytes(defines["VOCABULARY"])
        kernel = cuda_source.function("choose.cu", "choose", architecture, device.index or 0, tuple(sorted(defines.items())), size)
        cuda_source.launch(kernel, device, sequences, THREADS, size, choice, together=False)

    return launch


def choose(
    launch: Launch, logits: Tensor, seen: Tensor, waits: Tensor, found: tuple[Tensor, ...], stop: int,
    how: Mapping[str, int], penalty: float, temperature: float, cut: float,
) -> None:  # fmt: skip
    """Fill ``found`` as :func:`indextts.engine.kernels.sampler_parts.pick` does, from ``logits`` (..., V); ``how``: the source's names."""
    addresses = [tensor.data_ptr() for tensor in (logits, seen, waits, *found)]
    vocabulary = logits.shape[-1]
    launch({"VOCABULARY": vocabulary, **how}, Choice(*addresses, stop, penalty, temperature, cut), logits.numel() // vocabulary)
