"""If this fails, weights on disk are not found, damaged files load, or users are not told which file is wrong and what to do."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from indextts.config import ConfigError
from indextts.release import (
    CheckpointError,
    MissingFilesError,
    find_release,
    load_bigvgan,
    load_campplus,
    load_emotion_matrices,
    load_gpt,
    load_s2mel,
    load_semantic_codec,
    load_semantic_encoder,
    verify_release,
    write_random_release,
)
from indextts.release import find as finding
from indextts.release.headers import check_checkpoint

FILES = {
    "config.yaml", "gpt.pth", "s2mel.pth", "bpe.model", "wav2vec2bert_stats.pt", "feat1.pt", "feat2.pt",
    "hf_cache/w2v-bert-2.0/config.json (facebook/w2v-bert-2.0)",
    "hf_cache/w2v-bert-2.0/model.safetensors (facebook/w2v-bert-2.0)",
    "hf_cache/semantic_codec_model.safetensors (amphion/MaskGCT)",
    "hf_cache/campplus_cn_common.bin (funasr/campplus)",
    "hf_cache/bigvgan/config.json (nvidia/bigvgan_v2_22khz_80band_256x)",
    "hf_cache/bigvgan/bigvgan_generator.pt (nvidia/bigvgan_v2_22khz_80band_256x)",
}  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_release(tmp_path_factory.mktemp("original"), "small")


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of hard links: to damage a file, replace it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no cache"))
    finding._say_bundled.cache_clear()
    return Path(shutil.copytree(original, tmp_path / "voice", copy_function=os.link))


def replace(path: Path, data: bytes) -> Path:
    path.unlink()
    path.write_bytes(data)
    return path


def rewrite(path: Path, change: Callable[[Any], Any], **options: Any) -> Path:
    """Load a torch file, change what it holds, save it again."""
    value = change(torch.load(path, weights_only=True))
    path.unlink()
    torch.save(value, path, **options)
    return path


def edit_config(folder: Path, **changes: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    replace(folder / "config.yaml", yaml.safe_dump({**config, **changes}).encode())


# ------------------------------------------------------------------------------------------------------------------ finding


def test_complete_release_is_found_from_folder_or_configuration(folder: Path) -> None:
    by_folder, by_config = find_release(folder), find_release(cfg_path=folder / "config.yaml")
    assert by_folder == by_config
    assert all(path.is_file() for path in by_folder.files().values())
    assert len(by_folder.files()) == 13
    assert by_folder.qwen_dir is None
    assert by_folder.glossary is None
    assert not by_folder.bundled


def test_every_missing_file_and_the_command_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "hf_cache" / "bigvgan")
    (folder / "s2mel.pth").unlink()
    replace(folder / "feat1.pt", b"")
    with pytest.raises(MissingFilesError) as caught:
        find_release(folder)
    assert set(caught.value.missing) == {name for name in FILES if name.startswith(("s2mel", "feat1", "hf_cache/bigvgan"))}
    assert all(name in str(caught.value) for name in caught.value.missing)
    assert f"indextts download --dir {folder}" in str(caught.value)


def test_folder_that_does_not_exist_names_the_whole_release(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"indextts download --dir '.*no such voice'") as caught:
        find_release(tmp_path / "no such voice")
    assert isinstance(caught.value, MissingFilesError)
    assert set(caught.value.missing) == FILES


def test_configuration_outside_the_folder(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine.yaml"
    (folder / "config.yaml").rename(elsewhere)
    assert find_release(folder, elsewhere).cfg_path == elsewhere
    with pytest.raises(MissingFilesError, match=r"missing: .*other\.yaml"):
        find_release(folder, tmp_path / "other.yaml")


def test_found_files_survive_a_change_of_directory(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder.parent)
    release = find_release(folder.name)
    monkeypatch.chdir(tmp_path.parent)
    assert all(path.is_file() for path in release.files().values())


def test_default_is_checkpoints_in_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder.rename(tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    assert find_release().model_dir == tmp_path / "checkpoints"


def test_default_is_then_the_small_voice_and_says_so_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(finding, "_REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(finding, "_PACKAGE", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package" / "voices").mkdir(parents=True)
    folder.rename(tmp_path / "package" / "voices" / "small")
    with caplog.at_level(logging.INFO):
        assert find_release().bundled
        assert find_release().bundled
    assert caplog.text.count("using the small voice") == 1
    assert "indextts download" in caplog.text


@pytest.mark.parametrize(("change", "reason"), [({"version": 2.5}, "only release 2.0"), ({"gpt_checkpoint": "absent.pth"}, "absent.pth")])
def test_default_passes_over_a_folder_it_cannot_use_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(finding, "_REPOSITORY", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "repository" / "checkpoints" / "small", copy_function=os.link)
    folder.rename(tmp_path / "checkpoints")
    edit_config(tmp_path / "checkpoints", **change)
    with caplog.at_level(logging.WARNING):
        assert find_release().bundled
    assert reason in caplog.text


def test_no_weights_at_all_says_how_to_get_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finding, "_REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(finding, "_PACKAGE", tmp_path / "package")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFilesError, match=r"gpt\.pth.*indextts download --dir checkpoints.*IndexTTS2\.from_random") as caught:
        find_release()
    assert set(caught.value.missing) == FILES


def test_other_release_is_refused_when_asked_for(folder: Path) -> None:
    edit_config(folder, version=2.5)
    with pytest.raises(ConfigError, match="only release 2.0 is supported"):
        find_release(folder)


@pytest.mark.parametrize("path", ["/etc/passwd", "../gpt.pth", "a/../../gpt.pth", "C:\\gpt.pth", "..\\gpt.pth", "\\\\host\\gpt.pth", " "])
def test_configuration_cannot_name_files_elsewhere(folder: Path, path: str) -> None:
    edit_config(folder, gpt_checkpoint=path)
    with pytest.raises(ConfigError, match="gpt_checkpoint is .* inside the model directory"):
        find_release(folder)


def test_linked_files_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "gpt.pth").rename(tmp_path / "blob")
    (folder / "gpt.pth").symlink_to(tmp_path / "blob")
    assert verify_release(find_release(folder)) == []


def snapshot(cache: Path, repo: str, commit: str, files: dict[str, Path], ref: bool = False) -> Path:
    """Move ``files`` into a hub cache."""
    home = cache / ("models--" + repo.replace("/", "--"))
    for name, source in files.items():
        target = home / "snapshots" / commit / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    if ref:
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(commit)
    return home / "snapshots" / commit


@pytest.mark.parametrize("where", ["model_dir", "HF_HUB_CACHE", "HF_HOME"])
def test_auxiliary_models_are_used_from_a_hub_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    cache = {"model_dir": folder / "hf_cache", "HF_HUB_CACHE": tmp_path / "cache", "HF_HOME": tmp_path / "home" / "hub"}[where]
    monkeypatch.delenv("HF_HUB_CACHE")
    if where != "model_dir":
        monkeypatch.setenv(where, str(tmp_path / ("cache" if where == "HF_HUB_CACHE" else "home")))
    place = folder / "hf_cache"
    codec = snapshot(cache, "amphion/MaskGCT", "c1", {"semantic_codec/model.safetensors": place / "semantic_codec_model.safetensors"})
    speaker = snapshot(cache, "funasr/campplus", "c2", {"campplus_cn_common.bin": place / "campplus_cn_common.bin"}, ref=True)
    names = ("config.json", "bigvgan_generator.pt")
    vocoder = snapshot(cache, "nvidia/bigvgan_v2_22khz_80band_256x", "c3", {name: place / "bigvgan" / name for name in names})
    release = find_release(folder)
    assert release.semantic_codec == codec / "semantic_codec/model.safetensors"
    assert release.campplus == speaker / "campplus_cn_common.bin"
    assert release.bigvgan == vocoder
    assert verify_release(release, deep=True) == []


def test_place_beside_the_release_comes_before_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "other.bin").write_bytes(b"other")
    snapshot(tmp_path / "cache", "funasr/campplus", "c", {"campplus_cn_common.bin": tmp_path / "other.bin"}, ref=True)
    assert find_release(folder).campplus == folder / "hf_cache" / "campplus_cn_common.bin"


def test_several_snapshots_need_a_reference(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    mine = folder / "hf_cache" / "campplus_cn_common.bin"
    (tmp_path / "old.bin").write_bytes(b"old")
    snapshot(cache, "funasr/campplus", "old", {"campplus_cn_common.bin": tmp_path / "old.bin"})
    new = snapshot(cache, "funasr/campplus", "new", {"campplus_cn_common.bin": mine})
    with pytest.raises(MissingFilesError, match="campplus_cn_common.bin"):
        find_release(folder)
    (new.parents[1] / "refs").mkdir()
    (new.parents[1] / "refs" / "main").write_text("new\n")
    assert find_release(folder).campplus == new / "campplus_cn_common.bin"


def test_incomplete_snapshot_is_not_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    config = folder / "hf_cache" / "bigvgan" / "config.json"
    snapshot(tmp_path / "cache", "nvidia/bigvgan_v2_22khz_80band_256x", "c", {"config.json": config})
    with pytest.raises(MissingFilesError, match=r"hf_cache/bigvgan/config\.json") as caught:
        find_release(folder)
    assert len(caught.value.missing) == 1


def test_callers_own_paths(folder: Path, tmp_path: Path) -> None:
    (folder / "hf_cache" / "bigvgan").rename(tmp_path / "vocoder")
    (folder / "gpt.pth").rename(tmp_path / "tuned.pth")
    (folder / "bpe.model").rename(tmp_path / "my.model")
    own = {"gpt_checkpoint_path": tmp_path / "tuned.pth", "bpe_model_path": str(tmp_path / "my.model")}
    release = find_release(folder, aux_paths={"bigvgan": tmp_path / "vocoder"}, **own)
    assert verify_release(release, deep=True) == []
    with pytest.raises(MissingFilesError) as caught:
        find_release(folder, aux_paths={"bigvgan": tmp_path / "nowhere", "campplus": tmp_path / "no.bin"}, **own)
    assert caught.value.missing == [str(tmp_path / name) for name in ("no.bin", "nowhere/config.json", "nowhere/bigvgan_generator.pt")]
    with pytest.raises(ValueError, match=r"unknown keys \['vocoder'\]"):
        find_release(folder, aux_paths={"vocoder": tmp_path})


def test_glossary_is_optional(folder: Path) -> None:
    (folder / "glossary.yaml").write_text("GPU: G P U\n")
    assert find_release(folder).glossary == folder / "glossary.yaml"


# ---------------------------------------------------------------------------------------------------------------- verifying


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


# ------------------------------------------------------------------------------------------------------------------ loading


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
    aliases = {"gpt.wte.weight": torch.zeros(2, 2), "inference_model.lm_head.0.bias": torch.zeros(2), "gpt.h.0.attn.bias": torch.ones(1, 1, 4, 4)}
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
    for part in (str(folder / "gpt.pth"), "1 missing (final_norm.weight)", "1 unexpected (surprise)", "mel_head.bias (7,) instead of (258,)"):
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
def test_auxiliary_configuration_that_contradicts(folder: Path, name: str, field: str, value: int, load: Callable[..., Any], problem: str) -> None:
    path = folder / "hf_cache" / name / "config.json"
    replace(path, json.dumps({**json.loads(path.read_text()), field: value}).encode())
    with pytest.raises(ConfigError, match=rf"(?s)config\.json: .*{problem}"):
        load(find_release(folder))
