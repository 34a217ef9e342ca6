"""What lies between the matrix products of the mel solver, one kernel each: :class:`indextts.engine.solver_ops.SolverOps` in Triton.

Every one of them is bound by memory, and in torch makes two to six passes over it. Sums and functions are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from indextts.engine.solver_ops import SolverOps

PAIRS = 1024  # of the gates: values of a program


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
def _rotate(
    qkv, rotation, q_out, k_out, slots, heads, qkv_row, qkv_slot, rotation_row, HALF: tl.constexpr, LANES: tl.constexpr, H: tl.constexpr
):
    slot, row = tl.program_id(0), tl.program_id(1)
    head, pair = tl.arange(0, H)[:, None], tl.arange(0, LANES)[None, :]
    real = (head < heads) & (pair < HALF)
    table = rotation + row.to(tl.int64) * rotation_row + (slot * HALF + pair) * 2
    cos = tl.load(table, mask=pair < HALF, other=0.0)
    sin = tl.load(table + 1, mask=pair < HALF, other=0.0)
    inside = head * (2 * HALF) + 2 * pair
    source = qkv + row.to(tl.int64) * qkv_row + slot.to(tl.int64) * qkv_slot + inside
    target = (row * slots + slot).to(tl.int64) * (heads * 2 * HALF) + inside
    for part in tl.static_range(2):
        out = q_out if part == 0 else k_out
        a = tl.load(source + part * heads * 2 * HALF, mask=real, other=0.0).to(tl.float32)
        b = tl.load(source + part * heads * 2 * HALF + 1, mask=real, other=0.0).to(tl.float32)
        tl.store(out + target, (a * cos - b * sin).to(out.dtype.element_ty), mask=real)
        tl.store(out + target + 1, (b * cos + a * sin).to(out.dtype.element_ty), mask=real)


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
        q, k = torch.empty(2, rows, slots, heads, width, device=qkv.device, dtype=qkv.dtype)
        half = width // 2
        turn = angles.stride(0) if len(angles) > 1 else 0
        sizes = {"HALF": half, "LANES": triton.next_power_of_2(half), "H": triton.next_power_of_2(heads)}
        _rotate[(slots, rows)](qkv, angles, q, k, slots, heads, qkv.stride(0), qkv.stride(1), turn, **sizes)
        return q, k, qkv[:, :, 2]

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
