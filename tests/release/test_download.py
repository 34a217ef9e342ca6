"""If this fails, users lose gigabytes of download: started over, accepted damaged, or looking complete when they are not."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from indextts.release import DownloadError, MissingFilesError, download_release, find_release, hub, verify_release, write_random_release
from indextts.release.layout import AUXILIARIES, MODEL_ID
from tests.release.fake_hub import FakeHub

GPT = "gpt.pth"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """A small release as the hub's repositories hold it."""
    folder = write_random_release(tmp_path_factory.mktemp("published"), "small", qwen=True)
    own = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    repos: dict[str, dict[str, bytes]] = {aux.repo_id: {name: own.pop(aux.local(name)) for name in aux.files} for aux in AUXILIARIES}
    repos[MODEL_ID] = {**own, "README.md": b"a model card"}
    return repos


@pytest.fixture
def fake(published: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # the client waits between tries
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 65536)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read from the environment at the library's import
    server = FakeHub({repo_id: dict(files) for repo_id, files in published.items()})
    yield server
    server.close()


def fetched(fake: FakeHub) -> list[str]:
    return [name for name, _ in fake.requests]


def test_download_gives_a_release_that_is_found_and_sound(fake: FakeHub, tmp_path: Path) -> None:
    seen: list[float] = []
    folder = download_release(tmp_path / "new" / "voice", progress=lambda fraction, message: seen.append(fraction), endpoint=fake.endpoint)
    release = find_release(folder)
    assert verify_release(release, deep=True) == []
    assert release.qwen_dir is None
    assert not (folder / "README.md").exists()
    assert not list(folder.rglob("*.part"))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 30


def test_emotion_classifier_is_fetched_when_asked_for(fake: FakeHub, tmp_path: Path) -> None:
    download_release(tmp_path, include_qwen=True, endpoint=fake.endpoint)
    qwen = find_release(tmp_path).qwen_dir
    assert qwen is not None
    assert (qwen / "tokenizer.json").is_file()


def test_files_that_are_right_are_not_fetched_again(fake: FakeHub, tmp_path: Path) -> None:
    download_release(tmp_path, endpoint=fake.endpoint)
    fake.requests.clear()
    stats = tmp_path / "wav2vec2bert_stats.pt"
    stats.write_bytes(stats.read_bytes()[:-1])
    damaged = tmp_path / "feat1.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    download_release(tmp_path, endpoint=fake.endpoint)
    assert sorted(fetched(fake)) == ["feat1.pt", "wav2vec2bert_stats.pt"]
    assert verify_release(find_release(tmp_path), deep=True) == []


def test_interrupted_download_goes_on_where_it_stopped(fake: FakeHub, tmp_path: Path) -> None:
    size = len(fake.repos[MODEL_ID][GPT])

    def stop(fraction: float, message: str) -> None:
        parts = list(tmp_path.glob(f"{GPT}.*.part"))
        if message == GPT and parts and parts[0].stat().st_size > size // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_release(tmp_path, progress=stop, endpoint=fake.endpoint)
    assert not (tmp_path / GPT).exists()
    with pytest.raises(MissingFilesError, match=GPT):
        find_release(tmp_path)
    fake.requests.clear()
    seen: list[float] = []
    download_release(tmp_path, progress=lambda fraction, message: seen.append(fraction), endpoint=fake.endpoint)
    (_, wanted), *_ = [request for request in fake.requests if request[0] == GPT]
    assert wanted is not None
    assert int(wanted.removeprefix("bytes=").rstrip("-")) > size // 2
    assert "bpe.model" not in fetched(fake)
    assert seen == sorted(seen)
    assert verify_release(find_release(tmp_path), deep=True) == []


def test_dropped_connection_is_resumed(fake: FakeHub, tmp_path: Path) -> None:
    fake.cut[GPT] = 3_000_000
    download_release(tmp_path, endpoint=fake.endpoint)
    assert [wanted for name, wanted in fake.requests if name == GPT][1] is not None
    assert (tmp_path / GPT).read_bytes() == fake.repos[MODEL_ID][GPT]


def test_server_without_ranges_still_gives_the_right_file(fake: FakeHub, tmp_path: Path) -> None:
    fake.ignores_ranges = True
    digest = hub.Hub(fake.endpoint).files(MODEL_ID)[GPT].digest
    (tmp_path / f"{GPT}.{digest[:12]}.part").write_bytes(fake.repos[MODEL_ID][GPT][:100_000])
    download_release(tmp_path, endpoint=fake.endpoint)
    assert (tmp_path / GPT).read_bytes() == fake.repos[MODEL_ID][GPT]


def test_part_of_another_version_is_dropped(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / f"{GPT}.000000000000.part").write_bytes(b"of last year")
    download_release(tmp_path, endpoint=fake.endpoint)
    assert not list(tmp_path.rglob("*.part"))
    assert (tmp_path / GPT).read_bytes() == fake.repos[MODEL_ID][GPT]


