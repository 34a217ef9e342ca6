"""The files of a release to networks: every key accounted for, in float32 on the CPU.

Files are mapped into memory and their tensors taken over, not copied, so loading needs little more memory than the parts of
a file that are used. Only tensors are read: a file that asks for code to be run is refused.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from indextts.config import ConfigError
from indextts.config_vocoder import load_bigvgan_config
from indextts.models.bigvgan import BigVGAN
from indextts.models.campplus import CAMPPlus
from indextts.models.gpt import UnifiedVoice
from indextts.models.griffin_lim import GriffinLim
from indextts.models.s2mel import S2Mel
from indextts.models.semantic_codec import SemanticCodec
from indextts.models.semantic_encoder import SemanticEncoder
from indextts.models.semantic_encoder import load_semantic_encoder as fill_semantic_encoder
from indextts.models.weights import CheckpointError, State, build, load_weights
from indextts.release.headers import check_checkpoint
from indextts.release.layout import Release

if TYPE_CHECKING:
    from indextts.engine.stages import Models

N = TypeVar("N", bound=nn.Module)

S2MEL_PARTS = ("cfm", "length_regulator", "gpt_layer")


def load_models(release: Release) -> Models:
    """All networks of ``release``. Errors: :class:`CheckpointError` that names the file, :class:`ConfigError`."""
    from indextts.engine.stages import Models
    from indextts.models.emotion import EmotionMatrices

    speaker, emotion = load_emotion_matrices(release)
    return Models(
        config=release.config,
        gpt=load_gpt(release),
        s2mel=load_s2mel(release),
        semantic_encoder=load_semantic_encoder(release),
        semantic_codec=load_semantic_codec(release),
        campplus=load_campplus(release),
        vocoder=load_vocoder(release),
        emotion=EmotionMatrices(speaker, emotion, release.config.emo_num),
    )


def load_gpt(release: Release) -> UnifiedVoice:
    """``gpt.pth``: a state dict, bare or under ``model``."""
    raw = read_checkpoint(release.gpt)
    state = as_state(raw.get("model", raw) if isinstance(raw, Mapping) else raw, release.gpt)
    gpt = _network(lambda: UnifiedVoice(release.config.gpt), release.cfg_path)
    load_weights(gpt, UnifiedVoice.complete_state(state), unused=UnifiedVoice.UNUSED, source=str(release.gpt))
    return gpt


def load_s2mel(release: Release) -> S2Mel:
    """``s2mel.pth``: one state dict per part under ``net``, beside training state; or one flat state dict."""
    raw = read_checkpoint(release.s2mel)
    nested = raw.get("net") if isinstance(raw, Mapping) else None
    if isinstance(nested, Mapping):
        absent = [part for part in S2MEL_PARTS if not isinstance(nested.get(part), Mapping)]
        if absent:
            raise CheckpointError(f"{release.s2mel} lacks the state dicts {', '.join('net.' + part for part in absent)}")
        raw = {f"{part}.{key.removeprefix('module.')}": value for part in S2MEL_PARTS for key, value in nested[part].items()}
    state = as_state(raw, release.s2mel)
    s2mel = _network(lambda: S2Mel(release.config.s2mel, release.config.gpt_latent_dim), release.cfg_path)
    load_weights(s2mel, state, unused=S2Mel.UNUSED, source=str(release.s2mel))
    return s2mel


def load_semantic_encoder(release: Release) -> SemanticEncoder:
    """w2v-BERT up to the hidden state in use, with the statistics of its features."""
    path = release.w2v_bert_config
    sizes = read_json(path)
    encoder = _network(lambda: SemanticEncoder(sizes, release.config.semantic_encoder.hidden_state), path)
    width, expected = encoder.mean.shape[0], release.config.gpt.feature_dim
    if width != expected:
        raise ConfigError(f"{path}: the semantic encoder is {width} wide, but {release.cfg_path.name} needs {expected} (gpt.feature_dim)")
    weights = release.w2v_bert_weights
    statistics = as_state(read_checkpoint(release.w2v_stat), release.w2v_stat)
    fill_semantic_encoder(encoder, as_state(read_checkpoint(weights), weights), statistics, source=f"{weights} with {release.w2v_stat}")
    return encoder


def load_semantic_codec(release: Release) -> SemanticCodec:
    """MaskGCT's semantic codec without its decoder."""
    path = release.semantic_codec
    codec = _network(lambda: SemanticCodec(release.config.semantic_codec), release.cfg_path)
    load_weights(codec, as_state(read_checkpoint(path), path), unused=SemanticCodec.UNUSED, source=str(path))
    return codec


