"""Attention of the mel solver in 16 bits: padding is neither answered nor read, and positions are turned on the way or before."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# A program's queries, keys of a turn, warps and stages: of what is turned already, and of what is turned on the way. Keys are turned by
# every program that reads them, so the second has more queries.
TILE, TURNING_TILE = (64, 128, 4, 3), (128, 64, 8, 3)
HEAD_WIDTHS = (16, 32, 64, 128)


@triton.jit
def _turned(line, table):
    """Neighbours of ``line`` (n, HEAD) as complex numbers times those of ``table`` (n, HEAD), in float32; rounded to the line's format."""
    n: tl.constexpr = line.shape[0]
    half: tl.constexpr = line.shape[1] // 2
    a, b = tl.split(tl.reshape(line.to(tl.float32), (n, half, 2)))
    cos, sin = tl.split(tl.reshape(table, (n, half, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (n, 2 * half)).to(line.dtype)


@triton.jit
def _mixed(scores, values, top, mass, mixed):
    """Softmax online (arXiv 2205.14135), in powers of two: the state after these ``scores`` (M, N) of ``values`` (N, HEAD)."""
    higher = tl.maximum(top, tl.max(scores, 1))
    weights, old = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
    return higher, mass * old + tl.sum(weights, 1), tl.dot(weights.to(values.dtype), values, mixed * old[:, None])


@triton.jit
def _attend(
    q,
    k,
    v,
    rotation,
    spans,
    out,
    slots,
    queries,
    q_row,
    q_slot,
    k_row,
    k_slot,
    v_row,
    v_slot,
    rotation_row,
    scale,
    TURNS: tl.constexpr,
    HEAD: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """M queries of one head and row; ``spans`` say where its frames begin and end."""
    block, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    ends = tl.load(spans + 3 * row + 1 + tl.arange(0, 2)) - row * slots
    start, end = tl.min(ends, 0), tl.max(ends, 0)
    at, channel = block * M + tl.arange(0, M), tl.arange(0, HEAD)
    inside = at < queries
    target = out + ((row * queries + at).to(tl.int64) * tl.num_programs(1) + head)[:, None] * HEAD + channel[None, :]
    first = slots - queries + block * M
    if (first >= end) | (first + M <= start):  # padding, which nobody reads, but which goes on through norms and products
        tl.store(target, tl.zeros((M, HEAD), out.dtype.element_ty), mask=inside[:, None])
    else:
        source = q + row.to(tl.int64) * q_row + at[:, None] * q_slot + head * HEAD + channel[None, :]
        query = tl.load(source, mask=inside[:, None], other=0.0)
        place = start + tl.arange(0, N)
        angles = rotation + row.to(tl.int64) * rotation_row
        if TURNS:
            of_queries = angles + (slots - queries + at)[:, None] * HEAD + channel[None, :]
            query = _turned(query, tl.load(of_queries, mask=inside[:, None], other=0.0))
        of_keys = angles + place[:, None] * HEAD + channel[None, :]
        keys = k + row.to(tl.int64) * k_row + head * HEAD + place[:, None] * k_slot + channel[None, :]
        values = v + row.to(tl.int64) * v_row + head * HEAD + place[:, None] * v_slot + channel[None, :]
        top, mass, mixed = tl.full((M,), float("-inf"), tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M, HEAD), tl.float32)
        whole = (end - start) // N
        for _ in range(0, whole):
            key = tl.load(keys)
            if TURNS:
                key = _turned(key, tl.load(of_keys))
            top, mass, mixed = _mixed(tl.dot(query, tl.trans(key)) * scale, tl.load(values), top, mass, mixed)
            keys += N * k_slot
            values += N * v_slot
            of_keys += N * HEAD
        left = (end - start) - whole * N
        if left > 0:
            there = tl.arange(0, N) < left
            key = tl.load(keys, mask=there[:, None], other=0.0)
            if TURNS:
                key = _turned(key, tl.load(of_keys, mask=there[:, None], other=0.0))
            scores = tl.where(there[None, :], tl.dot(query, tl.trans(key)) * scale, float("-inf"))
            top, mass, mixed = _mixed(scores, tl.load(values, mask=there[:, None], other=0.0), top, mass, mixed)
        tl.store(target, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _rotate(qkv, rotation, out, slots, width, qkv_row, qkv_slot, rotation_row, k_out, HALF: tl.constexpr, W: tl.constexpr):
    """Queries and keys of one slot lie side by side and are read as one line; ``width`` of them are the queries."""
    slot, row = tl.program_id(0), tl.program_id(1)
    at, place = tl.arange(0, W), tl.arange(0, W // 2)
    real = at < 2 * width
    line = tl.load(qkv + row.to(tl.int64) * qkv_row + slot.to(tl.int64) * qkv_slot + at, mask=real, other=0.0).to(tl.float32)
    table = rotation + row.to(tl.int64) * rotation_row + (slot * HALF + place % HALF) * 2
    cos, sin = tl.load(table), tl.load(table + 1)
    a, b = tl.split(tl.reshape(line, (W // 2, 2)))
    turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (W,))
    target = (row * slots + slot).to(tl.int64) * width + at + tl.where(at < width, 0, k_out - width)
    tl.store(out + target, turned.to(out.dtype.element_ty), mask=real)


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether :func:`attended` takes these: a known head width, heads side by side."""
    width = q.shape[-1]
    return width in HEAD_WIDTHS and all(part.stride()[2:] == (width, 1) for part in (q, k, v))


def attended(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, rotation: Tensor | None = None) -> Tensor:
    """Attention within ``spans``, shapes as in :func:`indextts.engine.solver_attention.attend`; with ``rotation`` q and k are turned."""
    rows, queries, heads, width = q.shape
    out = torch.empty(rows, queries, heads, width, device=q.device, dtype=q.dtype)
    angles, turn = (q, 0) if rotation is None else _angles(rotation)
    m, n, warps, stages = TILE if rotation is None else TURNING_TILE
    _attend[(triton.cdiv(queries, m), heads, rows)](
        q, k, v, angles, spans, out, k.shape[1], queries, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], turn,
        width**-0.5 * math.log2(math.e), TURNS=rotation is not None, HEAD=width, M=m, N=n, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def rotated(qkv: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`indextts.engine.solver_ops.SolverOps.rotated`."""
    rows, slots, _, heads, width = qkv.shape
    angles, turn = _angles(rotation)
    both = torch.empty(2, rows, slots, heads, width, device=qkv.device, dtype=qkv.dtype)
    _rotate[(slots, rows)](
        qkv, angles, both, slots, heads * width, qkv.stride(0), qkv.stride(1), turn, both[0].numel(),
        HALF=width // 2, W=triton.next_power_of_2(2 * heads * width),
    )  # fmt: skip
    return both[0], both[1], qkv[:, :, 2]


def _angles(rotation: Tensor) -> tuple[Tensor, int]:
    """The rotations (1 or R, S, 1, 1, head_dim / 2) as real numbers, and the way from one row's to the next's."""
    angles = torch.view_as_real(rotation).contiguous()
    return angles, angles.stride(0) if len(angles) > 1 else 0
