"""A decode step's stack on the CPU, where a step of a small model is made of a thousand calls more than of arithmetic.

The same as :func:`indextts.engine.decode.feed` in a third of the calls: on the host the next slot is a number, so keys and values are
stored by one copy and only those that exist are attended to, without a mask where all are seen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.decode import feed
from indextts.engine.static_cache import Bucket, StaticCache
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import Conv1D, GPT2Block


def feed_on_host(gpt: UnifiedVoice, x: Tensor, cache: StaticCache, bucket: Bucket) -> Tensor:
    """Logits (B, b, V) of embeddings (B, b, D); float32 weights on the CPU, others go through :func:`indextts.engine.decode.feed`."""
    if x.device.type != "cpu" or bucket.kv.dtype != torch.float32 or x.dtype != torch.float32:
        return feed(gpt, x, cache, bucket)
    rows, beams, _ = x.shape
    slot = int(cache.slots[0])
    end = slot + beams
    seen = bucket.visible[:, :, :end]
    bias = None if bool(seen.all()) else torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]
    for layer, block in enumerate(gpt.gpt.h):
        assert isinstance(block, GPT2Block)
        qkv = _linear(block.attn.c_attn, block.ln_1(x)).view(rows, beams, 3, cache.heads, cache.head_width).permute(2, 0, 3, 1, 4)
        stored = bucket.kv[:, layer, :, :, :end]
        stored[:, :, :, slot:] = qkv[1:]
        mixed = F.scaled_dot_product_attention(qkv[0], stored[0], stored[1], attn_mask=bias)
        x = x + _linear(block.attn.c_proj, mixed.transpose(1, 2).reshape(rows, beams, -1))
        x = x + _linear(block.mlp.c_proj, F.gelu(_linear(block.mlp.c_fc, block.ln_2(x)), approximate="tanh"))
    return gpt.logits(gpt.gpt.ln_f(x))


def _linear(layer: Conv1D, x: Tensor) -> Tensor:
    if layer.weight.dtype != torch.float32:  # of 8 bits
        y: Tensor = layer(x)
        return y
    return F.linear(x, layer.weight.t(), layer.bias)