def load_campplus(release: Release) -> CAMPPlus:
    """CAM++ speaker encoder."""
    path = release.campplus
    campplus = _network(lambda: CAMPPlus(release.config.campplus), release.cfg_path)
    load_weights(campplus, as_state(read_checkpoint(path), path), unused=CAMPPlus.UNUSED, source=str(path))
    return campplus


def load_vocoder(release: Release) -> BigVGAN | GriffinLim:
    """What ``config.yaml`` names as the vocoder."""
    config, acoustic = release.config.vocoder, release.config.s2mel.preprocess_params
    return load_bigvgan(release) if config.has_weights else GriffinLim(acoustic.spect_params, acoustic.sr, config.iterations)


def load_bigvgan(release: Release) -> BigVGAN:
    """BigVGAN generator; the state dict may be under ``generator``, with or without weight norm."""
    path = release.bigvgan_weights
    config = load_bigvgan_config(release.bigvgan_config)
    acoustic = release.config.s2mel.preprocess_params
    for name, ours, theirs in (
        ("mel bands", acoustic.spect_params.n_mels, config.num_mels),
        ("samples per frame", acoustic.spect_params.hop_length, config.hop_size),
        ("sample rate", acoustic.sr, config.sampling_rate),
    ):
        if ours != theirs:
            raise ConfigError(f"{release.bigvgan_config}: the vocoder has {theirs} {name}, but {release.cfg_path.name} has {ours}")
    raw = read_checkpoint(path)
    state = as_state(raw.get("generator", raw) if isinstance(raw, Mapping) else raw, path)
    vocoder = _network(lambda: BigVGAN(config), release.bigvgan_config)
    load_weights(vocoder, state, unused=BigVGAN.UNUSED, source=str(path))
    return vocoder


def load_emotion_matrices(release: Release) -> tuple[Tensor, Tensor]:
    """Speaker matrix (rows, style width) and emotion matrix (rows, model_dim), float32; rows = sum of ``emo_num``."""
    config = release.config
    rows = sum(config.emo_num)
    matrices = []
    for path, width in ((release.speaker_matrix, config.s2mel.style_encoder.dim), (release.emotion_matrix, config.gpt.model_dim)):
        raw = read_checkpoint(path)
        matrix = next(iter(raw.values())) if isinstance(raw, Mapping) and len(raw) == 1 else raw
        if not isinstance(matrix, Tensor) or tuple(matrix.shape) != (rows, width):
            found = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(raw).__name__
            raise CheckpointError(f"{path} must hold one tensor of shape {(rows, width)}, found {found}")
        matrices.append(matrix.detach().float())
    return matrices[0], matrices[1]


def _network(make: Callable[[], N], source: Path) -> N:
    """An empty network of the sizes in ``source``; :class:`ConfigError` that names it if there can be none."""
    try:
        return build(make)
    except MemoryError:
        raise
    except Exception as error:  # torch and plain arithmetic refuse impossible sizes in many ways
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{source}: no network can be built of these sizes: {reason}") from error


def read_checkpoint(path: Path) -> Any:
    """What a ``.safetensors`` or torch file holds, mapped into memory; :class:`CheckpointError` for a damaged or unsafe file."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    damage = check_checkpoint(path)
    if damage:
        raise CheckpointError(f"{path}: {damage}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Files from before torch's zip format cannot be mapped; they are small.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path}: {_explain(error)}") from error


def as_state(raw: Any, path: Path) -> State:
    """Check that ``raw`` is a mapping of names to tensors."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{path} holds {type(raw).__name__} instead of a state dict")
    other = [key for key, value in raw.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if other or not raw:
        raise CheckpointError(f"{path} holds no state dict" + (f": {other[0]!r} is {type(raw[other[0]]).__name__}" if other else ""))
    return dict(raw)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; :class:`ConfigError` if the file is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold an object, found {type(value).__name__}")
    return value


def _explain(error: Exception) -> str:
    """One line; torch's own text advises to load unsafely, which is never the remedy."""
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"(?:GLOBAL|global:?)\s+([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        return f"refused: it holds something other than tensors{what}, or is damaged. Get the file from its model card again"
    lines = str(error).strip().splitlines()
    return f"damaged ({lines[0] if lines else type(error).__name__})"
