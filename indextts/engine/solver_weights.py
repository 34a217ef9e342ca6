"""Weights of the velocity estimator in the form that the fast solver multiplies with, and the list of what that form saves.

Nothing here changes what is computed: maps that follow each other without an activation are multiplied together once, in float64, and
weights that meet the same input are stacked. Matrices are stored in the solver's format; what enters or leaves the float32 state
(first and last map, norms, tables) stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from indextts.models.dit import Block, DiT
from indextts.models.wavenet import NamedConv1d


def _saving(what: str) -> Any:
    return field(default=True, metadata={"what": what})


@dataclass(frozen=True)
class Savings:
    """What the fast solver may leave out; each is exact up to rounding, and can be switched off to see what it is worth."""

    time_tables: bool = _saving(
        "time embeddings, adaptive norms, modulation and WaveNet conditions once per step count, not per evaluation"
    )
    static_inputs: bool = _saving("what prompt, style and conditions add to the first hidden state once per utterance, not per evaluation")
    trim_last_block: bool = _saving("after the last attention, only generated frames and the few before them that the WaveNet sees")
    linear_guidance: bool = _saving("branches combined before the last linear map, which then runs once instead of twice")
    composed_maps: bool = _saving("linear maps in a row as one: long skip, WaveNet input and shortcut; modulation, linear and output")
    folded_offsets: bool = _saving("offsets of adaptive norms carried through the next product and added as its bias")
    fused_feed_forward: bool = _saving("both inner products of a feed-forward as one; slower on CPUs, so off there")
    convolution_as_product: bool = _saving("WaveNet convolutions as matrix products over gathered frames; slower on CPUs, so off there")
    one_skip_product: bool = _saving("the WaveNet's sum of skips as one product over all gates")
    packed_attention: bool = _saving(
        "FlashAttention on padded batches and buckets too, in 16 bits on CUDA: padding as sequences, not a mask"
    )

    @classmethod
    def best(cls, device: torch.device) -> Savings:
        """All that pay on ``device``."""
        return cls(fused_feed_forward=device.type != "cpu", convolution_as_product=device.type != "cpu")

    @classmethod
    def only(cls, *names: str) -> Savings:
        """The named ones switched on, all others off. Errors: ``TypeError`` for a name that does not exist."""
        return cls(**{**dict.fromkeys(cls.names(), False), **dict.fromkeys(names, True)})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All switches, in the order above."""
        return tuple(each.name for each in fields(cls))

    @classmethod
    def descriptions(cls) -> dict[str, str]:
        """What each switch saves, in a line."""
        return {each.name: each.metadata["what"] for each in fields(cls)}


@dataclass(frozen=True)
class BlockWeights:
    """One transformer block: (out, in) matrices."""

    skip: tuple[Tensor, Tensor] | None
    wqkv: Tensor
    wo: Tensor
    w13: Tensor
    w2: Tensor


class SolverWeights:
    """All weights of one evaluation, on ``device``; matrices in ``dtype``. Shares storage with the model where nothing changes."""

    def __init__(self, dit: DiT, device: torch.device, dtype: torch.dtype, savings: Savings) -> None:
        def matrix(weight: Tensor) -> Tensor:
            return weight.detach().to(device, dtype)

        def exact(weight: Tensor) -> Tensor:
            return weight.detach().to(device, torch.float32)

        mel, dim = dit.conv2.out_channels, dit.conv1.in_features
        self.blocks = [_block(layer, matrix) for layer in blocks_of(dit)]
        merge = dit.cond_x_merge_linear
        self.merge_rest, self.merge_bias = exact(merge.weight[:, mel:]).contiguous(), exact(merge.bias)
        self.cond = exact(dit.cond_projection.weight), exact(dit.cond_projection.bias)

        # Long skip, then the WaveNet's input above its shortcut.
        skip = dit.skip_linear
        after = torch.cat([dit.conv1.weight, dit.res_projection.weight]), torch.cat([dit.conv1.bias, dit.res_projection.bias])
        self.skip = matrix(skip.weight), matrix(skip.bias)
        self.after_skip = matrix(after[0]), matrix(after[1])
        head, head_bias = compose(after, (skip.weight, skip.bias))
        self.head_h = matrix(head[:, :dim]).contiguous()
        # What the state adds to the first hidden state, above what it adds to input and shortcut of the WaveNet.
        self.from_x = torch.cat([exact(merge.weight[:, :mel]), exact(head[:, dim:])])
        self.from_x_bias = torch.cat([torch.zeros(dim, device=device), exact(head_bias)])
        self.merge_x = self.from_x[:dim]

        final = dit.final_layer.linear
        out_weight, out_bias = dit.conv2.parameters()
        self.final, self.out = (exact(final.weight), exact(final.bias)), (exact(out_weight[..., 0]), exact(out_bias))
        composed = compose((out_weight[..., 0], out_bias), (final.weight, final.bias))
        self.final_out = exact(composed[0]), exact(composed[1])

        kernels = [convolution(layer)[0] for layer in dit.wavenet.in_layers]
        if savings.convolution_as_product:  # (out, in, kernel) to (out, kernel * in): one row per gathered stretch of frames
            kernels = [kernel.transpose(1, 2).flatten(1) for kernel in kernels]
        self.wavenet_in = [matrix(kernel) for kernel in kernels]
        res_skip = [convolution(layer) for layer in dit.wavenet.res_skip_layers]
        self.res_skip = [(matrix(weight[..., 0]), matrix(bias)) for weight, bias in res_skip]
        hidden = dit.wavenet.hidden_dim
        self.skips = matrix(torch.cat([weight[-hidden:, :, 0] for weight, _ in res_skip], dim=1))
        self.skips_bias = matrix(torch.stack([bias[-hidden:] for _, bias in res_skip]).sum(0))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor held here."""
        stack: list[object] = [vars(self)]
        while stack:
            item = stack.pop()
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, BlockWeights):
                stack.append(vars(item))
            elif isinstance(item, dict):
                stack.extend(item.values())
            elif isinstance(item, (list, tuple)):
                stack.extend(item)


def compose(outer: tuple[Tensor, Tensor], inner: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``outer(inner(x))`` for two linear maps, computed in float64 on the CPU."""
    (w2, b2), (w1, b1) = ([t.detach().to("cpu", torch.float64) for t in pair] for pair in (outer, inner))
    return w2 @ w1, w2 @ b1 + b2


def _block(layer: Block, matrix: Callable[[Tensor], Tensor]) -> BlockWeights:
    skip = getattr(layer, "skip_in_linear", None)
    feed_forward = layer.feed_forward
    return BlockWeights(
        skip=None if skip is None else (matrix(skip.weight), matrix(skip.bias)),
        wqkv=matrix(layer.attention.wqkv.weight),
        wo=matrix(layer.attention.wo.weight),
        w13=matrix(torch.cat([feed_forward.w1.weight, feed_forward.w3.weight])),
        w2=matrix(feed_forward.w2.weight),
    )


def blocks_of(dit: DiT) -> list[Block]:
    """The transformer's blocks."""
    return [layer for layer in dit.transformer.layers if isinstance(layer, Block)]


def convolution(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in, kernel) and bias of one of the WaveNet's layers."""
    assert isinstance(layer, NamedConv1d)
    weight, bias = layer.conv["conv"].parameters()
    return weight, bias
