"""BigVGAN's anti-aliased activation in one pass: upsample by 2, SnakeBeta, downsample by 2 (arXiv 2206.04658).

The separate form writes and reads the signal some 38 times, most of it at twice the rate. Here a lane holds a run of consecutive output
samples in registers: the doubled signal is made sample by sample and added to the outputs that its filter reaches, and memory sees one read
and one write. Everything is computed in float32, whatever the format in memory, and the ends are those of the definition: the last input
sample is repeated before the upsampling and the last *activated* sample before the downsampling.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from indextts.models.bigvgan import Activation

RUN = 8  # outputs of a lane: more share more of the doubled signal, and hold more registers
LANES = 64


@triton.jit
def sample(source, at, stride, last, valid):
    """Input sample ``at``, beyond the ends the one at the end, for every lane."""
    place = tl.minimum(tl.maximum(at, 0), last)
    return tl.load(source + place * stride, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def window(source, at, stride, last, valid):
    """Input samples ``at - 3`` to ``at + 3``: what a pair of doubled samples is made of."""
    w0, w1 = sample(source, at - 3, stride, last, valid), sample(source, at - 2, stride, last, valid)
    w2, w3 = sample(source, at - 1, stride, last, valid), sample(source, at, stride, last, valid)
    w4, w5 = sample(source, at + 1, stride, last, valid), sample(source, at + 2, stride, last, valid)
    return w0, w1, w2, w3, w4, w5, sample(source, at + 3, stride, last, valid)


@triton.jit
def even_taps(taps):
    """Filter taps 0, 2, 4, 6, 8, 10."""
    return tl.load(taps), tl.load(taps + 2), tl.load(taps + 4), tl.load(taps + 6), tl.load(taps + 8), tl.load(taps + 10)


@triton.jit
def _snake(y, alpha, inverse_beta):
    wave = tl.sin(alpha * y)
    return y + inverse_beta * (wave * wave)


@triton.jit(do_not_specialize=["channels", "tiles", "frames", "x_batch", "x_channel", "out_batch", "out_channel"])
def _activation(
    x, out, alpha, inverse_beta, taps, lengths, channels, tiles, frames,
    x_batch, x_channel, x_time, out_batch, out_channel, out_time,
    HAS_LENGTHS: tl.constexpr, CHANNELS_INSIDE: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    if CHANNELS_INSIDE:  # neighbouring lanes read neighbouring memory
        channel, tile = lane % channels, lane // channels
    else:
        channel, tile = lane // tiles, lane % tiles
    valid = (channel < channels) & (tile < tiles)
    length = frames
    if HAS_LENGTHS:
        length = tl.load(lengths + batch).to(tl.int32)
    a = tl.load(alpha + channel, mask=valid, other=0.0)
    b = tl.load(inverse_beta + channel, mask=valid, other=0.0)
    source = x + batch * x_batch + channel.to(tl.int64) * x_channel
    first, last = tile * RUN, length - 1
    step = tl.arange(0, RUN)
    # The window slides, and stands still beyond the ends.
    w0, w1, w2, w3, w4, w5, w6 = window(source, tl.minimum(tl.maximum(first - 4, 0), last), x_time, last, valid)
    t0, t2, t4, t6, t8, t10 = even_taps(taps)
    t1, t3, t5, t7, t9, t11 = even_taps(taps + 1)
    z = tl.zeros([LANES, RUN], dtype=tl.float32)
    for i in range(RUN + 6):  # unrolled it would take ten seconds to compile
        at = first + (i - 3)
        moves = (at > 0) & (at <= last)
        w0, w1, w2 = tl.where(moves, w1, w0), tl.where(moves, w2, w1), tl.where(moves, w3, w2)
        w3, w4, w5 = tl.where(moves, w4, w3), tl.where(moves, w5, w4), tl.where(moves, w6, w5)
        w6 = tl.where(moves, sample(source, at + 3, x_time, last, valid), w6)
        even = _snake(2.0 * (t1 * w5 + t3 * w4 + t5 * w3 + t7 * w2 + t9 * w1 + t11 * w0), a, b)
        odd = _snake(2.0 * (t0 * w6 + t2 * w5 + t4 * w4 + t6 * w3 + t8 * w2 + t10 * w1), a, b)
        even, odd = tl.where(at > last, odd, even), tl.where(at < 0, even, odd)
        # Output ``step`` takes even sample q with tap 2 (q - step) + 5 and odd sample q with tap 2 (q - step) + 6.
        tap = 2 * ((i - 3) - step) + 5
        z += even[:, None] * tl.load(taps + tap, mask=(tap >= 0) & (tap < 12), other=0.0)[None, :]
        z += odd[:, None] * tl.load(taps + tap + 1, mask=(tap >= -1) & (tap < 11), other=0.0)[None, :]
    time = first[:, None] + step[None, :]
    z = tl.where(time < length, z, 0.0)
    place = out + batch * out_batch + channel.to(tl.int64)[:, None] * out_channel + time * out_time
    tl.store(place, z.to(out.dtype.element_ty), mask=valid[:, None] & (time < frames))


def activate(x: Tensor, activation: Activation, lengths: Tensor | None, dtype: torch.dtype) -> Tensor:
    """:func:`indextts.engine.vocoder.activate`, in one kernel; the result lies in memory as ``x`` does."""
    batch, channels, frames = x.shape
    out = torch.empty_like(x, dtype=dtype)
    alpha, inverse_beta = constants(activation)
    tiles = triton.cdiv(frames, RUN)
    grid = (triton.cdiv(channels * tiles, LANES), batch)
    _activation[grid](
        x,
        out,
        alpha,
        inverse_beta,
        activation.taps,
        x if lengths is None else lengths,
        channels,
        tiles,
        frames,
        *x.stride(),
        *out.stride(),
        HAS_LENGTHS=lengths is not None,
        CHANNELS_INSIDE=x.stride(1) == 1 and channels > 1,
        RUN=RUN,
        LANES=LANES,
        num_warps=2,
    )
    return out


def constants(activation: Activation) -> tuple[Tensor, Tensor]:
    """``e^alpha`` and ``1 / (e^beta + 1e-9)``, each (C,), computed once per activation and kept with it."""
    kept = activation.__dict__.get("_fused_constants")
    snake = activation.act
    if kept is None or kept[0].device != snake.alpha.device:
        kept = snake.alpha.detach().float().exp(), 1.0 / (snake.beta.detach().float().exp() + 1e-9)
        activation.__dict__["_fused_constants"] = kept
    found: tuple[Tensor, Tensor] = kept
    return found
