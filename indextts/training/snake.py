"""The vocoder's anti-aliased activation in training: one kernel forward and one backward, in Triton.

Forward is the engine's own kernel (:mod:`indextts.engine.kernels.snake`). Backward is its transpose: a lane holds a run of consecutive
input samples in registers, makes the doubled signal and its gradient again around them, and adds what reaches each sample. Checked against
autograd in Triton's interpreter; untried on a GPU in this form.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from indextts.engine.kernels.snake import _activation, _doubled
from indextts.models.bigvgan import Activation

RUN = 8  # samples of a lane
LANES = 64
_REACH = 3  # samples that the resamplers repeat beyond each end


@triton.jit
def _half_gradient(gradient, at, valid, length, taps, odd: tl.constexpr):
    """What reaches sample ``2 at + odd`` of the activated signal from the outputs, the repeated ends left aside."""
    total = tl.zeros_like(at).to(tl.float32)
    for k in tl.static_range(6):
        place = at + (k - 2 if odd else k - 3)
        tap = tl.load(taps + (10 - 2 * k if odd else 11 - 2 * k))
        total += tap * tl.load(gradient + place, mask=valid & (place >= 0) & (place < length), other=0.0).to(tl.float32)
    return total


@triton.jit
def _backward(
    x,
    gradient,
    before,
    after,
    alpha,
    inverse_beta,
    taps,
    gx,
    ga,
    gb,
    channels,
    tiles,
    frames,
    reached,
    RUN: tl.constexpr,
    LANES: tl.constexpr,
):
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
    for i in tl.static_range(RUN + 6):
        at = first + (i - 3)
        real = valid & (at >= 0) & (at < frames)
        inside = tl.minimum(tl.maximum(at, 0), frames - 1)
        even = _doubled(source, inside, valid, 1, frames, taps, 0)
        odd = _doubled(source, inside, valid, 1, frames, taps, 1)
        g_even = _half_gradient(arriving, at, real, frames, taps, 0) + tl.where(at == 0, head, 0.0)
        g_odd = _half_gradient(arriving, at, real, frames, taps, 1) + tl.where(at == frames - 1, tail, 0.0)
        g_even, g_odd = tl.where(real, g_even, 0.0), tl.where(real, g_odd, 0.0)
        wave_even, wave_odd = tl.sin(2.0 * a * even), tl.sin(2.0 * a * odd)
        if i >= 3 and i < RUN + 3:  # each doubled sample is counted by one lane
            sum_a += b * (g_even * even * wave_even + g_odd * odd * wave_odd)
            sine_even, sine_odd = tl.sin(a * even), tl.sin(a * odd)
            sum_b += g_even * sine_even * sine_even + g_odd * sine_odd * sine_odd
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
