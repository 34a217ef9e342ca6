"""Lower bounds: what a stage must cost on this device, from the sizes of the networks and two measured rates.

A decode step reads every weight once, so its floor is bytes over memory bandwidth; the mel solver and the vocoder are bound by
arithmetic, so theirs is operations over the rate of a large matrix product. Launches, host work and activations are not in it
(roofline model, Williams et al. 2009).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from indextts.engine.solver_weights import blocks_of
from indextts.models.bigvgan import BigVGAN

if TYPE_CHECKING:
    from indextts.engine.stages import Stages
    from indextts.models.gpt import UnifiedVoice
    from indextts.models.s2mel import S2Mel


@dataclass(frozen=True)
class Rates:
    """Measured on the device: bytes a second of a large copy (read and written), operations a second of a large matrix product."""

    bytes_per_s: float
    flop_per_s: float

    def to_dict(self) -> dict[str, float]:
        """JSON-safe."""
        return asdict(self)


@dataclass(frozen=True)
class Floors:
    """Seconds that each stage of a call cannot beat, and the bytes that all its decode steps read."""

    gpt_s: float
    s2mel_s: float
    bigvgan_s: float
    decode_bytes: float

    def to_dict(self) -> dict[str, float]:
        """JSON-safe."""
        return asdict(self)


def measure_rates(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Rates:
    """Best of ``repeats`` copies and products on ``device``; a fraction of a second."""
    on_gpu = device.type == "cuda"
    numbers, side = (2**28, 8192) if on_gpu else (2**23, 768)
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    left = torch.zeros(side, side, device=device, dtype=dtype)
    copying = _fastest(lambda: target.copy_(source), device, repeats)
    product = _fastest(lambda: left @ left, device, repeats)
    return Rates(2 * source.numel() * source.element_size() / copying, 2 * side**3 / product)


def floors(
    stages: Stages,
    rates: Rates,
    *,
    codes: int,
    prefix: int,
    prompt_frames: int,
    mel_frames: int,
    beams: int,
    steps: int,
    segments: int = 1,
    together: int = 1,
) -> Floors:
    """Floors of ``segments`` segments, of which ``together`` are decoded at a time, sharing the reading of weights.

    Of each segment: ``prefix`` positions before the codes, ``prompt_frames`` of mel before ``mel_frames`` of target.
    """
    width = torch.finfo(stages.dtype or torch.float32).bits // 8
    decoded = codes * segments / together * decode_step_bytes(stages.gpt, width, together * (prefix + beams * codes / 2))
    return Floors(
        decoded / rates.bytes_per_s,
        segments * steps * solver_flop(stages.s2mel, prompt_frames, mel_frames) / rates.flop_per_s,
        segments * vocoder_flop(stages.vocoder, mel_frames) / rates.flop_per_s,
        decoded,
    )


def decode_step_bytes(gpt: UnifiedVoice, width: int, keys: float) -> float:
    """Bytes one decode step reads: all weights of the stack and of the code head, and the cache of ``keys`` positions."""
    weights = sum(p.numel() for p in gpt.gpt.parameters()) + sum(p.numel() for p in gpt.mel_head.parameters())
    return width * (weights + 2 * gpt.config.layers * gpt.config.model_dim * keys)


def solver_flop(s2mel: S2Mel, prompt: int, target: int, branches: int = 2) -> float:
    """Operations of one evaluation with every exact saving: the last block's tail and the head on target frames only."""
    dit = s2mel.cfm.estimator
    everywhere = target_only = 0
    layers = blocks_of(dit)
    for layer in layers:
        everywhere += _weights(layer.attention) + _weights(layer.feed_forward)
        if hasattr(layer, "skip_in_linear"):
            everywhere += _weights(layer.skip_in_linear)
    tail = _weights(layers[-1].attention.wqkv) // 3 + _weights(layers[-1].attention.wo) + _weights(layers[-1].feed_forward)
    everywhere, target_only = everywhere - tail, target_only + tail  # queries and what follows the last attention
    for part in (dit.skip_linear, dit.conv1, dit.wavenet.in_layers, dit.wavenet.res_skip_layers):
        target_only += _weights(part)
    frames, halo = prompt + target, len(dit.wavenet.in_layers) * dit.wavenet.left
    dim, depth = dit.conv1.in_features, len(layers)
    products = everywhere * frames + target_only * (target + halo)
    attention_flop = 2 * dim * frames * (frames * (depth - 1) + target)
    return float(2 * branches * (products + attention_flop))


def vocoder_flop(vocoder: nn.Module, frames: int) -> float:
    """Operations of BigVGAN's convolutions for ``frames`` mel frames; 0 for another vocoder, whose bound is not known."""
    if not isinstance(vocoder, BigVGAN):
        return 0.0
    total, rate = _weights(vocoder.conv_pre), 1
    for i, up in enumerate(vocoder.ups):
        total += _weights(up) * rate
        rate *= vocoder.rates[i]
        total += _weights(vocoder.resblocks[i * vocoder.blocks_per_stage : (i + 1) * vocoder.blocks_per_stage]) * rate
    return 2.0 * frames * (total + _weights(vocoder.conv_post) * rate)


def _weights(module: nn.Module) -> int:
    """Multiply-adds per frame: the sizes of all matrices and kernels in it."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def _fastest(work: Any, device: torch.device, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats + 1):  # the first one allocates
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
