"""What lies between the matrix products of the mel solver, one kernel each: :class:`indextts.engine.solver_ops.SolverOps` in Triton.

Every one of them is bound by memory, and in torch makes two to six passes over it. Sums and functions are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from indextts.engine.kernels import solver_attention as attention
from indextts.engine.solver_ops import SolverOps

PAIRS = 512  # of the gates: values of a program
FRAMES = 4  # of what convolutions read


@triton.jit
def _norm(
    h,
    y,
    gain,
    offset,
    h_out,
    n_out,
    copy,
    slots,
    h_row,
    h_slot,
    y_rows,
    y_slots,
    y_row,
    y_slot,
    copy_row,
    copy_slot,
    width,
    eps,
    ADDS: tl.constexpr,
    SHIFTS: tl.constexpr,
    COPIES: tl.constexpr,
    W: tl.constexpr,
):
    """Of one slot. What is added has ``y_rows`` rows, which repeat, and is there for the last ``y_slots`` alone."""
    row = tl.program_id(0)
    at, sample, slot = tl.arange(0, W), (row // slots).to(tl.int64), row % slots
    real = at < width
    value = tl.load(h + sample * h_row + slot * h_slot + at, mask=real, other=0.0).to(tl.float32)
    place = row.to(tl.int64) * width + at
    if ADDS:
        late = slot - (slots - y_slots)
        value += tl.load(y + sample % y_rows * y_row + late * y_slot + at, mask=real & (late >= 0), other=0.0).to(tl.float32)
        tl.store(h_out + place, value, mask=real)
    if COPIES:
        tl.store(copy + sample * copy_row + slot * copy_slot + at, value.to(copy.dtype.element_ty), mask=real)
    n = value * tl.rsqrt(tl.sum(value * value, axis=0) / width + eps) * tl.load(gain + at, mask=real, other=0.0)
    if SHIFTS:
        n += tl.load(offset + at, mask=real, other=0.0)
    tl.store(n_out + place, n.to(n_out.dtype.element_ty), mask=real)


@triton.jit
def _added(h, y, out, slots, h_row, h_slot, y_row, y_slot, out_row, out_slot, width, W: tl.constexpr):
    row = tl.program_id(0)
    at, sample, slot = tl.arange(0, W), (row // slots).to(tl.int64), row % slots
    real = at < width
    value = tl.load(h + sample * h_row + slot * h_slot + at, mask=real, other=0.0).to(tl.float32)
    value += tl.load(y + sample * y_row + slot * y_slot + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + sample * out_row + slot * out_slot + at, value.to(out.dtype.element_ty), mask=real)


@triton.jit
def _gate(x, out, width, x_row, out_row, WAVE: tl.constexpr, PAIRS: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
    real = at < width
    a = tl.load(x + row * x_row + at, mask=real, other=0.0).to(tl.float32)
    b = tl.load(x + row * x_row + width + at, mask=real, other=0.0).to(tl.float32)
    # tanh(a) is 2 sigmoid(2 a) - 1. A product beyond the format's range would become infinite; it stays at the end of the range.
    y = (2.0 * tl.sigmoid(2.0 * a) - 1.0) * tl.sigmoid(b) if WAVE else a * tl.sigmoid(a) * b
    if out.dtype.element_ty == tl.float16:
        y = tl.minimum(tl.maximum(y, -65504.0), 65504.0)
    tl.store(out + row * out_row + at, y.to(out.dtype.element_ty), mask=real)


@triton.jit
def _summed(z, y, frame, there, at, frames, z_row, z_frame, y_rows, y_row, y_frame, ADDS: tl.constexpr):
    """``z + y`` of some frames, counted through all rows, (F, W) float32; those of ``y`` repeat after ``y_rows``."""
    row, frame = (frame // frames).to(tl.int64), frame % frames
    value = tl.load(z + (row * z_row + frame * z_frame)[:, None] + at[None, :], mask=there, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(y + (row % y_rows * y_row + frame * y_frame)[:, None] + at[None, :], mask=there, other=0.0).to(tl.float32)
    return value


@triton.jit
def _take(
    z,
    y,
    taps,
    total,
    read,
    count,
    places,
    frames,
    z_row,
    z_frame,
    y_rows,
    y_row,
    y_frame,
    width,
    ADDS: tl.constexpr,
    KEEPS: tl.constexpr,
    TAPS: tl.constexpr,
    F: tl.constexpr,
    W: tl.constexpr,
):
    """F of ``count`` frames, and those that TAPS of ``places`` for each of them name. They are neighbours: the cache has most of them."""
    frame, at = tl.program_id(0) * F + tl.arange(0, F), tl.arange(0, W)
    real = (at < width)[None, :]
    if KEEPS:
        there = (frame < count)[:, None] & real
        value = _summed(z, y, frame, there, at, frames, z_row, z_frame, y_rows, y_row, y_frame, ADDS)
        tl.store(total + frame.to(tl.int64)[:, None] * width + at[None, :], value, mask=there)
    for i in tl.static_range(TAPS):
        place = frame * TAPS + i
        tap, there = tl.load(taps + place, mask=place < places, other=0).to(tl.int32), (place < places)[:, None] & real
        value = _summed(z, y, tap, there, at, frames, z_row, z_frame, y_rows, y_row, y_frame, ADDS)
        tl.store(read + place.to(tl.int64)[:, None] * width + at[None, :], value.to(read.dtype.element_ty), mask=there)


@triton.jit
def _normed(h, shortcut, x, at, width, eps, ADDS: tl.constexpr):
    """Layer norm of one frame of one branch."""
    real = at < width
    value = tl.load(shortcut + at, mask=real, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    value += tl.load(h + at, mask=real, other=0.0).to(tl.float32)
    away = tl.where(real, value - tl.sum(value, axis=0) / width, 0.0)
    return away * tl.rsqrt(tl.sum(away * away, axis=0) / width + eps)


@triton.jit
def _last_norm(
    h,
    shortcut,
    x,
    guidance,
    out,
    h_null,
    shortcut_null,
    frames,
    h_row,
    h_frame,
    shortcut_row,
    shortcut_frame,
    x_rows,
    x_row,
    x_frame,
    width,
    eps,
    ADDS: tl.constexpr,
    COMBINES: tl.constexpr,
    W: tl.constexpr,
):
    """Of one frame: of the row, or of both branches that are to be combined, of which the second is so far away in memory."""
    row, frame, at = (tl.program_id(0) // frames).to(tl.int64), tl.program_id(0) % frames, tl.arange(0, W)
    mine, added = h + row * h_row + frame * h_frame, x + row % x_rows * x_row + frame * x_frame
    around = shortcut + row * shortcut_row + frame * shortcut_frame
    n = _normed(mine, around, added, at, width, eps, ADDS)
    if COMBINES:
        null = _normed(mine + h_null, around + shortcut_null, added, at, width, eps, ADDS)
        n += (n - null) * tl.load(guidance)
    tl.store(out + tl.program_id(0).to(tl.int64) * width + at, n, mask=at < width)


@triton.jit
def _advance(x, v, dt, held, guidance, frames, null, held_row, held_frame, width, COMBINES: tl.constexpr, W: tl.constexpr):
    """One frame of the state; the other branch's velocity is ``null`` values further on."""
    row, frame, at = (tl.program_id(0) // frames).to(tl.int64), tl.program_id(0) % frames, tl.arange(0, W)
    real, place = at < width, tl.program_id(0).to(tl.int64) * width + at
    speed = tl.load(v + place, mask=real, other=0.0)
    if COMBINES:
        speed += (speed - tl.load(v + null + place, mask=real, other=0.0)) * tl.load(guidance)
    moved = tl.load(x + place, mask=real, other=0.0) + speed * tl.load(dt)
    tl.store(x + place, tl.where(tl.load(held + row * held_row + frame * held_frame) != 0, 0.0, moved), mask=real)


class FusedSolverOps(SolverOps):
    """The same results from one kernel each.

    ``turns_inside``: queries and keys are turned by the attention that reads them. A solve then has 325 launches less and takes longer all
    the same, 31.3 instead of 30.8 ms on an H200 with the best of five tilings, since every program turns the keys again.
    """

    turns_inside = False

    def enter(self, static: Tensor, x: Tensor, gain: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """As in torch."""
        return self._norms(static, x, gain, offset)

    def norm(self, h: Tensor, gain: Tensor, offset: Tensor | None) -> Tensor:
        """As in torch."""
        return self._norms(h, None, gain, offset)[1]

    def add_norm(self, h: Tensor, y: Tensor, gain: Tensor, offset: Tensor | None, copy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As in torch."""
        return self._norms(h, y, gain, offset, copy)

    def add_into(self, h: Tensor, y: Tensor, out: Tensor) -> None:
        """As in torch."""
        rows, slots, width = h.shape
        _added[(rows * slots,)](
            h, y, out, slots, *h.stride()[:2], *y.stride()[:2], *out.stride()[:2], width, W=triton.next_power_of_2(width)
        )

    def attention(self, qkv: Tensor, rotation: Tensor, queries: int, mask: Tensor | None, spans: Tensor | None) -> Tensor:
        """As in torch; where ``spans`` are given, all of it is one kernel."""
        q, k, v = qkv[:, -queries:, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.turns_inside and spans is not None and attention.suits(q, k, v):
            return attention.attended(q, k, v, spans, rotation)
        return super().attention(qkv, rotation, queries, mask, spans)

    def rotated(self, qkv: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in torch."""
        return attention.rotated(qkv, rotation)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spans: Tensor | None) -> Tensor:
        """As in torch where nothing is padded. Padding costs nothing: neither are its queries answered nor its keys read."""
        if spans is None or not attention.suits(q, k, v):
            return super().attend(q, k, v, mask, spans)
        return attention.attended(q, k, v, spans)

    def silu_gate(self, x: Tensor) -> Tensor:
        """As in torch."""
        return _gated(x, None, wave=False)

    def wave_gate(self, a: Tensor, out: Tensor | None = None) -> Tensor:
        """As in torch."""
        return _gated(a, out, wave=True)

    def take(self, z: Tensor, y: Tensor | None, taps: Tensor) -> tuple[Tensor, Tensor]:
        """As in torch."""
        rows, frames, width = z.shape
        read = torch.empty(len(taps), width, device=z.device, dtype=self.dtype)
        keeps = y is not None or z.dtype != torch.float32
        total = torch.empty(rows, frames, width, device=z.device, dtype=torch.float32) if keeps else z
        added = z if y is None else y
        _take[(triton.cdiv(rows * frames, FRAMES),)](
            z, added, taps, total, read, rows * frames, len(taps), frames, *z.stride()[:2], len(added), *added.stride()[:2], width,
            ADDS=y is not None, KEEPS=keeps, TAPS=triton.cdiv(len(taps), rows * frames), F=FRAMES, W=triton.next_power_of_2(width),
        )  # fmt: skip
        return total, read

    def last_norm(self, h: Tensor, shortcut: Tensor, x: Tensor | None, guidance: Tensor | None, eps: float) -> Tensor:
        """As in torch."""
        rows, frames, width = h.shape
        samples, added = rows if guidance is None else rows // 2, h if x is None else x
        out = torch.empty(samples, frames, width, device=h.device, dtype=torch.float32)
        _last_norm[(samples * frames,)](
            h, shortcut, added, h if guidance is None else guidance, out, samples * h.stride(0), samples * shortcut.stride(0), frames,
            *h.stride()[:2], *shortcut.stride()[:2], len(added), *added.stride()[:2], width, eps,
            ADDS=x is not None, COMBINES=guidance is not None, W=triton.next_power_of_2(width),
        )  # fmt: skip
        return out

    def advance(self, x: Tensor, v: Tensor, dt: Tensor, held: Tensor, guidance: Tensor | None) -> None:
        """As in torch."""
        if not (x.is_contiguous() and v.is_contiguous()):
            super().advance(x, v, dt, held, guidance)
            return
        samples, frames, width = x.shape
        _advance[(samples * frames,)](
            x, v, dt, held, dt if guidance is None else guidance, frames, x.numel(), *held.stride()[:2], width,
            COMBINES=guidance is not None, W=triton.next_power_of_2(width), num_warps=1,
        )  # fmt: skip

    def _norms(self, h: Tensor, y: Tensor | None, gain: Tensor, offset: Tensor | None, copy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, slots, width = h.shape
        n = torch.empty(rows, slots, width, device=h.device, dtype=self.dtype)
        total = torch.empty(rows, slots, width, device=h.device, dtype=torch.float32) if y is not None else h
        added, copied = h if y is None else y, h if copy is None else copy
        _norm[(rows * slots,)](
            h, added, gain, gain if offset is None else offset, total, n, copied, slots, *h.stride()[:2], *added.shape[:2],
            *added.stride()[:2], *copied.stride()[:2], width, self.norm_eps, ADDS=y is not None, SHIFTS=offset is not None,
            COPIES=copy is not None, W=triton.next_power_of_2(width),
        )  # fmt: skip
        return total, n


def _gated(x: Tensor, out: Tensor | None, *, wave: bool) -> Tensor:
    width = x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], width, device=x.device, dtype=x.dtype) if out is None else out
    lines, into = x.contiguous().view(-1, 2 * width), out.view(-1, width)
    _gate[(len(lines), triton.cdiv(width, PAIRS))](lines, into, width, lines.stride(0), into.stride(0), WAVE=wave, PAIRS=PAIRS, num_warps=2)
    return out
