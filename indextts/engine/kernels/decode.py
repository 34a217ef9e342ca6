"""A decode step in few kernels: five a layer instead of some twenty, each reading its weights once and nothing else of size.

With one to a few dozen sequences the products of a step are bound by reading the weights, so what counts is that enough of them are on
their way at any time. Rows are padded to the 16 that a tensor core takes, which costs nothing. The kernels of a layer::

    residual sum, LayerNorm, product with c_attn, bias
    attention over the static cache with the beams' masks; the new keys and values go into the cache
    product with c_proj, in slices of the inner width            -> summed by the next kernel, in a fixed order
    residual sum, LayerNorm, product with c_fc, bias, GELU
    product with c_proj, in slices

Sums, norms, softmax and GELU are in float32, products in the weights' format; weights of 8 bits are scaled back on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from indextts.engine.static_cache import Bucket, StaticCache
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import Conv1D, GPT2Block


@dataclass(frozen=True)
class Tiling:
    """Outputs and inputs of a tile, slices of the inner width, warps, and tiles on their way; what is best is measured on the device."""

    columns: int = 32
    depth: int = 128
    slices: int = 2
    warps: int = 4
    stages: int = 4
    keys: int = 64


TILING = Tiling()


@triton.jit
def _summed(x, parts, rows, at, real, width, part_stride, SLICES: tl.constexpr):
    """Rows of the residual stream, with the slices of the last product added in order."""
    place = rows[:, None] * width + at[None, :]
    value = tl.load(x + place, mask=real, other=0.0)
    for s in tl.static_range(SLICES):
        value += tl.load(parts + s * part_stride + place, mask=real, other=0.0)
    return value


@triton.jit
def _normed(value, mean, norm, gain, shift, at, width):
    inside = at < width
    value = (value - mean[:, None]) * norm[:, None]
    return value * tl.load(gain + at, mask=inside, other=0.0)[None, :] + tl.load(shift + at, mask=inside, other=0.0)[None, :]


@triton.jit
def _norm_linear(
    x, parts, x_out, gain1, shift1, gain2, shift2, weight, scale, bias, out,
    count, outputs, part_stride, w_in, w_out, eps, width: tl.constexpr,
    SLICES: tl.constexpr, NORMS: tl.constexpr, GELU: tl.constexpr, SCALED: tl.constexpr, KEEPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    lane = tl.arange(0, DEPTH)
    live = rows < count
    total, squares = tl.zeros([ROWS], dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
    for first in range(0, width, DEPTH):
        at = first + lane
        real = live[:, None] & (at < width)[None, :]
        value = _summed(x, parts, rows, at, real, width, part_stride, SLICES)
        if KEEPS:
            tl.store(x_out + rows[:, None] * width + at[None, :], value, mask=real & (tl.program_id(0) == 0))
        total += tl.sum(value, axis=1)
    mean = total / width
    for first in range(0, width, DEPTH):
        at = first + lane
        real = live[:, None] & (at < width)[None, :]
        away = tl.where(real, _summed(x, parts, rows, at, real, width, part_stride, SLICES) - mean[:, None], 0.0)
        squares += tl.sum(away * away, axis=1)
    norm = tl.rsqrt(squares / width + eps)
    mean2, norm2 = mean, norm
    if NORMS == 2:
        total, squares = tl.zeros([ROWS], dtype=tl.float32), tl.zeros([ROWS], dtype=tl.float32)
        for first in range(0, width, DEPTH):
            at = first + lane
            real = live[:, None] & (at < width)[None, :]
            value = _summed(x, parts, rows, at, real, width, part_stride, SLICES)
            value = tl.where(real, _normed(value, mean, norm, gain1, shift1, at, width), 0.0)
            total += tl.sum(value, axis=1)
            squares += tl.sum(value * value, axis=1)
        mean2 = total / width
        norm2 = tl.rsqrt(tl.maximum(squares / width - mean2 * mean2, 0.0) + eps)
    sums = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first in range(0, width, DEPTH):
        at = first + lane
        inside = at < width
        real = live[:, None] & inside[None, :]
        w = tl.load(weight + at[:, None] * w_in + columns[None, :] * w_out, mask=inside[:, None] & (columns < outputs)[None, :], other=0.0)
        value = _normed(_summed(x, parts, rows, at, real, width, part_stride, SLICES), mean, norm, gain1, shift1, at, width)
        if NORMS == 2:
            value = _normed(value, mean2, norm2, gain2, shift2, at, width)
        value = tl.where(real, value, 0.0)
        sums = tl.dot(value.to(PRODUCT), w.to(PRODUCT), sums, input_precision="ieee")
    if SCALED:
        sums *= tl.load(scale + columns, mask=columns < outputs, other=0.0)[None, :]
    sums += tl.load(bias + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
    if GELU:
        inner = 0.7978845608028654 * (sums + 0.044715 * sums * sums * sums)
        sums = sums * tl.sigmoid(2.0 * inner)  # 0.5 (1 + tanh(u)) is sigmoid(2 u)
    if out.dtype.element_ty == tl.float16:
        sums = tl.minimum(tl.maximum(sums, -65504.0), 65504.0)
    place = out + rows[:, None] * outputs + columns[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), mask=live[:, None] & (columns < outputs)[None, :])


@triton.jit
def _linear_slices(
    h, weight, scale, bias, parts, count, outputs, part_stride, w_in, w_out, width: tl.constexpr, slice_width: tl.constexpr,
    SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(2)
    lane, live, wanted = tl.arange(0, DEPTH), rows < count, columns < outputs
    sums = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first in range(0, slice_width, DEPTH):
        at = part * slice_width + first + lane
        inside = at < width
        w = tl.load(weight + at[:, None] * w_in + columns[None, :] * w_out, mask=inside[:, None] & wanted[None, :], other=0.0)
        value = tl.load(h + rows[:, None] * width + at[None, :], mask=live[:, None] & inside[None, :], other=0.0)
        sums = tl.dot(value.to(PRODUCT), w.to(PRODUCT), sums, input_precision="ieee")
    if SCALED:
        sums *= tl.load(scale + columns, mask=wanted, other=0.0)[None, :]
    if part == 0:
        sums += tl.load(bias + columns, mask=wanted, other=0.0).to(tl.float32)[None, :]
    tl.store(parts + part * part_stride + rows[:, None] * outputs + columns[None, :], sums, mask=live[:, None] & wanted[None, :])


@triton.jit
def _attend(
    qkv, keys, values, visible, slots, out, beams, heads, kv_row, kv_head, factor, capacity: tl.constexpr,
    WIDTH: tl.constexpr, BEAMS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    beam, at = tl.arange(0, BEAMS), tl.arange(0, WIDTH)
    live = beam < beams
    stream = heads * WIDTH
    source = qkv + (row * beams + beam)[:, None] * (3 * stream) + head * WIDTH + at[None, :]
    q = tl.load(source, mask=live[:, None], other=0.0)
    key = tl.load(source + stream, mask=live[:, None], other=0.0)
    value = tl.load(source + 2 * stream, mask=live[:, None], other=0.0)
    slot = tl.load(slots + beam, mask=live, other=-1)
    own_keys = keys + row.to(tl.int64) * kv_row + head * kv_head
    own_values = values + row.to(tl.int64) * kv_row + head * kv_head
    tl.store(own_keys + slot[:, None] * WIDTH + at[None, :], key, mask=live[:, None])
    tl.store(own_values + slot[:, None] * WIDTH + at[None, :], value, mask=live[:, None])
    # A beam's newest key comes from registers; its place in the cache, which is being written, is passed over below.
    top = tl.sum(q.to(tl.float32) * key.to(tl.float32), axis=1) * factor
    weights = tl.full([BEAMS], 1.0, dtype=tl.float32)
    mixed = value.to(tl.float32)
    for first in range(0, capacity, KEYS):
        place = first + tl.arange(0, KEYS)
        inside = place < capacity
        seen = tl.load(visible + (row * beams + beam)[:, None] * capacity + place[None, :], mask=live[:, None] & inside[None, :], other=0)
        seen = (seen != 0) & (place[None, :] != slot[:, None])
        k = tl.load(own_keys + place[:, None] * WIDTH + at[None, :], mask=inside[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
        score = tl.where(seen, score, -float("inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        shrink = tl.exp(top - new_top)
        p = tl.exp(score - new_top[:, None])
        v = tl.load(own_values + place[:, None] * WIDTH + at[None, :], mask=inside[:, None], other=0.0)
        mixed = mixed * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        weights = weights * shrink + tl.sum(p, axis=1)
        top = new_top
    mixed = mixed / weights[:, None]
    target = out + (row * beams + beam)[:, None] * stream + head * WIDTH + at[None, :]
    tl.store(target, mixed.to(out.dtype.element_ty), mask=live[:, None])


class _Layers:
    """The kernels with their sizes, for ``count`` sequences."""

    def __init__(self, x: Tensor, dtype: torch.dtype, tiling: Tiling) -> None:
        self.dtype, self.tiling = dtype, tiling
        self.count, self.width = x.shape
        self.rows = min(64, max(16, triton.next_power_of_2(self.count)))
        self.blocks = triton.cdiv(self.count, self.rows)
        self.x = x
        self.parts = x  # of the product whose sum is still to be made; none at first
        self.slices = 0

    def norm_linear(self, norms: list[nn.LayerNorm], layer: Conv1D | nn.Linear, out: Tensor, *, gelu: bool = False) -> Tensor:
        """``out = act(layer(norm(x + parts)))``; the sum becomes the new ``x``."""
        outputs, t = out.shape[1], self.tiling
        first, second, keeps = norms[0], norms[-1], self.slices > 0
        total = torch.empty_like(self.x) if keeps else self.x
        weight, scale, strides = _stored(layer)
        _norm_linear[(triton.cdiv(outputs, t.columns), self.blocks)](
            self.x, self.parts, total, first.weight, first.bias, second.weight, second.bias, weight, scale, layer.bias, out,
            self.count, outputs, self.count * self.width, *strides, first.eps, self.width,
            SLICES=self.slices, NORMS=len(norms), GELU=gelu, SCALED=scale is not weight, KEEPS=keeps,
            ROWS=self.rows, COLUMNS=t.columns, DEPTH=min(t.depth, triton.next_power_of_2(self.width)), PRODUCT=_NAMES[self.dtype],
            num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip
        self.x, self.parts, self.slices = total, total, 0
        return out

    def linear(self, layer: Conv1D, h: Tensor) -> None:
        """``parts = layer(h)``, to be added to ``x`` by the next kernel."""
        t, inner = self.tiling, h.shape[1]
        depth = min(t.depth, triton.next_power_of_2(inner))
        slices = max(1, min(t.slices, inner // depth))
        share = triton.cdiv(triton.cdiv(inner, slices), depth) * depth
        slices = triton.cdiv(inner, share)
        parts = torch.empty(slices, self.count, self.width, device=h.device)
        weight, scale, strides = _stored(layer)
        _linear_slices[(triton.cdiv(self.width, t.columns), self.blocks, slices)](
            h, weight, scale, layer.bias, parts, self.count, self.width, self.count * self.width, *strides, inner, share,
            SCALED=scale is not weight, ROWS=self.rows, COLUMNS=t.columns, DEPTH=depth, PRODUCT=_NAMES[self.dtype],
            num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip
        self.parts, self.slices = parts, slices

    def attend(self, cache: StaticCache, bucket: Bucket, layer: int, qkv: Tensor) -> Tensor:
        """:meth:`StaticCache.attend` of products (B b, 3 D) to (B b, D)."""
        out = torch.empty(self.count, self.width, device=qkv.device, dtype=qkv.dtype)
        keys, values = bucket.kv[0, layer], bucket.kv[1, layer]
        _attend[(cache.rows * cache.heads,)](
            qkv, keys, values, bucket.visible, cache.slots, out, cache.beams, cache.heads, keys.stride(0), keys.stride(1),
            cache.head_width**-0.5, bucket.keys,
            WIDTH=cache.head_width, BEAMS=max(16, triton.next_power_of_2(cache.beams)), KEYS=self.tiling.keys, num_warps=4,
        )  # fmt: skip
        return out


_NAMES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def feed(gpt: UnifiedVoice, x: Tensor, cache: StaticCache, bucket: Bucket, tiling: Tiling = TILING) -> Tensor:
    """Run the stack on embeddings (B, b, D) of the newest codes, float32; logits (B, b, V) float32 of the next ones.

    ``bucket.visible`` must hold each beam's own new key already (:meth:`StaticCache.see`). Equals the torch lines of
    :func:`indextts.engine.decode.decode_step`.
    """
    dtype = bucket.kv.dtype
    layers = _Layers(x.flatten(0, 1).float().contiguous(), dtype, tiling)
    count, width = layers.count, layers.width
    qkv = torch.empty(count, 3 * width, device=x.device, dtype=dtype)
    hidden = torch.empty(count, 4 * width, device=x.device, dtype=dtype)
    for i, block in enumerate(gpt.gpt.h):
        assert isinstance(block, GPT2Block)
        layers.norm_linear([block.ln_1], block.attn.c_attn, qkv)
        layers.linear(block.attn.c_proj, layers.attend(cache, bucket, i, qkv))
        layers.norm_linear([block.ln_2], block.mlp.c_fc, hidden, gelu=True)
        layers.linear(block.mlp.c_proj, hidden)
    logits = torch.empty(count, gpt.config.number_mel_codes, device=x.device)
    layers.norm_linear([gpt.gpt.ln_f, gpt.final_norm], gpt.mel_head, logits)
    return logits.unflatten(0, (cache.rows, cache.beams))


def _stored(layer: Conv1D | nn.Linear) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """A layer's weight, its scales (the weight itself if it has none), and the strides of its inputs and outputs."""
    weight = layer.weight
    scale = getattr(layer, "scale", None)
    strides = (weight.stride(1), weight.stride(0)) if isinstance(layer, nn.Linear) else (weight.stride(0), weight.stride(1))
    return weight, weight if scale is None else scale, strides
