"""Check the files of a release for damage without loading them: sizes, headers, truncation; on request every byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from indextts.config import ConfigError, load_config
from indextts.config_vocoder import load_bigvgan_config
from indextts.release.find import hub_caches
from indextts.release.headers import check_checkpoint
from indextts.release.layout import Release, download_command
from indextts.text.lexicon import Lexicon


@dataclass(frozen=True)
class Finding:
    """Something wrong with one file, and what to do about it."""

    path: Path
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}. {self.remedy}"


def verify_release(release: Release, deep: bool = False) -> list[Finding]:
    """Problems of the files of ``release``; an empty list means that none was found.

    The quick check reads headers and compares sizes, so it finds truncated files, error pages saved under a model's name and
    unreadable configurations within milliseconds. ``deep`` reads every byte (checksums where the format has them) and puts
    every checkpoint into its model: as long, and about as much memory, as loading the release.
    """
    findings = []
    for name, path in release.files().items():
        problem = _check(name, path, deep)
        if problem:
            findings.append(Finding(path, problem, _remedy(release, path)))
    if release.qwen_dir is not None:
        path = release.qwen_dir / "model.safetensors"
        problem = check_checkpoint(path, deep)
        if problem:
            findings.append(Finding(path, problem, _remedy(release, path)))
    if deep and not findings:
        findings = list(_load_everything(release))
    return findings


def _check(name: str, path: Path, deep: bool) -> str | None:
    if name == "config":
        return _unreadable(load_config, path)
    if name == "bigvgan_config":
        return _unreadable(load_bigvgan_config, path)
    if name == "w2v_bert_config":
        return _unreadable(_read_json, path)
    if name == "bpe_model":
        return _check_tokenizer(path)
    if name == "lexicon":
        return _unreadable(Lexicon.load, path)
    return check_checkpoint(path, deep)


def _unreadable(read: Callable[[Path], object], path: Path) -> str | None:
    try:
        read(path)
    except (OSError, ConfigError, ValueError) as error:
        return f"it cannot be read ({error})"
    return None


def _read_json(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


def _check_tokenizer(path: Path) -> str | None:
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes()).get_piece_size()
    except (OSError, RuntimeError) as error:
        return f"this is not a SentencePiece model ({error})"
    return None if pieces else "the tokenizer has no pieces"


def _load_everything(release: Release) -> Iterator[Finding]:
    from indextts.models.weights import CheckpointError
    from indextts.release import checkpoints

    loaders = {
        release.gpt: checkpoints.load_gpt,
        release.s2mel: checkpoints.load_s2mel,
        release.w2v_bert_weights: checkpoints.load_semantic_encoder,
        release.semantic_codec: checkpoints.load_semantic_codec,
        release.campplus: checkpoints.load_campplus,
        **({release.bigvgan_weights: checkpoints.load_bigvgan} if release.bigvgan else {}),
        release.emotion_matrix: checkpoints.load_emotion_matrices,
    }
    for path, load in loaders.items():
        try:
            load(release)
        except (CheckpointError, ConfigError) as error:
            yield Finding(path, str(error), _remedy(release, path))


def _remedy(release: Release, path: Path) -> str:
    if release.bundled:
        return "Install the package again"
    if any(path.is_relative_to(folder) for folder in (release.model_dir, *hub_caches(release.model_dir))):
        return f"To fetch it again: {download_command(release.model_dir)}"
    return "Replace it with a good copy"
