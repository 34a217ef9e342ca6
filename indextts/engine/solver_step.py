"""One Euler step of the flow-matching solver, in place on static buffers: the fast counterpart of ``DiT.forward``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.solver_inputs import StepInputs
from indextts.engine.solver_ops import SolverOps
from indextts.engine.solver_times import TimeRow, TimeTables
from indextts.engine.solver_weights import BlockWeights, Savings, SolverWeights, blocks_of
from indextts.models.dit import DiT


class SolverStep:
    """Prepared weights and the arithmetic of one step; products in ``dtype``, norms, residual streams and state in float32.

    ``ops``: the class of what lies between the products.
    """

    def __init__(self, dit: DiT, device: torch.device, dtype: torch.dtype, savings: Savings, ops: type[SolverOps] = SolverOps) -> None:
        self.dtype, self.savings = dtype, savings
        self.weights = SolverWeights(dit, device, dtype, savings)
        self.times = TimeTables(dit, self.weights, device, dtype, savings)
        wavenet = dit.wavenet
        self.mel, self.content = dit.conv2.out_channels, dit.cond_projection.in_features
        self.heads = blocks_of(dit)[0].attention.heads
        self.left, self.right, self.halo = wavenet.left, wavenet.right, len(wavenet.in_layers) * wavenet.left
        self.ops, self.final_eps = ops(dtype, dit.transformer.norm.norm.eps), dit.final_layer.norm_final.eps

    def __call__(self, step: StepInputs) -> None:
        """Advance ``step.x`` by one Euler step."""
        time = self.times.row(step.row)
        v = self.velocity(step, time)
        self.ops.advance(step.x, v, time.dt, step.held, step.guidance if len(v) > len(step.x) else None)

    def merge(self, ingredients: Tensor) -> Tensor:
        """What prompt, conditions and style (R, S, mel + content + style) add to the first hidden state, (R, S, C)."""
        prompt, mu, style = ingredients.split([self.mel, self.content, ingredients.shape[-1] - self.mel - self.content], dim=-1)
        w = self.weights
        return F.linear(torch.cat([prompt, F.linear(mu, *w.cond), style], dim=-1), w.merge_rest, w.merge_bias)

    def velocity(self, step: StepInputs, time: TimeRow) -> Tensor:
        """Velocity of the window's frames, float32: guided (B, W, mel), or that of each branch (R, W, mel), to be combined."""
        window = step.x.shape[1]
        skips: list[Tensor] = []  # room for what long skips join, the second half of it filled
        h = step.static if self.savings.static_inputs else self.merge(step.static)
        from_x, both_x = self._of_state(step.x, h.shape[-1])
        added: Tensor | None = None  # what the last block adds to h, for the next norm to do along with its own work
        depth, channels = len(self.weights.blocks), h.shape[-1]
        for i, block in enumerate(self.weights.blocks):
            if block.skip is not None:
                assert added is not None
                joined = skips.pop()
                self.ops.add_into(h, added, joined[..., :channels])
                h, added = self._product(joined, *block.skip), None
            gain, offset, copy = time.gain[2 * i], None if self.savings.folded_offsets else time.offset[2 * i], None
            if 0 < i <= depth // 2:
                skips.append(h.new_empty(*h.shape[:2], 2 * channels, dtype=self.dtype))
                copy = skips[-1][..., channels:]
            if i == 0:
                h, n = self.ops.enter(h, from_x, gain, offset)
            elif added is None:
                n = self.ops.norm(h, gain, offset)
            else:
                h, n = self.ops.add_norm(h, added, gain, offset, copy)
            h, added = self._block(i, block, h, n, step, time, window if i == depth - 1 else h.shape[1])
        assert added is not None
        h, n = self.ops.add_norm(h, added, time.gain[-1], time.offset[-1])
        z, shortcut = self._head(n, step.x).chunk(2, dim=-1)
        z_x, shortcut_x = (None, None) if both_x is None else both_x.chunk(2, dim=-1)
        early = self.savings.linear_guidance and len(h) > len(step.x)
        skipped = self._wavenet(z, z_x, step.taps, time)
        return self._output(self.ops.last_norm(skipped, shortcut, shortcut_x, step.guidance if early else None, self.final_eps), time)

    def _block(
        self, i: int, block: BlockWeights, h: Tensor, n: Tensor, step: StepInputs, time: TimeRow, queries: int
    ) -> tuple[Tensor, Tensor]:
        """Transformer block ``i`` on ``h`` (R, S, C) and its norm: the last ``queries`` slots, and what is to be added to them."""
        second = None if self.savings.folded_offsets else time.offset[2 * i + 1]
        qkv = self._product(n, block.wqkv, time.attention_bias[i] if time.attention_bias is not None else None)
        y = self.ops.attention(qkv.unflatten(-1, (3, self.heads, -1)), step.rotation, queries, step.mask, step.spans)
        h, n = self.ops.add_norm(h[:, -queries:], self._product(y.flatten(2), block.wo), time.gain[2 * i + 1], second)
        bias = time.feed_forward_bias[i] if time.feed_forward_bias is not None else None
        if self.savings.fused_feed_forward:
            return h, self._product(self.ops.silu_gate(self._product(n, block.w13, bias)), block.w2)
        biases = (None, None) if bias is None else bias.chunk(2)
        gate, up = (self._product(n, w, b) for w, b in zip(block.w13.chunk(2), biases, strict=True))
        if n.device.type == "cpu":
            return h, self._product(F.silu(gate, inplace=True).mul_(up), block.w2)
        return h, self._product(self.ops.silu_gate(torch.cat([gate, up], dim=-1)), block.w2)

    def _of_state(self, x: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """What the state adds to the first hidden state, (B, W, C), and what is to be added to :meth:`_head` in every branch."""
        if not self.savings.composed_maps:
            return F.linear(x, self.weights.merge_x), None
        both = F.linear(x, self.weights.from_x, self.weights.from_x_bias)
        return both[..., :channels], both[..., channels:]

    def _head(self, n: Tensor, x: Tensor) -> Tensor:
        """Input of the WaveNet and the shortcut around it side by side, (R, W, 2 C)."""
        w = self.weights
        if self.savings.composed_maps:
            return self._product(n, w.head_h)
        repeated = torch.cat([x] * (n.shape[0] // x.shape[0]))
        return self._product(self._product(torch.cat([n, repeated], dim=-1), *w.skip), *w.after_skip)

    def _wavenet(self, z: Tensor, added: Tensor | None, taps: Tensor, time: TimeRow) -> Tensor:
        """Sum of the skips (R, W, C) for ``z`` (R, W, C) with what is still to be added to it."""
        w, (rows, frames, channels) = self.weights, z.shape
        last = len(w.wavenet_in) - 1
        gates = z.new_empty(rows, frames, (last + 1) * channels, dtype=self.dtype) if self.savings.one_skip_product else None
        skips: list[Tensor] = []
        for i, (weight, bias, (mix, mix_bias)) in enumerate(zip(w.wavenet_in, time.wavenet, w.res_skip, strict=True)):
            z, read = self.ops.take(z, added, taps)
            if self.savings.convolution_as_product:
                a = self._product(read.view(rows, frames, -1), weight, bias)
            elif read.device.type == "cpu":  # as a picture, which may have the channels innermost
                picture = read.view(rows, 1, -1, channels).permute(0, 3, 1, 2)
                a = F.conv2d(picture, weight[:, :, None], bias)[:, :, 0].transpose(1, 2)
            else:
                a = F.conv1d(read.view(rows, -1, channels).transpose(1, 2), weight, bias).transpose(1, 2)
            if gates is None:
                r = self._product(self.ops.wave_gate(a), mix, mix_bias)
                skips.append(r[..., -channels:])
                added = r[..., :channels]
                continue
            gated = self.ops.wave_gate(a, gates[..., i * channels : (i + 1) * channels])
            if i < last:  # as one matrix, of which a library takes a part as it is
                added = self._product(gated.flatten(0, 1), mix[:channels], mix_bias[:channels]).unflatten(0, (rows, frames))
        return sum(skips[1:], skips[0].float()) if gates is None else self._product(gates, w.skips, w.skips_bias)

    def _output(self, n: Tensor, time: TimeRow) -> Tensor:
        """Modulation of the last norm's result and map to the mel's velocity."""
        if time.out_weight is not None:
            return F.linear(n, time.out_weight, time.out_bias)
        assert time.scale is not None
        assert time.shift is not None
        return F.linear(F.linear(n * time.scale + time.shift, *self.weights.final), *self.weights.out)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A linear map in the solver's format."""
        return F.linear(x.to(self.dtype), weight, bias)
