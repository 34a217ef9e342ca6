"""If this fails, checkpoints load wrongly, wastefully or dangerously, or errors do not name the file."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from indextts.config import ConfigError
from indextts.release import (
    CheckpointError,
    find_release,
    load_bigvgan,
    load_campplus,
    load_emotion_matrices,
    load_gpt,
    load_s2mel,
    load_semantic_codec,
    load_semantic_encoder,
    verify_release,
)
from tests.release.damage import replace, rewrite


def test_everything_loads_in_float32_without_copies(folder: Path) -> None:
    release = find_release(folder)
    for load in (load_gpt, load_s2mel, load_semantic_encoder, load_semantic_codec, load_campplus, load_bigvgan):
        module = load(release)
        tensors = [*module.named_parameters(), *module.named_buffers()]
        assert {value.dtype for _, value in tensors} <= {torch.float32, torch.int64}
        assert not [name for name, value in tensors if value.is_meta or value.requires_grad]
        assert not module.training


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel does not list a process's mappings")
def test_loaded_tensors_are_the_file_in_memory_not_copies(folder: Path) -> None:
    def mapped_file(tensor: torch.Tensor) -> str:
        for line in Path("/proc/self/maps").read_text().splitlines():
            bounds, *_, name = line.split(maxsplit=5)
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if low <= tensor.data_ptr() < high:
                return name
        return ""

    release = find_release(folder)
    gpt, s2mel, encoder = load_gpt(release), load_s2mel(release), load_semantic_encoder(release)
    assert mapped_file(gpt.mel_head.weight) == str(folder / "gpt.pth")
    assert mapped_file(s2mel.gpt_layer[0].weight) == str(folder / "s2mel.pth")
    assert mapped_file(encoder.feature_projection.projection.weight) == str(release.w2v_bert_weights)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_gpt_file_in_every_published_form(folder: Path) -> None:
    release = find_release(folder)
    expected = load_gpt(release)
    aliases = {
        "gpt.wte.weight": torch.zeros(2, 2),
        "inference_model.lm_head.0.bias": torch.zeros(2),
        "gpt.h.0.attn.bias": torch.ones(1, 1, 4, 4),
    }
    rewrite(release.gpt, lambda raw: {**raw["model"], **aliases})
    assert same(load_gpt(release), expected)
    tables = ("conditioning_encoder.embed.pos_enc.pe", "emo_conditioning_encoder.embed.pos_enc.pe")
    rewrite(release.gpt, lambda raw: {key: value for key, value in raw.items() if key not in tables})
    assert same(load_gpt(release), expected)
    rewrite(release.gpt, lambda raw: raw, _use_new_zipfile_serialization=False)
    assert same(load_gpt(release), expected)


def test_s2mel_file_with_data_parallel_names_or_flat(folder: Path) -> None:
    release = find_release(folder)
    expected = load_s2mel(release)

    def prefixed(raw: dict[str, Any]) -> dict[str, Any]:
        return {"net": {part: {f"module.{key}": value for key, value in state.items()} for part, state in raw["net"].items()}}

    rewrite(release.s2mel, prefixed)
    assert same(load_s2mel(release), expected)


def test_vocoder_file_without_weight_norm(folder: Path) -> None:
    release = find_release(folder)
    expected = load_bigvgan(release)
    rewrite(release.bigvgan_weights, lambda raw: dict(expected.state_dict()))
    assert same(load_bigvgan(release), expected)


def test_safetensors_files_are_taken_in_place_of_torch_files(folder: Path) -> None:
    release = find_release(folder)
    expected = [load(release) for load in (load_gpt, load_s2mel, load_campplus, load_bigvgan)]
    matrices = load_emotion_matrices(release)

    def flat(raw: Any) -> dict[str, torch.Tensor]:
        if isinstance(raw, torch.Tensor):
            return {"matrix": raw.detach()}
        raw = raw.get("model", raw.get("generator", raw))
        return {f"{part}.{key}": value for part, state in raw["net"].items() for key, value in state.items()} if "net" in raw else raw

    for path in list(folder.rglob("*")):
        if path.suffix in (".pth", ".pt", ".bin"):
            save_file(flat(torch.load(path, weights_only=True)), path.with_suffix(".safetensors"))
            path.unlink()
    release = find_release(folder)
    assert verify_release(release, deep=True) == []
    for load, module in zip((load_gpt, load_s2mel, load_campplus, load_bigvgan), expected, strict=True):
        assert same(load(release), module)
    assert all(map(torch.equal, load_emotion_matrices(release), matrices))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_files_become_float32(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "hf_cache" / "semantic_codec_model.safetensors"
    state = {key: value.to(dtype) for key, value in load_file(path).items()}
    path.unlink()
    save_file(state, path)
    codec = load_semantic_codec(find_release(folder))
    assert codec.encoder[1].weight.dtype == torch.float32
    assert torch.equal(codec.encoder[1].weight, state["encoder.1.weight"].float())


class Bomb:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_file_is_refused_and_not_run(folder: Path, tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "harm"
    (folder / "gpt.pth").unlink()
    torch.save({"model": Bomb(target)}, folder / "gpt.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"gpt\.pth: refused: it holds something other than tensors \(\w+\.mkdir\)") as caught:
        load_gpt(find_release(folder))
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not target.exists()


def test_bare_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    replace(folder / "gpt.pth", pickle.dumps(Bomb(tmp_path / "harm")))
    with pytest.raises(CheckpointError, match=r"gpt\.pth"):
        load_gpt(find_release(folder))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("position", [0.001, 0.01, 0.5])
def test_damaged_torch_file_of_the_old_format(folder: Path, position: float) -> None:
    path = rewrite(folder / "gpt.pth", lambda raw: raw, _use_new_zipfile_serialization=False)
    replace(path, path.read_bytes()[: int(path.stat().st_size * position)])
    with pytest.raises(CheckpointError, match=r"gpt\.pth"):
        load_gpt(find_release(folder))


def test_missing_unexpected_and_misshapen_tensors_are_named(folder: Path) -> None:
    def spoil(raw: dict[str, Any]) -> dict[str, Any]:
        state = raw["model"]
        del state["final_norm.weight"]
        state["mel_head.bias"] = torch.zeros(7)
        state["surprise"] = torch.zeros(1)
        return raw

    rewrite(folder / "gpt.pth", spoil)
    with pytest.raises(CheckpointError) as caught:
        load_gpt(find_release(folder))
    for part in (
        str(folder / "gpt.pth"),
        "1 missing (final_norm.weight)",
        "1 unexpected (surprise)",
        "mel_head.bias (7,) instead of (258,)",
    ):
        assert part in str(caught.value)


def test_missing_statistic_is_named(folder: Path) -> None:
    rewrite(folder / "wav2vec2bert_stats.pt", lambda raw: {"mean": raw["mean"]})
    with pytest.raises(CheckpointError, match=r"wav2vec2bert_stats\.pt.*missing \(var\)"):
        load_semantic_encoder(find_release(folder))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"net": {"cfm": {}, "gpt_layer": {}}}, r"lacks the state dicts net\.length_regulator"),
        ({"net": [1]}, "holds no state dict: 'net' is list"),
        ([1, 2], "holds list instead of a state dict"),
        ({}, "holds no state dict"),
    ],
)
def test_torch_file_of_something_else(folder: Path, content: Any, problem: str) -> None:
    rewrite(folder / "s2mel.pth", lambda raw: content)
    with pytest.raises(CheckpointError, match=rf"s2mel\.pth {problem}"):
        load_s2mel(find_release(folder))


@pytest.mark.parametrize("name", ["feat1.pt", "feat2.pt"])
def test_emotion_matrix_of_another_shape(folder: Path, name: str) -> None:
    rewrite(folder / name, lambda matrix: matrix[:, :-1].clone())
    with pytest.raises(CheckpointError, match=rf"{name} must hold one tensor of shape \(73, \d+\), found \(73, \d+\)"):
        load_emotion_matrices(find_release(folder))


@pytest.mark.parametrize(
    ("name", "field", "value", "load", "problem"),
    [
        ("w2v-bert-2.0", "hidden_size", 128, load_semantic_encoder, r"the semantic encoder is 128 wide, but config\.yaml needs 64"),
        ("w2v-bert-2.0", "num_hidden_layers", 1, load_semantic_encoder, "hidden state 2"),
        ("bigvgan", "num_mels", 100, load_bigvgan, r"the vocoder has 100 mel bands, but config\.yaml has 80"),
        ("bigvgan", "sampling_rate", 24000, load_bigvgan, "the vocoder has 24000 sample rate"),
    ],
)
def test_auxiliary_configuration_that_contradicts(
    folder: Path, name: str, field: str, value: int, load: Callable[..., Any], problem: str
) -> None:
    path = folder / "hf_cache" / name / "config.json"
    replace(path, json.dumps({**json.loads(path.read_text()), field: value}).encode())
    with pytest.raises(ConfigError, match=rf"(?s)config\.json: .*{problem}"):
        load(find_release(folder))
