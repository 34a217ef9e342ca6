"""Download a release: resumable, checked against the hub's checksums, and never half there.

A file is written under a temporary name (``NAME.HASH.part``) and takes its own name only when its length and checksum are
right. An interrupted download goes on where it stopped; files that are there and right are left alone.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indextts.config import ConfigError, IndexTTSConfig, load_config
from indextts.release.find import find_auxiliary, find_release
from indextts.release.hub import Hub, RemoteFile, file_hash, is_offline
from indextts.release.layout import AUXILIARIES, CONFIG_NAME, MODEL_ID, MissingFilesError, download_command, inside

logger = logging.getLogger(__name__)
Progress = Callable[[float, str], Any]

_SPARE_BYTES = 64 * 2**20  # left free on the disk, for whoever else writes there


class DownloadError(RuntimeError):
    """A download that could not be finished; the message says why and how to go on. What was fetched is kept."""


@dataclass(frozen=True)
class _Job:
    remote: RemoteFile
    target: Path

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.{self.remote.digest[:12]}.part")

    @property
    def bytes_left(self) -> int:
        return self.remote.size - (self.part.stat().st_size if self.part.is_file() else 0)


def download_release(
    folder: str | os.PathLike[str] = "checkpoints",
    *,
    include_qwen: bool = False,
    progress: Progress | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch model id ``IndexTeam/IndexTTS-2`` and the models it builds on into ``folder``; return the folder.

    ``include_qwen``: also the text-emotion classifier (1.2 GB). ``progress``: called with (fraction of all bytes, message).
    ``endpoint``: address of the hub; default ``HF_ENDPOINT`` or huggingface.co. Calling it again checks every file by its
    checksum and fetches only what is missing or wrong. Auxiliary models in the user's Hugging Face cache are used there.

    Errors: :class:`DownloadError` if the hub is out of reach or offline mode is set, the disk is too small, or a checksum
    stays wrong after a second try.
    """
    folder = Path(folder).expanduser()
    hub = Hub(endpoint)
    if is_offline():
        return _offline(folder, include_qwen)
    report = progress or (lambda fraction, message: None)
    report(0.0, "asking the hub for the list of files")
    with _explained(folder, hub):
        wanted = _jobs(hub, folder, include_qwen)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = []
        for index, job in enumerate(wanted):
            report(0.0, f"checking {job.target.name} ({index + 1} of {len(wanted)})")
            if not _is_right(job.target, job.remote):
                jobs.append(job)
        _check_space(folder, jobs)
        total = sum(job.remote.size for job in jobs) or 1
        done = 0
        for job in sorted(jobs, key=lambda job: job.remote.size):
            _fetch(hub, job, lambda got, job=job, done=done: report(min((done + got) / total, 1.0), job.target.name))  # type: ignore[misc]
            done += job.remote.size
    try:
        load_config(folder / CONFIG_NAME)
    except ConfigError as error:
        raise DownloadError(f"the downloaded release cannot be used: {error}") from error
    report(1.0, "the release is complete")
    return folder


def _offline(folder: Path, include_qwen: bool) -> Path:
    """Accept a folder that is complete already; its checksums cannot be asked for."""
    try:
        missing = [IndexTTSConfig().qwen_emo_path] if find_release(folder).qwen_dir is None and include_qwen else []
    except MissingFilesError as error:
        missing = error.missing
    if missing:
        raise DownloadError(
            f"HF_HUB_OFFLINE is set, so nothing can be downloaded; {folder} lacks: {', '.join(missing)}. "
            f"Unset it and run again: {download_command(folder)}"
        )
    logger.info("%s has every file; offline, so checksums were not compared", folder)
    return folder


def _jobs(hub: Hub, folder: Path, include_qwen: bool) -> list[_Job]:
    """Every file that belongs into ``folder``, less the auxiliary models that lie ready in another cache."""
    names = IndexTTSConfig()
    release = [CONFIG_NAME, names.dataset.bpe_model, names.gpt_checkpoint, names.s2mel_checkpoint]
    release += [names.w2v_stat, names.emo_matrix, names.spk_matrix]
    listing = hub.files(MODEL_ID)
    if include_qwen:
        prefix = names.qwen_emo_path.rstrip("/") + "/"
        release += [name for name in listing if name.startswith(prefix)] or [prefix + "model.safetensors"]
    jobs = [_Job(_entry(listing, MODEL_ID, name), inside(folder, name, f"a file name of {MODEL_ID}")) for name in release]
    for aux in AUXILIARIES:
        listing = hub.files(aux.repo_id)
        remotes = [_entry(listing, aux.repo_id, name) for name in aux.files if name in listing or name not in aux.optional]
        elsewhere = find_auxiliary(aux, folder)
        if elsewhere is not None and elsewhere != folder / aux.place:
            cached = [
                (elsewhere / remote.name if aux.is_folder else elsewhere, remote) for remote in remotes if remote.name not in aux.optional
            ]
            if all(_is_right(path, remote) for path, remote in cached):
                logger.info("%s is used from %s", aux.repo_id, elsewhere)
                continue
        jobs += [_Job(remote, folder / aux.local(remote.name)) for remote in remotes]
    return jobs


def _entry(listing: dict[str, RemoteFile], repo_id: str, name: str) -> RemoteFile:
    if name not in listing:
        raise DownloadError(f"{repo_id} on the hub has no file {name}; the layout there must have changed")
    return listing[name]


def _is_right(path: Path, remote: RemoteFile) -> bool:
    """True if the file has the hub's size and checksum."""
    return path.is_file() and path.stat().st_size == remote.size and file_hash(path, remote) == remote.digest


def _check_space(folder: Path, jobs: list[_Job]) -> None:
    needed = sum(job.bytes_left for job in jobs)
    free = shutil.disk_usage(folder).free
    if jobs and needed + _SPARE_BYTES > free:
        raise DownloadError(f"{needed / 1e9:.2f} GB are still to be fetched, but the disk of {folder} has only {free / 1e9:.2f} GB free")


def _fetch(hub: Hub, job: _Job, report: Callable[[int], Any]) -> None:
    """Fetch one file, going on from what an earlier run left; a wrong checksum gets one new try from the start."""
    job.target.parent.mkdir(parents=True, exist_ok=True)
    for old in job.target.parent.glob(f"{job.target.name}.*.part"):
        if old != job.part or job.bytes_left < 0:
            old.unlink()  # of another version of the file
    for attempt in (1, 2):
        hub.fetch(job.remote, job.part, report)
        if _is_right(job.part, job.remote):
            job.part.replace(job.target)
            logger.info("%s: %d bytes, checksum right", job.target, job.remote.size)
            return
        job.part.unlink(missing_ok=True)
        logger.warning("%s arrived with a wrong checksum (try %d of 2)", job.target.name, attempt)
    raise DownloadError(
        f"{job.remote.name} of {job.remote.repo_id} arrived with a wrong checksum twice; the network or the mirror damages it"
    )


@contextmanager
def _explained(folder: Path, hub: Hub) -> Iterator[None]:
    """Turn what the hub's client and the disk raise into one :class:`DownloadError` that says how to go on."""
    again = f"What was fetched is kept; to go on: {download_command(folder)}"
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:  # the client's exceptions differ between its versions and the HTTP libraries under them
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DownloadError(f"the disk of {folder} is full. {again}") from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise DownloadError(f"{folder} cannot be written to: {cause}") from error
        raise DownloadError(
            f"the hub at {hub.endpoint} cannot be used ({type(error).__name__}: {cause}). "
            f"Check the network, or name a mirror in HF_ENDPOINT. {again}"
        ) from error
