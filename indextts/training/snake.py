"""The vocoder's anti-aliased activation in training: one kernel forward and one backward, in Triton.

Forward is the engine's own kernel (:mod:`indextts.engine.kernels.snake`). Backward is its transpose: a lane holds a run of consecutive
input samples in registers, makes the doubled signal and its gradient again around them, and adds what reaches each sample. Checked against
autograd in Triton's interpreter; the bundled voice was trained with it on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from indextts.engine.kernels.snake import _activation, even_taps, sample, window
from indextts.models.bigvgan import Activation

RUN = 8  # samples of a lane
LANES = 64
_REACH = 3  # samples that the resamplers repeat beyond each end


@triton.jit
def _arriving(gradient, at, frames, valid):
    """The gradient of output ``at``, zero beyond the ends."""
    return tl.load(gradient + at, mask=valid & (at >= 0) & (at < frames), other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["channels", "tiles", "frames", "reached"])
def _backward(
    x, gradient, before, after, alpha, inverse_beta, taps, gx, ga, gb, channels, tiles, frames, reached,
    RUN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    channel, tile = lane // tiles, lane % tiles
    valid = channel < channels
    row = batch * channels + channel.to(tl.int64)
    a = tl.load(alpha + channel, mask=valid, other=0.0)
    b = tl.load(inverse_beta + channel, mask=valid, other=0.0)
    head = tl.load(before + row, mask=valid, other=0.0)
    tail = tl.load(after + row, mask=valid, other=0.0)
    source, arriving = x + row * frames, gradient + row * frames
    first = tile * RUN - 3  # the first input sample of the run, counted as if the repeated ends were samples
    step = tl.arange(0, RUN)
    z = tl.zeros([LANES, RUN], dtype=tl.float32)
    sum_a = tl.zeros([LANES], dtype=tl.float32)
    sum_b = tl.zeros([LANES], dtype=tl.float32)
    last = frames - 1
    w0, w1, w2, w3, w4, w5, w6 = window(source, tl.minimum(tl.maximum(first - 4, 0), last), 1, last, valid)
    t0, t2, t4, t6, t8, t10 = even_taps(taps)
    t1, t3, t5, t7, t9, t11 = even_taps(taps + 1)
    v1, v2 = _arriving(arriving, first - 6, frames, valid), _arriving(arriving, first - 5, frames, valid)
    v3, v4 = _arriving(arriving, first - 4, frames, valid), _arriving(arriving, first - 3, frames, valid)
    v5, v6 = _arriving(arriving, first - 2, frames, valid), _arriving(arriving, first - 1, frames, valid)
    for i in range(RUN + 6):
        at = first + (i - 3)
        real = valid & (at >= 0) & (at <= last)
        moves = (at > 0) & (at <= last)
        w0, w1, w2 = tl.where(moves, w1, w0), tl.where(moves, w2, w1), tl.where(moves, w3, w2)
        w3, w4, w5 = tl.where(moves, w4, w3), tl.where(moves, w5, w4), tl.where(moves, w6, w5)
        w6 = tl.where(moves, sample(source, at + 3, 1, last, valid), w6)
        v0, v1, v2, v3, v4, v5, v6 = v1, v2, v3, v4, v5, v6, _arriving(arriving, at + 3, frames, valid)
        even = 2.0 * (t1 * w5 + t3 * w4 + t5 * w3 + t7 * w2 + t9 * w1 + t11 * w0)
        odd = 2.0 * (t0 * w6 + t2 * w5 + t4 * w4 + t6 * w3 + t8 * w2 + t10 * w1)
        # What reaches both samples from the outputs, and from the ends that are repeated.
        g_even = t1 * v5 + t3 * v4 + t5 * v3 + t7 * v2 + t9 * v1 + t11 * v0 + tl.where(at == 0, head, 0.0)
        g_odd = t0 * v6 + t2 * v5 + t4 * v4 + t6 * v3 + t8 * v2 + t10 * v1 + tl.where(at == last, tail, 0.0)
        g_even, g_odd = tl.where(real, g_even, 0.0), tl.where(real, g_odd, 0.0)
        wave_even, wave_odd = tl.sin(2.0 * a * even), tl.sin(2.0 * a * odd)
        own = (i >= 3) & (i < RUN + 3)  # each doubled sample is counted by one lane
        sine_even, sine_odd = tl.sin(a * even), tl.sin(a * odd)
        sum_a += tl.where(own, b * (g_even * even * wave_even + g_odd * odd * wave_odd), 0.0)
        sum_b += tl.where(own, g_even * sine_even * sine_even + g_odd * sine_odd * sine_odd, 0.0)
        g_even = 2.0 * g_even * (1.0 + a * b * wave_even)
        g_odd = 2.0 * g_odd * (1.0 + a * b * wave_odd)
        # Input sample p reaches even sample q with tap 2 (q - p) + 5 and odd sample q with tap 2 (q - p) + 6.
        tap = 2 * ((i - 3) - step) + 5
        z += g_even[:, None] * tl.load(taps + tap, mask=(tap >= 0) & (tap < 12), other=0.0)[None, :]
        z += g_odd[:, None] * tl.load(taps + tap + 1, mask=(tap >= -1) & (tap < 11), other=0.0)[None, :]
    place = first[:, None] + 3 + step[None, :]
    tl.store(gx + row[:, None] * reached + place, z, mask=valid[:, None] & (place < reached))
    tl.store(ga + row * tiles + tile, sum_a, mask=valid)
    tl.store(gb + row * tiles + tile, sum_b, mask=valid)


class _Snake(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, alpha: Tensor, inverse_beta: Tensor, taps: Tensor) -> Tensor:
        x = x.contiguous()
        context.save_for_backward(x, alpha, inverse_beta, taps)
        batch, channels, frames = x.shape
        out = torch.empty_like(x)
        tiles = triton.cdiv(frames, RUN)
        _activation[(triton.cdiv(channels * tiles, LANES), batch)](
            x, out, alpha, inverse_beta, taps, x, channels, tiles, frames, *x.stride(), *out.stride(),
            HAS_LENGTHS=False, CHANNELS_INSIDE=False, RUN=RUN, LANES=LANES, num_warps=2,
        )  # fmt: skip
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, alpha, inverse_beta, taps = context.saved_tensors
        gradient = gradients[0].contiguous()
        batch, channels, frames = x.shape
        # The activated signal's ends are repeated: what the repetitions pass on arrives at the ends.
        weights = torch.stack([taps[:5].sum(), taps[:3].sum(), taps[0]])
        before = gradient[..., :3].float() @ weights
        after = gradient[..., -3:].float() @ torch.stack([taps[11], taps[9:].sum(), taps[7:].sum()])
        reached = frames + 2 * _REACH
        tiles = triton.cdiv(reached, RUN)
        gx = torch.empty(batch, channels, reached, device=x.device)
        ga, gb = (torch.empty(batch, channels, tiles, device=x.device) for _ in range(2))
        _backward[(triton.cdiv(channels * tiles, LANES), batch)](
            x, gradient, before, after, alpha, inverse_beta, taps, gx, ga, gb, channels, tiles, frames, reached,
            RUN=RUN, LANES=LANES, num_warps=2,
        )  # fmt: skip
        inner = gx[..., _REACH:-_REACH]
        inner[..., 0] += gx[..., :_REACH].sum(-1)
        inner[..., -1] += gx[..., -_REACH:].sum(-1)
        return inner.to(x.dtype), ga.sum((0, 2)), gb.sum((0, 2)), None


def activate(x: Tensor, activation: Activation) -> Tensor:
    """``activation(x)`` of ``x`` (B, C, T), at least three samples long, with gradients for ``x`` and both parameters."""
    if x.shape[-1] < _REACH:
        raise ValueError(f"the activation needs at least {_REACH} samples, got {x.shape[-1]}")
    snake = activation.act
    out: Tensor = _Snake.apply(x, snake.alpha.float().exp(), 1.0 / (snake.beta.float().exp() + 1e-9), activation.taps)
    return out
