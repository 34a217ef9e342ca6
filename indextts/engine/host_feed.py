"""A decode step's stack on the CPU, where a step of a small model is made of a thousand calls more than of arithmetic.

The same as :func:`indextts.engine.decode.feed` in a quarter of the calls: on the host the next slot is a number, so keys and values are
stored by one copy and only those that exist are attended to, without a mask where all are seen; and what each layer multiplies with is
looked up once, since asking modules for it takes an eighth of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.decode import feed
from indextts.engine.static_cache import Bucket, StaticCache
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import Conv1D, GPT2Block, LayerNorm

Map = Callable[[Tensor], Tensor]


class HostFeed:
    """A :data:`~indextts.engine.decode.Feed` for one model, in float32 on the CPU; other formats go the way of all devices.

    It holds on to the weights of the first step: make a new one when a layer gets others than are written into them.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[Map, ...]] = []

    def __call__(self, gpt: UnifiedVoice, x: Tensor, cache: StaticCache, bucket: Bucket) -> Tensor:
        """Logits (B, b, V) of embeddings (B, b, D) of the newest codes."""
        if x.device.type != "cpu" or bucket.kv.dtype != torch.float32 or x.dtype != torch.float32:
            return feed(gpt, x, cache, bucket)
        blocks = self._blocks = self._blocks or [_maps(block) for block in gpt.gpt.h]
        rows, beams, width = x.shape
        slot = int(cache.slots[0])
        end = slot + beams
        seen = bucket.visible[:, :, :end]
        bias = None if bool(seen.all()) else torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]
        keys, values = bucket.kv[..., :end, :].unbind()
        places = bucket.kv[..., slot:end, :].unbind(1)
        x = x.reshape(rows * beams, width)
        for (norm_1, qkv_map, mix, norm_2, widen, narrow), key, value, place in zip(blocks, keys, values, places, strict=True):
            qkv = qkv_map(norm_1(x)).view(rows, beams, 3, cache.heads, cache.head_width).permute(2, 0, 3, 1, 4)
            place.copy_(qkv[1:])
            mixed = F.scaled_dot_product_attention(qkv[0], key, value, attn_mask=bias)
            x = mix(mixed.transpose(1, 2).reshape(rows * beams, width)).add_(x)
            x = narrow(F.gelu(widen(norm_2(x)), approximate="tanh")).add_(x)
        return gpt.logits(gpt.gpt.ln_f(x.view(rows, beams, width)))


def _maps(block: object) -> tuple[Map, ...]:
    """What a block does around its attention and between the products, in order."""
    assert isinstance(block, GPT2Block)
    attention, mlp = block.attn, block.mlp
    return (
        _norm(block.ln_1),
        _product(attention.c_attn),
        _product(attention.c_proj),
        _norm(block.ln_2),
        _product(mlp.c_fc),
        _product(mlp.c_proj),
    )


def _norm(norm: LayerNorm) -> Map:
    weight, bias = norm.weight.detach(), norm.bias.detach()
    return functools.partial(torch.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)


def _product(layer: Conv1D) -> Map:
    if layer.weight.dtype != torch.float32:  # of 8 bits
        return layer
    return functools.partial(torch.addmm, layer.bias.detach(), mat2=layer.weight.detach())
