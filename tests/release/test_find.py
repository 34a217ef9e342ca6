"""If this fails, weights on disk are not found, or users are not told which files are missing and what to do."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from indextts.config import ConfigError
from indextts.release import (
    MissingFilesError,
    find_release,
    verify_release,
)
from indextts.release import find as finding
from tests.release.damage import edit_config, replace

FILES = {
    "config.yaml", "gpt.pth", "s2mel.pth", "bpe.model", "wav2vec2bert_stats.pt", "feat1.pt", "feat2.pt",
    "hf_cache/w2v-bert-2.0/config.json (facebook/w2v-bert-2.0)",
    "hf_cache/w2v-bert-2.0/model.safetensors (facebook/w2v-bert-2.0)",
    "hf_cache/semantic_codec_model.safetensors (amphion/MaskGCT)",
    "hf_cache/campplus_cn_common.bin (funasr/campplus)",
    "hf_cache/bigvgan/config.json (nvidia/bigvgan_v2_22khz_80band_256x)",
    "hf_cache/bigvgan/bigvgan_generator.pt (nvidia/bigvgan_v2_22khz_80band_256x)",
}  # fmt: skip


def test_complete_release_is_found_from_folder_or_configuration(folder: Path) -> None:
    by_folder, by_config = find_release(folder), find_release(cfg_path=folder / "config.yaml")
    assert by_folder == by_config
    assert all(path.is_file() for path in by_folder.files().values())
    assert len(by_folder.files()) == 13
    assert by_folder.qwen_dir is None
    assert by_folder.glossary is None
    assert not by_folder.bundled


def test_a_folder_may_stand_where_the_configuration_is_expected(folder: Path) -> None:
    assert find_release(cfg_path=folder) == find_release(model_dir=folder)


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
    with pytest.raises(ConfigError, match=r"only release 2\.0 is supported"):
        find_release(folder)


@pytest.mark.parametrize("path", ["/etc/passwd", "../gpt.pth", "a/../../gpt.pth", "C:\\gpt.pth", "..\\gpt.pth", "\\\\host\\gpt.pth", " "])
def test_configuration_cannot_name_files_elsewhere(folder: Path, path: str) -> None:
    edit_config(folder, gpt_checkpoint=path)
    with pytest.raises(ConfigError, match=r"gpt_checkpoint is .* inside the model directory"):
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
    with pytest.raises(MissingFilesError, match=r"campplus_cn_common\.bin"):
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
