"""A decode step in few kernels: five or seven a layer instead of some twenty, each reading its weights once and nothing else of size.

With one to a few dozen sequences the products of a step are bound by reading the weights, so what counts is that enough of them are on
their way at any time. The kernels of a layer::

    residual sum, LayerNorm                                      (a kernel of its own for more than a few sequences, else part of the next)
    product with c_attn, bias
    attention over the static cache with the beams' masks; the new keys and values go into the cache
    product with c_proj, in slices of the inner width            -> summed by the next kernel, in a fixed order
    residual sum, LayerNorm                                      (likewise)
    product with c_fc, bias, GELU
    product with c_proj, in slices

With few sequences the cache is split among several programs a head, whose parts c_proj's kernel puts together.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from indextts.engine.kernels.decode_parts import attend, norm_product, product, sum_norm
from indextts.engine.static_cache import Bucket, StaticCache
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import Conv1D, GPT2Block

FEWEST_KEYS = 128  # places of the cache that are worth a program


@dataclass(frozen=True)
class Tiling:
    """How the work is cut; what is best is measured on the device.

    ``columns`` and ``depth``: outputs and inputs of a product's tile; ``slices`` of the inner width where the next kernel sums them;
    ``warps`` of a program; ``stages``: tiles on their way, at most, as shared memory allows; ``keys`` of an attention tile; ``splits`` of
    the cache a head (None: enough to fill the device); ``fused``: most sequences whose norms are made within the products. ``overlap``:
    a kernel's programs come in, and send for their weights, while the kernel before is at work (programmatic dependent launch, from
    sm_90 on; untried, so off).
    """

    columns: int = 32
    depth: int = 128
    slices: int = 2
    warps: int = 4
    stages: int = 4
    keys: int = 64
    splits: int | None = None
    fused: int = 4
    overlap: bool = False


TILING = Tiling()
_NAMES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@functools.cache
def _device_limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory that a program may have."""
    if device.type != "cuda":
        return 1, 1 << 30
    facts = torch.cuda.get_device_properties(device)
    return facts.multi_processor_count, int(getattr(facts, "shared_memory_per_block_optin", facts.shared_memory_per_block))


