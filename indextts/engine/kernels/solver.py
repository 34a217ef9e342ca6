"""What lies between the matrix products of the mel solver, one kernel each: :class:`indextts.engine.solver_ops.SolverOps` in Triton.

Every one of them is bound by memory, and in torch makes two to six passes over it. Sums and functions are in float32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from indextts.engine.solver_ops import SolverOps

PAIRS = 1024  # of the gates: values of a program
QUERIES, KEYS, WARPS, STAGES = 64, 128, 4, 3  # of attention: a program's tile, and how it is made
HEAD_WIDTHS = (16, 32, 64, 128)


@triton.jit
def _norm(
    h,
    y,
    gain,
    offset,
    h_out,
    n_out,
    slots,
    h_row,
    h_slot,
    y_row,
    y_slot,
    width,
    eps,
    ADDS: tl.constexpr,
    SHIFTS: tl.constexpr,
    W: tl.constexpr,
):
    row = tl.program_id(0)
    at, sample, slot = tl.arange(0, W), (row // slots).to(tl.int64), row % slots
    real = at < width
    value = tl.load(h + sample * h_row + slot * h_slot + at, mask=real, other=0.0)
    place = row.to(tl.int64) * width + at
    if ADDS:
        value += tl.load(y + sample * y_row + slot * y_slot + at, mask=real, other=0.0).to(tl.float32)
        tl.store(h_out + place, value, mask=real)
    n = value * tl.rsqrt(tl.sum(value * value, axis=0) / width + eps) * tl.load(gain + at, mask=real, other=0.0)
    if SHIFTS:
        n += tl.load(offset + at, mask=real, other=0.0)
    tl.store(n_out + place, n.to(n_out.dtype.element_ty), mask=real)


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


@triton.jit
def _joined(h, y, other, out, slots, h_row, h_slot, width, W: tl.constexpr):
    row = tl.program_id(0)
    at, sample, slot = tl.arange(0, W), (row // slots).to(tl.int64), row % slots
    real, line = at < width, row.to(tl.int64) * width
    value = tl.load(h + sample * h_row + slot * h_slot + at, mask=real, other=0.0)
    value += tl.load(y + line + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + 2 * line + at, value.to(out.dtype.element_ty), mask=real)
    tl.store(out + 2 * line + width + at, tl.load(other + line + at, mask=real, other=0.0), mask=real)


@triton.jit
def _gate(x, out, count, width, WAVE: tl.constexpr, PAIRS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    real = at < count
    row, column = at // width, at % width
    a = tl.load(x + row * 2 * width + column, mask=real, other=0.0).to(tl.float32)
    b = tl.load(x + row * 2 * width + width + column, mask=real, other=0.0).to(tl.float32)
    # tanh(a) is 2 sigmoid(2 a) - 1. A product beyond the format's range would become infinite; it stays at the end of the range.
    y = (2.0 * tl.sigmoid(2.0 * a) - 1.0) * tl.sigmoid(b) if WAVE else a * tl.sigmoid(a) * b
    if out.dtype.element_ty == tl.float16:
        y = tl.minimum(tl.maximum(y, -65504.0), 65504.0)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=real)


@triton.jit
def _attend(
    q,
    k,
    v,
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
    scale,
    HEAD: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """M queries of one head and row; ``spans`` say where its frames begin and end. Softmax online (arXiv 2205.14135), in powers of two."""
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
        keys = k + row.to(tl.int64) * k_row + head * HEAD + place[None, :] * k_slot + channel[:, None]
        values = v + row.to(tl.int64) * v_row + head * HEAD + place[:, None] * v_slot + channel[None, :]
        top, mass, mixed = tl.full((M,), float("-inf"), tl.float32), tl.zeros((M,), tl.float32), tl.zeros((M, HEAD), tl.float32)
        whole = (end - start) // N
        for _ in range(0, whole):
            scores = tl.dot(query, tl.load(keys)) * scale
            higher = tl.maximum(top, tl.max(scores, 1))
            weights, old = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
            mass = mass * old + tl.sum(weights, 1)
            mixed = tl.dot(weights.to(v.dtype.element_ty), tl.load(values), mixed * old[:, None])
            top = higher
            keys += N * k_slot
            values += N * v_slot
        left = (end - start) - whole * N
        if left > 0:
            there = tl.arange(0, N) < left
            scores = tl.dot(query, tl.load(keys, mask=there[None, :], other=0.0)) * scale
            scores = tl.where(there[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            weights, old = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
            mass = mass * old + tl.sum(weights, 1)
            mixed = tl.dot(weights.to(v.dtype.element_ty), tl.load(values, mask=there[:, None], other=0.0), mixed * old[:, None])
        tl.store(target, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


class FusedSolverOps(SolverOps):
    """The same results from one kernel each."""

    def norm(self, h: Tensor, gain: Tensor, offset: Tensor | None) -> Tensor:
        """As in torch."""
        return self._normed(h, None, gain, offset)[1]

    def add_norm(self, h: Tensor, y: Tensor, gain: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in torch."""
        return self._normed(h, y, gain, offset)

    def rotated(self, qkv: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in torch."""
        rows, slots, _, heads, width = qkv.shape
        angles = torch.view_as_real(rotation).contiguous()
        both = torch.empty(2, rows, slots, heads, width, device=qkv.device, dtype=qkv.dtype)
        turn = angles.stride(0) if len(angles) > 1 else 0
        _rotate[(slots, rows)](
            qkv, angles, both, slots, heads * width, qkv.stride(0), qkv.stride(1), turn, both[0].numel(),
            HALF=width // 2, W=triton.next_power_of_2(2 * heads * width),
        )  # fmt: skip
        return both[0], both[1], qkv[:, :, 2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spans: Tensor | None) -> Tensor:
        """As in torch where nothing is padded. Padding costs nothing: neither are its queries answered nor its keys read."""
        width = q.shape[-1]
        if spans is None or width not in HEAD_WIDTHS or any(part.stride()[2:] != (width, 1) for part in (q, k, v)):
            return super().attend(q, k, v, mask, spans)
        rows, queries, heads, _ = q.shape
        out = torch.empty(rows, queries, heads, width, device=q.device, dtype=q.dtype)
        _attend[(triton.cdiv(queries, QUERIES), heads, rows)](
            q, k, v, spans, out, k.shape[1], queries, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            width**-0.5 * math.log2(math.e), HEAD=width, M=QUERIES, N=KEYS, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
        return out

    def add_join(self, h: Tensor, y: Tensor, other: Tensor) -> Tensor:
        """As in torch."""
        rows, slots, width = h.shape
        out = torch.empty(rows, slots, 2 * width, device=h.device, dtype=self.dtype)
        _joined[(rows * slots,)](
            h, y.contiguous(), other.contiguous(), out, slots, h.stride(0), h.stride(1), width, W=triton.next_power_of_2(width)
        )
        return out

    def silu_gate(self, x: Tensor) -> Tensor:
        """As in torch."""
        return _gated(x, wave=False)

    def wave_gate(self, a: Tensor) -> Tensor:
        """As in torch."""
        return _gated(a, wave=True)

    def _normed(self, h: Tensor, y: Tensor | None, gain: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, slots, width = h.shape
        n = torch.empty(rows, slots, width, device=h.device, dtype=self.dtype)
        total = torch.empty(rows, slots, width, device=h.device, dtype=h.dtype) if y is not None else h
        added = h if y is None else y
        _norm[(rows * slots,)](
            h,
            added,
            gain,
            gain if offset is None else offset,
            total,
            n,
            slots,
            h.stride(0),
            h.stride(1),
            added.stride(0),
            added.stride(1),
            width,
            self.norm_eps,
            ADDS=y is not None,
            SHIFTS=offset is not None,
            W=triton.next_power_of_2(width),
        )
        return total, n


def _gated(x: Tensor, *, wave: bool) -> Tensor:
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], width, device=x.device, dtype=x.dtype)
    _gate[(triton.cdiv(out.numel(), PAIRS),)](x, out, out.numel(), width, WAVE=wave, PAIRS=PAIRS)
    return out
