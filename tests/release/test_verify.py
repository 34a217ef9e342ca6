"""If this fails, a damaged or truncated download is not noticed before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from indextts.release import (
    CheckpointError,
    find_release,
    load_gpt,
    load_semantic_encoder,
    verify_release,
)
from indextts.release.headers import check_checkpoint
from tests.release.damage import replace, rewrite


@pytest.mark.parametrize("name", ["gpt.pth", "hf_cache/w2v-bert-2.0/model.safetensors"])
@pytest.mark.parametrize("keep", [1, 7, 40, 5000, 0.5, -1])
def test_truncated_file_is_found_and_refused(folder: Path, name: str, keep: float) -> None:
    data = (folder / name).read_bytes()
    replace(folder / name, data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    release = find_release(folder)
    (found,) = verify_release(release)
    assert found.path == folder / name
    assert f"indextts download --dir {folder}" in str(found)
    with pytest.raises(CheckpointError, match=Path(name).name):
        load_gpt(release) if name == "gpt.pth" else load_semantic_encoder(release)


def test_hole_in_a_file_is_found(folder: Path) -> None:
    data = (folder / "gpt.pth").read_bytes()
    replace(folder / "gpt.pth", data[:1_000_000] + data[1_100_000:])
    assert "damaged" in verify_release(find_release(folder))[0].problem


@pytest.mark.parametrize("name", ["s2mel.pth", "hf_cache/campplus_cn_common.bin"])
def test_changed_bytes_are_found_by_the_deep_check(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4] = bytes(byte ^ 0xFF for byte in data[middle : middle + 4])
    replace(folder / name, bytes(data))
    assert verify_release(find_release(folder)) == []
    (found,) = verify_release(find_release(folder), deep=True)
    assert "checksum" in found.problem
    assert found.path == folder / name


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"\x00" * 200, "neither|header is damaged"),
        (b"PK\x05\x06" + b"\x00" * 18, "not one that torch wrote"),
    ],
)
@pytest.mark.parametrize("name", ["gpt.pth", "hf_cache/semantic_codec_model.safetensors"])
def test_other_things_saved_under_a_models_name(folder: Path, data: bytes, problem: str, name: str) -> None:
    if name.endswith("safetensors") and data[:2] == b"PK":
        problem = "not a safetensors file"
    replace(folder / name, data)
    (found,) = verify_release(find_release(folder))
    assert any(text in found.problem for text in problem.split("|"))


def test_safetensors_header_that_lies(folder: Path) -> None:
    path = folder / "hf_cache" / "semantic_codec_model.safetensors"
    data = path.read_bytes()
    assert "too many" in str(check_checkpoint(replace(path, data + b"\x00")))
    assert "header is damaged" in str(check_checkpoint(replace(path, data[:8] + b"x" * 100 + data[108:])))


def test_broken_tokenizer_and_configurations_are_found(folder: Path) -> None:
    replace(folder / "bpe.model", b"not a model")
    for name in ("w2v-bert-2.0", "bigvgan"):
        replace(folder / "hf_cache" / name / "config.json", b"{")
    problems = [(found.path.name, found.problem) for found in verify_release(find_release(folder))]
    assert [name for name, _ in problems] == ["bpe.model", "config.json", "config.json"]
    assert "SentencePiece" in problems[0][1]


def test_deep_check_finds_a_checkpoint_that_does_not_fit(folder: Path) -> None:
    rewrite(folder / "feat2.pt", lambda matrix: matrix[:-1].clone())
    assert verify_release(find_release(folder)) == []
    (found,) = verify_release(find_release(folder), deep=True)
    assert found.path.name == "feat2.pt"
