"""If this fails, damaged or wrong files end in a traceback about something else, or in noise instead of speech."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from indextts import IndexTTS2
from indextts.config import ConfigError
from indextts.release import CheckpointError, MissingFilesError
from tests.release.damage import edit_config, replace

WEIGHTS = (
    "gpt.pth", "s2mel.pth", "wav2vec2bert_stats.pt", "feat1.pt", "feat2.pt", "hf_cache/w2v-bert-2.0/model.safetensors",
    "hf_cache/semantic_codec_model.safetensors", "hf_cache/campplus_cn_common.bin", "hf_cache/bigvgan/bigvgan_generator.pt",
)  # fmt: skip
OTHERS = ("config.yaml", "bpe.model", "hf_cache/w2v-bert-2.0/config.json", "hf_cache/bigvgan/config.json")


def refused(error: type[Exception], folder: Path | None, **options: Any) -> str:
    """Construct an engine, which must fail and leave no thread behind; the message."""
    before = threading.active_count()
    with pytest.raises(error) as caught:
        IndexTTS2(model_dir=folder, **{"device": "cpu", **options})
    assert threading.active_count() == before
    return str(caught.value)


def test_a_folder_that_is_not_there_names_every_file_and_the_command(tmp_path: Path, folder: Path) -> None:
    message = refused(FileNotFoundError, tmp_path / "nowhere")
    assert all(name in message for name in (*WEIGHTS, *OTHERS))
    assert f"indextts download --dir {tmp_path / 'nowhere'}" in message
    assert "nowhere" in refused(FileNotFoundError, None, cfg_path=tmp_path / "nowhere" / "config.yaml")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [*WEIGHTS, *OTHERS])
def test_one_missing_or_empty_file_is_named_alone(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingFilesError) as caught:
        IndexTTS2(model_dir=folder, device="cpu")
    assert [missing.partition(" (")[0] for missing in caught.value.missing] == [name]
    assert f"indextts download --dir {folder}" in str(caught.value)
    (folder / name).write_bytes(b"")
    assert name in refused(FileNotFoundError, folder)


def test_a_missing_file_of_ones_own_is_named(folder: Path, tmp_path: Path) -> None:
    for option in ("gpt_checkpoint_path", "bpe_model_path"):
        assert str(tmp_path / "mine") in refused(FileNotFoundError, folder, **{option: tmp_path / "mine"})
    assert "known are" in refused(ValueError, folder, aux_paths={"vocoder": tmp_path})


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-1], "truncated|damaged"),
        (lambda data: b"<!DOCTYPE html><html>404</html>", "web page"),
        (lambda data: b"\x00\x01" * 500, "not a safetensors file|neither a torch file nor a safetensors file"),
    ],
    ids=["half", "last byte", "page", "noise"],
)
def test_a_damaged_checkpoint_is_one_error_that_names_the_file(folder: Path, name: str, damage: Callable[[bytes], bytes], why: str) -> None:
    replace(folder / name, damage((folder / name).read_bytes()))
    message = refused(CheckpointError, folder)
    assert message.startswith(f"{folder / name}: ")
    assert "\n" not in message
    assert any(part in message for part in why.split("|")), message


def test_the_checkpoint_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"model": {"text_embedding.weight": torch.zeros(3, 3)}}, tmp_path / "other.pth")
    message = refused(CheckpointError, folder, gpt_checkpoint_path=tmp_path / "other.pth")
    assert message.startswith(str(tmp_path / "other.pth"))
    assert "text_embedding.weight (3, 3) instead of" in message


@pytest.mark.parametrize("content", [b"no tokenizer", b"\x00" * 100])
def test_a_tokenizer_that_is_none(folder: Path, content: bytes) -> None:
    replace(folder / "bpe.model", content)
    assert f"{folder / 'bpe.model'} is not a SentencePiece model" in refused(ValueError, folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": 2.5}, "this is a configuration of IndexTTS release 2.5; only release 2.0 is supported"),
        ({"version": "1.5"}, "only release 2.0 is supported"),
        ({"inference": {"diffusion_step": 5}}, "unknown field 'inference.diffusion_step'; did you mean 'diffusion_steps'?"),
        ({"gpt": {"layers": "many"}}, "gpt.layers must be a whole number"),
        ({"gpt": {"layers": -1}}, "gpt.layers must be a whole number"),
        ({"gpt": ["a"]}, "section gpt must be a mapping"),
        ({"gpt": {"heads": 7}}, "gpt.model_dim (1280) must be a multiple of gpt.heads (7)"),
        ({"s2mel": {"DiT": {"is_causal": True}}}, "s2mel.DiT.is_causal is True; only False"),
        ({"emo_num": [1, 2, 3]}, "emo_num must hold 8 counts"),
        ({"gpt_checkpoint": "/etc/passwd"}, "must be a path inside the model directory"),
        ({"inference": {"diffusion_steps": "a"}}, "inference.diffusion_steps must be a whole number"),
    ],
)
def test_a_configuration_with_a_mistake_names_the_field(folder: Path, changes: dict[str, Any], why: str) -> None:
    edit_config(folder, **changes)
    assert why in refused(ConfigError, folder)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"gpt: [1,", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- a\n- b\n", "must hold a mapping"),
        (b"~\n", "must hold a mapping"),
    ],
)
def test_a_configuration_that_is_none_names_the_file(folder: Path, content: bytes, why: str) -> None:
    replace(folder / "config.yaml", content)
    assert f"{folder / 'config.yaml'} {why}" in refused(ConfigError, folder)


def test_sizes_of_which_no_network_can_be_built_name_the_configuration(folder: Path) -> None:
    edit_config(folder, semantic_codec={"hidden_size": 64, "codebook_size": 256, "vocos_dim": 0})
    assert f"{folder / 'config.yaml'}: no network can be built of these sizes: " in refused(ConfigError, folder)


def test_settings_are_checked_before_files_are_looked_for(tmp_path: Path) -> None:
    assert "this machine has: " in refused(ValueError, tmp_path / "nowhere", device="cuda:77")
    assert "choose 'auto' or one of" in refused(ValueError, tmp_path / "nowhere", precision="fp9")
