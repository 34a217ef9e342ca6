"""A complete release with random weights: as files in the published layout, or as networks in memory.

Timings are real, the sound is noise. Useful where the download is not there: lessons, benchmarks, tests.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from indextts.config import GPTConfig, IndexTTSConfig, S2MelConfig, config_to_dict
from indextts.models.weights import State, unfold_weight_norm
from indextts.release.layout import AUXILIARIES, BIGVGAN_CONFIG, BIGVGAN_GENERATOR, CONFIG_NAME
from indextts.release.random_weights import constants, fill, random_matrices, random_state, skeletons, unused_shapes
from indextts.release.sizes import SystemSizes, system_sizes
from indextts.release.tiny_bpe import tiny_tokenizer

if TYPE_CHECKING:
    from indextts.engine.stages import Models
    from indextts.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Sections of the published config.yaml that inference does not read.
_TRAINING_SECTIONS: dict[str, Any] = {
    "dataset": {
        "sample_rate": 24000,
        "squeeze": False,
        "mel": {
            "sample_rate": 24000, "n_fft": 1024, "hop_length": 256, "win_length": 1024, "n_mels": 100, "mel_fmin": 0, "normalize": False,
        },
    },
    "vocoder": {"type": "bigvgan", "name": "nvidia/bigvgan_v2_22khz_80band_256x"},
}  # fmt: skip
# Fields of ours, which the published file does not have: written only where they say something.
_OWN_FIELDS = {
    "": ("semantic_encoder", "campplus", "inference", "name"),
    "gpt": ("feature_dim", "condition_num_latent", "emo_latent_dim", "perceiver_dim_head"),
    "s2mel": ("gpt_layer_dims", "gpt_latent_dim"),
}
_PREPROCESSOR = {
    "feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": 80, "num_mel_bins": 80, "padding_side": "right",
    "padding_value": 1, "return_attention_mask": True, "sampling_rate": 16000, "stride": 2,
}  # fmt: skip


def random_models(size: str | SystemSizes, seed: int = 0, device: str | torch.device = "cpu") -> tuple[Models, Tokenizer]:
    """Networks and tokenizer of ``size`` (``"release"``, ``"small"``), with the weights that :func:`write_random_release` writes.

    Equal but for the last bit of those that a file stores as weight norm. Errors: ``ValueError`` for an unknown size.
    """
    from indextts.engine.stages import Models
    from indextts.models.emotion import EmotionMatrices
    from indextts.text.tokenizer import Tokenizer

    sizes = system_sizes(size)
    networks: dict[str, Any] = {name: fill(module, name, seed).to(device) for name, module in skeletons(sizes).items()}
    speaker, emotion = random_matrices(sizes, seed)
    models = Models(
        config=sizes.config,
        gpt=networks["gpt"],
        s2mel=networks["s2mel"],
        semantic_encoder=networks["w2v_bert"],
        semantic_codec=networks["semantic_codec"],
        campplus=networks["campplus"],
        vocoder=networks["bigvgan"],
        emotion=EmotionMatrices(speaker.to(device), emotion.to(device), sizes.config.emo_num),
    )
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer is read from a file, at once
        model = Path(folder) / "bpe.model"
        model.write_bytes(tiny_tokenizer())
        return models, Tokenizer(model)


def write_random_release(path: str | os.PathLike[str], size: str | SystemSizes = "small", seed: int = 0, qwen: bool = False) -> Path:
    """Write a release with random weights into the folder ``path``; return the folder.

    Layout, key names, weight norm and unused entries are those of the published files. ``qwen`` adds a tiny text-emotion
    classifier. Release size needs 7 GB of disk and 4 GB of memory. Errors: ``FileExistsError`` if the folder holds a release,
    ``ValueError`` for an unknown size.
    """
    folder, sizes = Path(path), system_sizes(size)
    if (folder / CONFIG_NAME).exists():
        raise FileExistsError(f"{folder} holds a release already; random weights would replace it")
    config = sizes.config
    places = {aux.key: folder / aux.place for aux in AUXILIARIES}
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    for key in ("w2v_bert", "bigvgan"):
        if key != "bigvgan" or config.vocoder.has_weights:
            places[key].mkdir(exist_ok=True)
    modules = skeletons(sizes)

    torch.save({"model": _file_state("gpt", modules, sizes, seed)}, folder / config.gpt_checkpoint)
    torch.save(_training_checkpoint(_file_state("s2mel", modules, sizes, seed)), folder / config.s2mel_checkpoint)
    if config.vocoder.has_weights:
        torch.save({"generator": _file_state("bigvgan", modules, sizes, seed)}, places["bigvgan"] / BIGVGAN_GENERATOR)
        _save_json({"batch_size": 32, "learning_rate": 0.0001, **config_to_dict(sizes.bigvgan)}, places["bigvgan"] / BIGVGAN_CONFIG)
    torch.save(_file_state("campplus", modules, sizes, seed), places["campplus"])
    _save_safetensors(_file_state("semantic_codec", modules, sizes, seed), places["semantic_codec"])
    encoder = _file_state("w2v_bert", modules, sizes, seed)
    torch.save({key: encoder.pop(key) for key in ("mean", "var")}, folder / config.w2v_stat)
    _save_safetensors(encoder, places["w2v_bert"] / "model.safetensors")
    del encoder
    speaker, emotion = random_matrices(sizes, seed)
    torch.save(speaker.requires_grad_(), folder / config.spk_matrix)  # the published one is saved so
    torch.save(emotion, folder / config.emo_matrix)

    (folder / config.dataset.bpe_model).write_bytes(tiny_tokenizer())
    _save_json(sizes.w2v_bert_config(), places["w2v_bert"] / "config.json")
    _save_json(_PREPROCESSOR, places["w2v_bert"] / "preprocessor_config.json")
    if qwen:
        from indextts.release.random_qwen import write_random_classifier

        write_random_classifier(folder / config.qwen_emo_path, seed)
    text = yaml.safe_dump(published_config(config), sort_keys=False, allow_unicode=True)
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")  # last: without it the folder is no release
    logger.info("random release written to %s", folder)
    return folder


def published_config(config: IndexTTSConfig) -> dict[str, Any]:
    """``config`` with the fields of the published ``config.yaml``, and ours where they differ from the release's values."""
    plain: dict[str, Any] = config_to_dict(config)
    defaults = {"": config_to_dict(IndexTTSConfig()), "gpt": config_to_dict(GPTConfig()), "s2mel": config_to_dict(S2MelConfig())}
    for section, names in _OWN_FIELDS.items():
        fields = plain[section] if section else plain
        for name in names:
            if fields[name] == defaults[section][name]:
                del fields[name]
    plain["dataset"].update(_TRAINING_SECTIONS["dataset"])
    if config.vocoder.has_weights:
        plain["vocoder"] = _TRAINING_SECTIONS["vocoder"]
    return plain


def _file_state(name: str, modules: dict[str, nn.Module], sizes: SystemSizes, seed: int) -> State:
    """The tensors of one published file, weight norm as gain and direction."""
    module = modules[name]
    state = random_state({**module.state_dict(), **unused_shapes(name, module, sizes)}, name, seed)
    state = unfold_weight_norm(state, getattr(module, "WEIGHT_NORMED", ()))
    return {**state, **constants(name, module)}


def _training_checkpoint(state: State) -> dict[str, Any]:
    """``s2mel.pth``: one state dict per part under ``net``, beside what training left."""
    parts = ("cfm", "length_regulator", "gpt_layer")
    net: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for key, value in state.items():
        part, name = key.split(".", 1)
        net[part][name] = value
    return {"net": net, "optimizer": {}, "scheduler": {}, "iters": 0, "epoch": 0}


def _save_safetensors(state: State, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)  # save_file leaves it readable by its owner alone


def _save_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