def fitting_stages(wanted: int, tile: int, rest: int, whole: bool, limit: int) -> int:
    """Most stages of a pipeline, up to ``wanted``, whose shared memory leaves room for two programs a multiprocessor, else for one.

    ``tile``: bytes that a stage loads; ``rest``: bytes outside the pipeline; ``whole``: the tile in use counts as a stage too, as it does
    where the tensor core reads shared memory (64 rows).
    """
    for share in (limit // 2, limit):
        for stages in range(wanted, 1, -1):
            if (stages if whole else stages - 1) * tile + rest <= 0.95 * share:
                return stages
    return 1


class _Layers:
    """The kernels with their sizes, for ``count`` sequences."""

    def __init__(self, x: Tensor, dtype: torch.dtype, tiling: Tiling) -> None:
        self.dtype, self.tiling = dtype, tiling
        self.count, self.width = x.shape
        self.rows = min(64, max(16, triton.next_power_of_2(self.count)))
        self.blocks = triton.cdiv(self.count, self.rows)
        self.processors, self.shared = _device_limits(x.device)
        self.x = x
        self.parts = x  # of the product whose sum is still to be made; none at first
        self.slices = 0

    def norm_linear(self, norms: list[nn.LayerNorm], layer: Conv1D | nn.Linear, out: Tensor, *, gelu: bool = False) -> Tensor:
        """``out = act(layer(norm(x + parts)))``; the sum becomes the new ``x``."""
        t, width, stride = self.tiling, self.width, self.count * self.width
        first, second = norms[0], norms[-1]
        total = torch.empty_like(self.x) if self.slices else self.x
        given = (self.x, self.parts, total, first.weight, first.bias, second.weight, second.bias)
        if self.count > t.fused:
            normed = torch.empty(self.count, width, device=self.x.device, dtype=self.dtype)
            sum_norm[(self.count,)](
                *given, normed, stride, first.eps, width, SLICES=self.slices, NORMS=len(norms), W=triton.next_power_of_2(width),
                OVERLAP=t.overlap, launch_pdl=t.overlap,
            )  # fmt: skip
            self._product(normed, layer, out, gelu=gelu)
        else:
            weight, scale, strides = _stored(layer)
            depth = min(t.depth, triton.next_power_of_2(width))
            tile = depth * (4 * self.rows * (self.slices + 1) + t.columns * weight.element_size())
            norm_product[(triton.cdiv(out.shape[1], t.columns), self.blocks)](
                *given, weight, scale, layer.bias, out, self.count, out.shape[1], stride, *strides, first.eps, width,
                SLICES=self.slices, NORMS=len(norms), GELU=gelu, SCALED=scale is not weight, ALONG=strides[0] == 1, OVERLAP=t.overlap,
                ROWS=self.rows, COLUMNS=t.columns, DEPTH=depth, PRODUCT=_NAMES[self.dtype],
                num_warps=t.warps, num_stages=self._stages(tile, depth), launch_pdl=t.overlap,
            )  # fmt: skip
        self.x, self.parts, self.slices = total, total, 0
        return out

    def linear(self, layer: Conv1D, h: Tensor, tops: Tensor | None = None, masses: Tensor | None = None, head_width: int = 0) -> None:
        """``parts = layer(h)``, to be added to ``x`` by the next kernel. With ``tops`` and ``masses``, ``h`` is attention in parts."""
        inner = h.shape[-1]
        depth = head_width if tops is not None else min(self.tiling.depth, triton.next_power_of_2(inner))
        slices = max(1, min(self.tiling.slices, inner // depth))
        share = triton.cdiv(triton.cdiv(inner, slices), depth) * depth
        parts = torch.empty(triton.cdiv(inner, share), self.count, self.width, device=h.device)
        self._product(h, layer, parts, depth=depth, share=share, tops=tops, masses=masses)
        self.parts, self.slices = parts, len(parts)

    def _product(
        self,
        h: Tensor,
        layer: Conv1D | nn.Linear,
        out: Tensor,
        *,
        gelu: bool = False,
        depth: int | None = None,
        share: int | None = None,
        tops: Tensor | None = None,
        masses: Tensor | None = None,
    ) -> None:
        t, inner, outputs = self.tiling, h.shape[-1], out.shape[-1]
        depth = depth or min(t.depth, triton.next_power_of_2(inner))
        weight, scale, strides = _stored(layer)
        splits = 0 if tops is None else len(tops)
        tile = depth * (self.rows * h.element_size() * max(1, splits) + t.columns * weight.element_size())
        product[(triton.cdiv(outputs, t.columns), self.blocks, len(out) if out.ndim == 3 else 1)](
            h, h if tops is None else tops, h if masses is None else masses, weight, scale, layer.bias, out, self.count, outputs,
            self.count * outputs, *strides, inner, share or triton.cdiv(inner, depth) * depth,
            SPLITS=splits, GELU=gelu, SCALED=scale is not weight, ALONG=strides[0] == 1, OVERLAP=t.overlap,
            ROWS=self.rows, COLUMNS=t.columns, DEPTH=depth, PRODUCT=_NAMES[self.dtype],
            num_warps=t.warps, num_stages=self._stages(tile, depth), launch_pdl=t.overlap,
        )  # fmt: skip

    def _stages(self, tile: int, depth: int) -> int:
        return fitting_stages(self.tiling.stages, tile, self.rows * depth * self.dtype.itemsize, self.rows >= 64, self.shared)

    def attend(self, cache: StaticCache, bucket: Bucket, layer: int, qkv: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """:meth:`StaticCache.attend` of products (B b, 3 D): (B b, D), or, split, sums (S, B b, D) and tops and masses (S, B b, H)."""
        t, heads, programs = self.tiling, cache.heads, cache.rows * cache.heads
        splits = t.splits or max(1, min(self.processors // programs, bucket.keys // FEWEST_KEYS))
        span = triton.cdiv(triton.cdiv(bucket.keys, splits), t.keys) * t.keys
        splits = triton.cdiv(bucket.keys, span)
        tops = masses = None
        if splits > 1:
            out = torch.empty(splits, self.count, self.width, device=qkv.device)
            tops, masses = torch.empty(2, splits, self.count, heads, device=qkv.device)
        else:
            out = torch.empty(self.count, self.width, device=qkv.device, dtype=qkv.dtype)
        keys, values = bucket.kv[0, layer], bucket.kv[1, layer]
        attend[(programs, splits)](
            qkv, keys, values, bucket.visible, cache.slots, out, out if tops is None else tops, out if masses is None else masses,
            self.count, cache.beams, heads, keys.stride(0), keys.stride(1), cache.head_width**-0.5, bucket.keys, span,
            WIDTH=cache.head_width, BEAMS=max(16, triton.next_power_of_2(cache.beams)), KEYS=t.keys, SPLITS=splits, num_warps=4,
            OVERLAP=t.overlap, launch_pdl=t.overlap,
        )  # fmt: skip
        return out, tops, masses


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
        layers.linear(block.attn.c_proj, *layers.attend(cache, bucket, i, qkv), head_width=cache.head_width)
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