@pytest.mark.parametrize("name", ["bpe.model", "wav2vec2bert_stats.pt"], ids=["sha256", "git"])
def test_wrong_checksum_once_is_repaired(fake: FakeHub, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    fake.corrupt[name] = 1
    with caplog.at_level(logging.WARNING):
        download_release(tmp_path, endpoint=fake.endpoint)
    assert fetched(fake).count(name) == 2
    assert f"{name} arrived with a wrong checksum" in caplog.text
    assert (tmp_path / name).read_bytes() == fake.repos[MODEL_ID][name]


def test_wrong_checksum_twice_leaves_no_file(fake: FakeHub, tmp_path: Path) -> None:
    fake.corrupt[GPT] = 2
    with pytest.raises(DownloadError, match=r"gpt\.pth of IndexTeam/IndexTTS-2 arrived with a wrong checksum twice"):
        download_release(tmp_path, endpoint=fake.endpoint)
    assert not list(tmp_path.glob(f"{GPT}*"))


def test_unreachable_hub_says_what_to_do(tmp_path: Path, fake: FakeHub) -> None:
    fake.close()
    with pytest.raises(DownloadError, match=r"(?s)hub at http://127.*HF_ENDPOINT.*to go on: indextts download --dir ") as caught:
        download_release(tmp_path, endpoint=fake.endpoint)
    assert "\n" not in str(caught.value)
    fake._server.server_close()


def test_offline_mode_is_respected(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set.*lacks:.*gpt\.pth"):
        download_release(tmp_path, endpoint=fake.endpoint)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    download_release(tmp_path, endpoint=fake.endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fake.requests.clear()
    assert download_release(tmp_path, endpoint=fake.endpoint) == tmp_path
    with pytest.raises(DownloadError, match=r"lacks: qwen0\.6bemo4-merge"):
        download_release(tmp_path, include_qwen=True, endpoint=fake.endpoint)
    assert fake.requests == []


def test_small_disk_is_noticed_before_anything_is_fetched(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(DownloadError, match=r"0\.02 GB are still to be fetched, but the disk of .* has only 0\.00 GB free"):
        download_release(tmp_path, endpoint=fake.endpoint)
    assert fake.requests == []


def test_disk_that_fills_up_is_named(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub.Hub, "fetch", full)
    with pytest.raises(DownloadError, match=r"the disk of .* is full\. What was fetched is kept"):
        download_release(tmp_path, endpoint=fake.endpoint)


def test_target_that_is_a_file_is_named(fake: FakeHub, tmp_path: Path) -> None:
    target = tmp_path / "occupied"
    target.write_text("")
    with pytest.raises(DownloadError, match="occupied cannot be written to"):
        download_release(target, endpoint=fake.endpoint)


def test_auxiliary_model_in_the_users_cache_is_not_fetched(fake: FakeHub, tmp_path: Path) -> None:
    aux = AUXILIARIES[0]
    snapshot = tmp_path / "home/hub/models--facebook--w2v-bert-2.0/snapshots/abc"
    snapshot.mkdir(parents=True)
    for name in aux.files:
        (snapshot / name).write_bytes(fake.repos[aux.repo_id][name])
    folder = download_release(tmp_path / "voice", endpoint=fake.endpoint)
    assert "model.safetensors" not in fetched(fake)
    assert find_release(folder).w2v_bert == snapshot


def test_damaged_auxiliary_model_in_the_users_cache_is_not_trusted(fake: FakeHub, tmp_path: Path) -> None:
    aux = AUXILIARIES[0]
    snapshot = tmp_path / "home/hub/models--facebook--w2v-bert-2.0/snapshots/abc"
    snapshot.mkdir(parents=True)
    for name in aux.files:
        (snapshot / name).write_bytes(fake.repos[aux.repo_id][name][:-1] + b"?")
    folder = download_release(tmp_path / "voice", endpoint=fake.endpoint)
    assert find_release(folder).w2v_bert == folder / aux.place


def test_repository_that_changed_its_layout_is_reported(fake: FakeHub, tmp_path: Path) -> None:
    del fake.repos[MODEL_ID][GPT]
    with pytest.raises(DownloadError, match=r"IndexTeam/IndexTTS-2 on the hub has no file gpt\.pth"):
        download_release(tmp_path, endpoint=fake.endpoint)


def test_name_that_leaves_the_folder_is_refused(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos[MODEL_ID]["qwen0.6bemo4-merge/../../evil"] = b"!"
    with pytest.raises(DownloadError, match="must be a path inside"):
        download_release(tmp_path / "voice", include_qwen=True, endpoint=fake.endpoint)
    assert not (tmp_path / "evil").exists()


def test_unsupported_release_is_reported(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos[MODEL_ID]["config.yaml"] = b"version: 2.5\n"
    with pytest.raises(DownloadError, match=r"only release 2\.0 is supported"):
        download_release(tmp_path, endpoint=fake.endpoint)
