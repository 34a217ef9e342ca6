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
def _doubled(x, at, valid, stride, length, taps, odd: tl.constexpr):
    """Sample ``2 at + odd`` of the upsampled signal, for every lane."""
    y = tl.zeros_like(at).to(tl.float32)
    for k in tl.static_range(6):
        place = tl.minimum(tl.maximum(at + odd + 2 - k, 0), length - 1)
        tap = tl.load(taps + (2 * k if odd else 2 * k + 1))
        y += tap * tl.load(x + place * stride, mask=valid, other=0.0).to(tl.float32)
    return 2.0 * y


@triton.jit
def _snake(y, alpha, inverse_beta):
    wave = tl.sin(alpha * y)
    return y + inverse_beta * (wave * wave)


@triton.jit
def _activation(
    x,
    out,
    alpha,
    inverse_beta,
    taps,
    lengths,
    channels,
    tiles,
    frames,
    x_batch,
    x_channel,
    x_time,
    out_batch,
    out_channel,
    out_time,
    HAS_LENGTHS: tl.constexpr,
    CHANNELS_INSIDE: tl.constexpr,
    RUN: tl.constexpr,
    LANES: tl.constexpr,
):
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
    first = tile * RUN
    step = tl.arange(0, RUN)
    z = tl.zeros([LANES, RUN], dtype=tl.float32)
    for i in tl.static_range(RUN + 6):
        at = first + (i - 3)  # this pair of doubled samples, beyond the ends the one at the end
        inside = tl.minimum(tl.maximum(at, 0), length - 1)
        even = _snake(_doubled(source, inside, valid, x_time, length, taps, 0), a, b)
        odd = _snake(_doubled(source, inside, valid, x_time, length, taps, 1), a, b)
        even, odd = tl.where(at >= length, odd, even), tl.where(at < 0, even, odd)
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
