"""Attention among the frames of a padded batch: rotary positions, and two ways of keeping the padding out.

A mask works everywhere, but rules out FlashAttention (arXiv 2307.08691). Its variable-length kernel takes sequences packed end to end
instead; a padded batch is exactly that if every stretch of padding counts as a sequence of its own, which nobody reads.
"""

from __future__ import annotations

import importlib
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

from indextts.engine.attention import flash_attn_suits

logger = logging.getLogger(__name__)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels of ``x`` (R, S, n, heads, head_dim) in float32; a pair is taken as one complex number."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spans: Tensor | None) -> Tensor:
    """Attention of queries (R, Q, heads, head_dim), the last Q of S slots, to keys and values (R, S, heads, head_dim).

    ``mask`` (1 or R, 1, 1, S) is added to the scores; ``spans`` as from :func:`packed_spans` takes its place where given.
    """
    queries, slots = q.shape[1], k.shape[1]
    package = flash_attn_suits(q)
    if spans is None and mask is None and package:
        whole: Tensor = importlib.import_module("flash_attn").flash_attn_func(q, k, v)
        return whole
    if spans is None:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    of_queries = spans[0] if queries == slots else spans[1]
    run = importlib.import_module("flash_attn").flash_attn_varlen_func if package else varlen.varlen_attn
    y = run(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), of_queries, spans[0], queries, slots)
    assert isinstance(y, Tensor)
    return y.unflatten(0, (-1, queries))


def packed_spans(shifts: Tensor, lengths: Tensor, slots: int, window: int) -> Tensor:
    """Where the sequences of a padded batch begin: (2, 3 R + 1) int32, for all slots and for the last ``window`` of each row.

    Each row holds ``shifts`` (R,) slots of padding, ``lengths`` (R,) frames, and padding again; none of the frames before the window
    is beyond its sample's end.
    """
    rows = torch.arange(len(shifts), device=shifts.device)
    start = torch.zeros_like(shifts)
    ends = torch.stack([start, shifts, shifts + lengths]) + rows * slots
    window_ends = torch.stack([start, start, shifts + lengths - (slots - window)]) + rows * window
    totals = torch.tensor([[len(shifts) * slots], [len(shifts) * window]]).to(shifts.device, non_blocking=True)
    return torch.cat([torch.stack([ends.T.flatten(), window_ends.T.flatten()]), totals], dim=1).to(torch.int32)


def can_pack(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the variable-length kernel runs here: it needs 16 bits and a CUDA device that FlashAttention knows."""
    if device.type != "cuda" or dtype == torch.float32:
        return False
    try:
        x, spans = torch.zeros(8, 1, head_dim, device=device, dtype=dtype), torch.tensor([0, 4, 8], device=device, dtype=torch.int32)
        varlen.varlen_attn(x, x, x, spans, spans, 4, 4)
        torch.cuda.synchronize(device)
    except (RuntimeError, NotImplementedError) as error:
        logger.info("variable-length attention is not available on %s, padding is masked instead: %s", device, error)
        return False
    return True
