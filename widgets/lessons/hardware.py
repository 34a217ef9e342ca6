"""Lesson 02: what GPU generations can do, and what memory bandwidth allows."""

from __future__ import annotations

from typing import Any

import torch

from indextts.utils.gpu_config import GPUConfig
from widgets.lessons.measure import timed

# One compute capability for each row of the optimisation guide's table, with cards that have it.
CARDS = {
    (10, 0): "B200",
    (9, 0): "H100, H200",
    (8, 9): "RTX 4090, RTX 6000 Ada",
    (8, 0): "A100",
    (8, 6): "RTX 3090, A6000",
    (7, 5): "RTX 2080 Ti, T4",
    (7, 0): "V100",
    (6, 1): "GTX 1080",
}
RELEASE_DECODE_BYTES = 965.5e6  # weights that one decode step of the release reads in 16 bits: 482.8 M parameters


def generations() -> list[dict[str, Any]]:
    """What :class:`GPUConfig` chooses for each generation, one row a compute capability; needs no GPU."""
    rows = []
    for capability, cards in CARDS.items():
        settings = GPUConfig.get_optimal_settings(capability)
        rows.append(
            {
                "compute capability": ".".join(map(str, capability)),
                "architecture": settings["architecture"],
                "for example": cards,
                "bf16": settings["use_bf16"],
                "fp16": settings["use_fp16"],
                "TF32": settings["use_tf32"],
                "flash attention": settings["use_flash_attn"],
                "16-bit choice": settings["preferred_dtype"],
            }
        )
    return rows


def copy_bandwidth(megabytes: int = 64, device: str | None = None) -> float:
    """Bytes a second that a copy within the device's memory moves, read and written bytes counted."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = torch.ones(megabytes * 2**20 // 4, device=where)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / timed(lambda: target.copy_(source), runs=7, warmup=2).best


def decode_floor_ms(bytes_per_s: float, weight_bytes: float = RELEASE_DECODE_BYTES) -> float:
    """Milliseconds that a decode step takes at least, since it reads every weight of the GPT once."""
    return 1e3 * weight_bytes / bytes_per_s
