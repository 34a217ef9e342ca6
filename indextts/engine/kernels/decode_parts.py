"""The kernels of a decode step; :mod:`indextts.engine.kernels.decode` says which comes when.

Sums, norms, softmax and GELU are in float32, products in the weights' format; weights of 8 bits are scaled back on the way in. Rows are
padded to the 16 that a tensor core takes, which costs nothing where reading the weights is what takes the time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LOWEST = tl.constexpr(-1e30)  # of a softmax that has seen nothing yet: minus infinity less itself would not be a number


@triton.jit
def _follow(OVERLAP: tl.constexpr):
    """Wait for what the kernel before wrote, which must not be read earlier, and let the programs of the next one come in."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _fetch(weight, first, end, columns, wanted, w_in, w_out, ALONG: tl.constexpr, DEPTH: tl.constexpr, OVERLAP: tl.constexpr):
    """Send for a program's weights, into the L2 cache, while the kernel before is at work. ``ALONG``: an output's are neighbours."""
    if OVERLAP:
        for start in range(first, end, 64 if ALONG else DEPTH):
            if ALONG:
                places = tl.where(wanted, weight + columns * w_out + start, weight)
            else:
                at = start + tl.arange(0, DEPTH)
                places = tl.where(at < end, weight + at * w_in + tl.min(columns, axis=0) * w_out, weight)
            tl.inline_asm_elementwise("prefetch.global.L2 [$1]; // $0", "=r,l", [places], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _summed(x, parts, place, real, part_stride, SLICES: tl.constexpr):
    """The residual stream, with the slices of the last product added in order."""
    value = tl.load(x + place, mask=real, other=0.0)
    for s in tl.static_range(SLICES):
        value += tl.load(parts + s * part_stride + place, mask=real, other=0.0)
    return value


@triton.jit
def _merged(mean, squares, seen, value, real, count):
    """Mean and summed squared distances from it, of ``seen`` values and ``count`` more a row (Chan, Golub and LeVeque 1983)."""
    more = tl.sum(value, axis=1) / count
    away = tl.where(real, value - more[:, None], 0.0)
    step, total = more - mean, seen + count
    return mean + step * (count / total), squares + tl.sum(away * away, axis=1) + step * step * (seen * count / total)


@triton.jit
def _normed(value, mean, norm, gain, shift, at, width):
    inside = at < width
    value = (value - mean[:, None]) * norm[:, None]
    return value * tl.load(gain + at, mask=inside, other=0.0)[None, :] + tl.load(shift + at, mask=inside, other=0.0)[None, :]


@triton.jit
def _finish(sums, scale, bias, columns, wanted, biased, SCALED: tl.constexpr, GELU: tl.constexpr):
    if SCALED:
        sums *= tl.load(scale + columns, mask=wanted, other=0.0)[None, :]
    sums += tl.load(bias + columns, mask=biased, other=0.0).to(tl.float32)[None, :]
    if GELU:
        inner = 0.7978845608028654 * (sums + 0.044715 * sums * sums * sums)
        sums = sums * tl.sigmoid(2.0 * inner)  # 0.5 (1 + tanh(u)) is sigmoid(2 u)
    return sums


@triton.jit
def _fitted(value, kind: tl.constexpr):
    """In a format: what float16 cannot hold stays at the end of its range."""
    if kind == tl.float16:
        value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    return value.to(kind)


@triton.jit
def sum_norm(
    x, parts, x_out, gain1, shift1, gain2, shift2, out, part_stride, eps, width: tl.constexpr,
    SLICES: tl.constexpr, NORMS: tl.constexpr, W: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row a program: residual sum, and one or two LayerNorms of it."""
    _follow(OVERLAP)
    at = tl.arange(0, W)
    real = (at < width)[None, :]
    place = tl.program_id(0) * width + at[None, :]
    value = _summed(x, parts, place, real, part_stride, SLICES)
    if SLICES:
        tl.store(x_out + place, value, mask=real)
    zero = tl.zeros([1], dtype=tl.float32)
    mean, squares = _merged(zero, zero, 0.0, value, real, width)
    value = _normed(value, mean, tl.rsqrt(squares / width + eps), gain1, shift1, at, width)
    if NORMS == 2:
        mean, squares = _merged(zero, zero, 0.0, tl.where(real, value, 0.0), real, width)
        value = _normed(value, mean, tl.rsqrt(squares / width + eps), gain2, shift2, at, width)
    tl.store(out + place, _fitted(value, out.dtype.element_ty), mask=real)


@triton.jit
def norm_product(
    x, parts, x_out, gain1, shift1, gain2, shift2, weight, scale, bias, out,
    count, outputs, part_stride, w_in, w_out, eps, width: tl.constexpr,
    SLICES: tl.constexpr, NORMS: tl.constexpr, GELU: tl.constexpr, SCALED: tl.constexpr, ALONG: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Residual sum, one or two LayerNorms and a product: every program makes the norms again, so this is for few rows."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    lane, live, wanted = tl.arange(0, DEPTH), rows < count, columns < outputs
    _fetch(weight, 0, width, columns, wanted, w_in, w_out, ALONG, DEPTH, OVERLAP)
    _follow(OVERLAP)
    mean, squares = tl.zeros([ROWS], dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
    for first in range(0, width, DEPTH):
        real = live[:, None] & (first + lane < width)[None, :]
        place = rows[:, None] * width + (first + lane)[None, :]
        value = _summed(x, parts, place, real, part_stride, SLICES)
        if SLICES:
            tl.store(x_out + place, value, mask=real & (tl.program_id(0) == 0))
        mean, squares = _merged(mean, squares, first * 1.0, value, real, tl.minimum(width - first, DEPTH) * 1.0)
    norm = tl.rsqrt(squares / width + eps)
    mean2, norm2 = mean, norm
    if NORMS == 2:
        mean2, squares = tl.zeros([ROWS], dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
        for first in range(0, width, DEPTH):
            real = live[:, None] & (first + lane < width)[None, :]
            value = _summed(x, parts, rows[:, None] * width + (first + lane)[None, :], real, part_stride, SLICES)
            value = tl.where(real, _normed(value, mean, norm, gain1, shift1, first + lane, width), 0.0)
            mean2, squares = _merged(mean2, squares, first * 1.0, value, real, tl.minimum(width - first, DEPTH) * 1.0)
        norm2 = tl.rsqrt(squares / width + eps)
    sums = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first in range(0, width, DEPTH):
        at = first + lane
        inside = at < width
        real = live[:, None] & inside[None, :]
        w = tl.load(weight + at[:, None] * w_in + columns[None, :] * w_out, mask=inside[:, None] & wanted[None, :], other=0.0)
        value = _summed(x, parts, rows[:, None] * width + at[None, :], real, part_stride, SLICES)
        value = _normed(value, mean, norm, gain1, shift1, at, width)
        if NORMS == 2:
            value = _normed(value, mean2, norm2, gain2, shift2, at, width)
        value = tl.where(real, value, 0.0)
        sums = tl.dot(value.to(PRODUCT), w.to(PRODUCT), sums, input_precision="ieee")
    sums = _finish(sums, scale, bias, columns, wanted, wanted, SCALED, GELU)
    place = out + rows[:, None] * outputs + columns[None, :]
    tl.store(place, _fitted(sums, out.dtype.element_ty), mask=live[:, None] & wanted[None, :])


@triton.jit
def product(
    h, tops, masses, weight, scale, bias, out, count, outputs, part_stride, w_in, w_out, width: tl.constexpr, slice_width: tl.constexpr,
    SPLITS: tl.constexpr, GELU: tl.constexpr, SCALED: tl.constexpr, ALONG: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """A product, or one of several slices of its inner width. With ``SPLITS`` the input is attention in parts, and a tile is a head."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(2)
    lane, live, wanted = tl.arange(0, DEPTH), rows < count, columns < outputs
    here = part * slice_width
    _fetch(weight, here, tl.minimum(here + slice_width, width), columns, wanted, w_in, w_out, ALONG, DEPTH, OVERLAP)
    _follow(OVERLAP)
    sums = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first in range(0, slice_width, DEPTH):
        at = here + first + lane
        inside = at < width
        real = live[:, None] & inside[None, :]
        w = tl.load(weight + at[:, None] * w_in + columns[None, :] * w_out, mask=inside[:, None] & wanted[None, :], other=0.0)
        if SPLITS:
            heads: tl.constexpr = width // DEPTH
            head = (here + first) // DEPTH
            known = live & (head < heads)
            top, mass = tl.full([ROWS], LOWEST, dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
            value = tl.zeros([ROWS, DEPTH], dtype=tl.float32)
            for s in tl.static_range(SPLITS):
                its_top = tl.load(tops + (s * count + rows) * heads + head, mask=known, other=LOWEST)
                higher = tl.maximum(top, its_top)
                old, new = tl.exp(top - higher), tl.exp(its_top - higher)
                mass = mass * old + tl.load(masses + (s * count + rows) * heads + head, mask=known, other=1.0) * new
                piece = tl.load(h + (s * count + rows)[:, None] * width + at[None, :], mask=real, other=0.0)
                value = value * old[:, None] + piece * new[:, None]
                top = higher
            value = value / mass[:, None]
        else:
            value = tl.load(h + rows[:, None] * width + at[None, :], mask=real, other=0.0)
        sums = tl.dot(value.to(PRODUCT), w.to(PRODUCT), sums, input_precision="ieee")
    sums = _finish(sums, scale, bias, columns, wanted, wanted & (part == 0), SCALED, GELU)
    place = out + part * part_stride + rows[:, None] * outputs + columns[None, :]
    tl.store(place, _fitted(sums, out.dtype.element_ty), mask=live[:, None] & wanted[None, :])


@triton.jit
def attend(
    qkv, keys, values, visible, slots, out, tops, masses, count, beams, heads, kv_row, kv_head, factor,
    capacity: tl.constexpr, span: tl.constexpr, WIDTH: tl.constexpr, BEAMS: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """All beams of a row and one head over ``span`` places of the cache; the first span also stores the new keys and values.

    With several spans ``out`` takes sums of values that ``masses`` has yet to divide, relative to the scores in ``tops``.
    """
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    split = tl.program_id(1)
    beam, at = tl.arange(0, BEAMS), tl.arange(0, WIDTH)
    live = beam < beams
    _follow(OVERLAP)
    stream = heads * WIDTH
    source = qkv + (row * beams + beam)[:, None] * (3 * stream) + head * WIDTH + at[None, :]
    q = tl.load(source, mask=live[:, None], other=0.0)
    slot = tl.load(slots + beam, mask=live, other=-1)
    own_keys = keys + row.to(tl.int64) * kv_row + head * kv_head
    own_values = values + row.to(tl.int64) * kv_row + head * kv_head
    # A beam's newest key comes from registers; its place in the cache, which is being written, is passed over below.
    key = tl.load(source + stream, mask=live[:, None], other=0.0)
    value = tl.load(source + 2 * stream, mask=live[:, None], other=0.0)
    tl.store(own_keys + slot[:, None] * WIDTH + at[None, :], key, mask=live[:, None] & (split == 0))
    tl.store(own_values + slot[:, None] * WIDTH + at[None, :], value, mask=live[:, None] & (split == 0))
    top = tl.where(split == 0, tl.sum(q.to(tl.float32) * key.to(tl.float32), axis=1) * factor, LOWEST)
    mass = tl.where(split == 0, 1.0, 0.0) + tl.zeros([BEAMS], dtype=tl.float32)
    mixed = tl.where(split == 0, value.to(tl.float32), 0.0)
    for first in range(0, span, KEYS):
        place = split * span + first + tl.arange(0, KEYS)
        inside = place < capacity
        seen = tl.load(visible + (row * beams + beam)[:, None] * capacity + place[None, :], mask=live[:, None] & inside[None, :], other=0)
        seen = (seen != 0) & (place[None, :] != slot[:, None])
        k = tl.load(own_keys + place[:, None] * WIDTH + at[None, :], mask=inside[:, None], other=0.0)
        score = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * factor, -float("inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        shrink = tl.exp(top - higher)
        p = tl.exp(score - higher[:, None])
        v = tl.load(own_values + place[:, None] * WIDTH + at[None, :], mask=inside[:, None], other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        mass = mass * shrink + tl.sum(p, axis=1)
        top = higher
    sequence = split * count + row * beams + beam
    if SPLITS > 1:
        tl.store(tops + sequence * heads + head, top, mask=live)
        tl.store(masses + sequence * heads + head, mass, mask=live)
    else:
        mixed = mixed / mass[:, None]
    tl.store(out + sequence[:, None] * stream + head * WIDTH + at[None, :], mixed.to(out.dtype.element_ty), mask=live[:, None])
