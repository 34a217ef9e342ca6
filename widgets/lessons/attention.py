"""Lesson 04: attention kernels, and how much of the work attention is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from widgets.lessons.engine import SENTENCE, quiet_limits
from widgets.lessons.measure import Timing, interleaved, timed

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

KERNELS = {"math": SDPBackend.MATH, "fused": SDPBackend.FLASH_ATTENTION}

# Of the release, checked with a FLOP counter: operations and bytes (16 bits) of one decode step, and what each position of context adds.
DECODE_FLOP, DECODE_FLOP_A_POSITION = 0.966e9, 0.123e6
DECODE_BYTES, DECODE_BYTES_A_POSITION = 965.5e6, 122.9e3
SOLVER_FLOP, SOLVER_FLOP_A_FRAME = 178.4e6, 49.2e3  # of one mel frame and Euler step, and what each frame of the whole adds


def inputs(queries: int, keys: int, heads: int = 4, width: int = 64, device: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value (1, heads, n, width); in 16 bits on a GPU, whose fused kernels need them."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator(where).manual_seed(0)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    query, key, value = (torch.randn(1, heads, n, width, device=where, generator=generator).to(dtype) for n in (queries, keys, keys))
    return query, key, value


def attend(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention with one of torch's kernels, ``math`` or ``fused``; a single query sees all keys."""
    with sdpa_kernel(KERNELS[kernel]):
        return F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1)


def times_ms(lengths: list[int], decode: bool = False, runs: int = 3) -> dict[str, list[float]]:
    """Milliseconds by kernel for each length: of a whole sequence at once, or with ``decode`` of one query over so many keys."""
    found: dict[str, list[float]] = {}
    for kernel in KERNELS:
        found[kernel] = []
        for length in lengths:
            query, key, value = inputs(1 if decode else length, length)
            with torch.inference_mode():
                call = timed(lambda k=kernel, q=(query, key, value): attend(k, *q), runs, warmup=1)  # type: ignore[misc]
            found[kernel].append(1e3 * call.best)
    return found


def kernel_difference(length: int = 256) -> float:
    """Largest difference between the two kernels' results over a whole sequence."""
    triple = inputs(length, length)
    return float((attend("math", *triple) - attend("fused", *triple)).abs().max())


def compare_kernels(tts: IndexTTS2, kernels: Sequence[str] = ("math", "auto"), runs: int = 2, codes: int = 30) -> dict[str, Timing]:
    """Whole calls with each of the engine's attention settings, in turns; the engine is left as it was."""
    before = tts.attention

    def call(kernel: str) -> None:
        tts.set_attention(kernel)
        with quiet_limits(tts):
            tts.infer_forced(codes, spk_audio_prompt=tts.default_voice(), text=SENTENCE, seed=1)

    try:
        return interleaved({kernel: lambda kernel=kernel: call(kernel) for kernel in kernels}, runs)  # type: ignore[misc]
    finally:
        tts.set_attention(before)


def scores_mb(length: int, heads: int = 20, bytes_each: int = 4) -> float:
    """Megabytes of the score matrix that the math kernel writes down and a fused one does not: heads x length x length."""
    return heads * length * length * bytes_each / 2**20


def decode_share(context: int) -> dict[str, float]:
    """Percent of a decode step of the release that attention over ``context`` positions is: of the arithmetic, of the bytes read."""
    flop, size = DECODE_FLOP_A_POSITION * context, DECODE_BYTES_A_POSITION * context
    return {"arithmetic": 100 * flop / (DECODE_FLOP + flop), "bytes": 100 * size / (DECODE_BYTES + size)}


def solver_share(frames: int) -> float:
    """Percent of the flow-matching solver's arithmetic that attention over ``frames`` mel frames (prompt and target) is."""
    own = SOLVER_FLOP_A_FRAME * frames
    return 100 * own / (SOLVER_FLOP + own)


def share_table(contexts: list[int]) -> list[dict[str, Any]]:
    """Attention's share of a decode step by context length, and the speed-up if attention cost nothing at all."""
    rows = []
    for context in contexts:
        share = decode_share(context)["bytes"]
        rows.append({"context (positions)": context, "attention's share (%)": share, "speed-up if it were free": 1 / (1 - share / 100)})
    return rows
