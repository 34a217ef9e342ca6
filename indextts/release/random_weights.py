"""Random weights for every network: each tensor is drawn from its own name, so a file and a module in memory agree.

Scales are those of fresh layers (standard deviation ``1 / sqrt(3 fan_in)``), biases and gains vary a little, so that no
parameter is without effect and every activation stays finite.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from indextts.models.bigvgan import BigVGAN, lowpass_taps
from indextts.models.campplus import CAMPPlus
from indextts.models.conformer import sinusoid
from indextts.models.gpt import UnifiedVoice
from indextts.models.s2mel import S2Mel
from indextts.models.semantic_codec import SemanticCodec
from indextts.models.semantic_encoder import SemanticEncoder
from indextts.models.weights import State, build, load_weights
from indextts.release.sizes import SystemSizes

M = TypeVar("M", bound=nn.Module)
Shapes = Mapping[str, Tensor]  # tensors on the meta device: shapes and types without memory

_ROPE_POSITIONS = 16384  # length of the table that the release's file stores; computed here, never read
_SINUSOIDS = 128


def skeletons(sizes: SystemSizes) -> dict[str, nn.Module]:
    """Every network without memory for its parameters, by the name of its file."""
    config = sizes.config
    return {
        "gpt": build(lambda: UnifiedVoice(config.gpt)),
        "s2mel": build(lambda: S2Mel(config.s2mel, config.gpt_latent_dim)),
        "w2v_bert": build(lambda: SemanticEncoder(sizes.w2v_bert_config(), config.semantic_encoder.hidden_state)),
        "semantic_codec": build(lambda: SemanticCodec(config.semantic_codec)),
        "campplus": build(lambda: CAMPPlus(config.campplus)),
        "bigvgan": build(lambda: BigVGAN(sizes.bigvgan)),
    }


def fill(module: M, name: str, seed: int) -> M:
    """Give a network without memory its random weights, on the CPU."""
    load_weights(module, random_state(module.state_dict(), name, seed), source=f"random weights of {name}")
    return module


def random_state(shapes: Shapes, name: str, seed: int) -> State:
    """Values for the tensors ``shapes``: the same for the same ``name`` (of the network), key and ``seed``."""
    with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
        values = pool.map(lambda item: _draw(name, item[0], item[1], seed), shapes.items())
        return dict(zip(shapes, values, strict=True))


def random_matrices(sizes: SystemSizes, seed: int) -> tuple[Tensor, Tensor]:
    """Speaker matrix (rows, style width) and emotion matrix (rows, model_dim)."""
    rows = sum(sizes.config.emo_num)
    shapes = {
        "speaker": torch.empty(rows, sizes.config.s2mel.style_encoder.dim, device="meta"),
        "emotion": torch.empty(rows, sizes.config.gpt.model_dim, device="meta"),
    }
    state = random_state(shapes, "emotion", seed)
    scale = math.sqrt(shapes["emotion"].shape[1])  # rows as long as the emotion encoder's vectors
    return state["speaker"] * scale, state["emotion"] * scale


def _draw(name: str, key: str, like: Tensor, seed: int) -> Tensor:
    if key.endswith("pos_enc.pe"):
        return sinusoid(like.shape[1], like.shape[2])
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    value = torch.empty(like.shape)
    value.normal_(generator=torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}/{key}".encode())))
    leaf = key.rsplit(".", 1)[-1]
    if leaf in ("running_var", "var"):
        return value.abs_().mul_(0.1).add_(1.0)
    if leaf in ("running_mean", "mean", "bias", "alpha", "beta"):
        return value.mul_(0.05)
    if value.dim() <= 1:
        return value.mul_(0.1).add_(1.0)
    inputs = value.shape[0] if key.startswith("gpt.h.") else math.prod(value.shape[1:])  # GPT-2 stores (in, out)
    return value.mul_(1 / math.sqrt(3 * inputs))


# ------------------------------------------------------------------------- what a published file holds beyond the network


def unused_shapes(name: str, module: nn.Module, sizes: SystemSizes) -> dict[str, Tensor]:
    """Entries of the release's file of network ``name`` that no computation needs, on the meta device."""
    with torch.device("meta"):
        if name == "s2mel":
            return _unused_s2mel(sizes)
        if name == "semantic_codec":
            return {
                f"decoder.{key.removeprefix('encoder.')}": value for key, value in module.state_dict().items() if key.startswith("encoder.")
            }
        if name == "w2v_bert":
            return _unused_w2v_bert(module, sizes)
    return {}


def constants(name: str, module: nn.Module) -> State:
    """Entries of the release's file that are computed, not learned."""
    if name == "bigvgan":
        taps = lowpass_taps().cpu().reshape(1, 1, -1)
        activations = [key.removesuffix(".act.alpha") for key in module.state_dict() if key.endswith(".act.alpha")]
        return {f"{key}.{part}": taps.clone() for key in activations for part in ("upsample.filter", "downsample.lowpass.filter")}
    if name == "s2mel":
        rates = torch.exp(-math.log(10000.0) * torch.arange(_SINUSOIDS) / _SINUSOIDS)
        estimator = "cfm.estimator"
        return {
            f"{estimator}.input_pos": torch.arange(_ROPE_POSITIONS),
            f"{estimator}.t_embedder.freqs": rates,
            f"{estimator}.t_embedder2.freqs": rates.clone(),
        }
    return {}


def _unused_s2mel(sizes: SystemSizes) -> dict[str, Tensor]:
    dit, regulator = sizes.config.s2mel.DiT, sizes.config.s2mel.length_regulator
    width = dit.hidden_dim
    shapes = {
        "cfm.estimator.x_embedder.bias": torch.empty(width),
        "cfm.estimator.x_embedder.weight_g": torch.empty(width, 1),
        "cfm.estimator.x_embedder.weight_v": torch.empty(width, dit.in_channels),
        "cfm.estimator.cond_embedder.weight": torch.empty(dit.content_codebook_size, width),
        "cfm.estimator.content_mask_embedder.weight": torch.empty(1, width),
        "length_regulator.embedding.weight": torch.empty(regulator.content_codebook_size, regulator.channels),
        "length_regulator.mask_token": torch.empty(1, regulator.channels),
    }
    for layer in range(dit.depth // 2 + 1):
        prefix = f"cfm.estimator.transformer.layers.{layer}.skip_in_linear"
        shapes |= {f"{prefix}.weight": torch.empty(width, 2 * width), f"{prefix}.bias": torch.empty(width)}
    return shapes


def _unused_w2v_bert(module: nn.Module, sizes: SystemSizes) -> dict[str, Tensor]:
    first = "encoder.layers.0."
    layer = {key.removeprefix(first): value for key, value in module.state_dict().items() if key.startswith(first)}
    full = sizes.w2v_bert_config()
    later = range(sizes.config.semantic_encoder.hidden_state, full["num_hidden_layers"])
    shapes = {f"encoder.layers.{i}.{key}": value for i in later for key, value in layer.items()}
    return {"masked_spec_embed": torch.empty(full["hidden_size"]), **shapes}
