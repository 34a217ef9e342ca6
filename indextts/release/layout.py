"""What files a release consists of, and where they lie.

Names and places are those of model id ``IndexTeam/IndexTTS-2`` and of the four models it builds on. A ``.safetensors`` file
of the same stem is taken where the release has a ``.pth``, ``.pt`` or ``.bin``, so a small voice can be stored that way.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from indextts.config import ConfigError, IndexTTSConfig

MODEL_ID = "IndexTeam/IndexTTS-2"
CONFIG_NAME = "config.yaml"
GLOSSARY_NAME = "glossary.yaml"
LEXICON_NAME = "lexicon.txt.gz"
CACHE_NAME = "hf_cache"
BIGVGAN_CONFIG = "config.json"
BIGVGAN_GENERATOR = "bigvgan_generator.pt"


@dataclass(frozen=True)
class Auxiliary:
    """A model that the release builds on: its id on the hub, its files there, and its place under the model directory."""

    key: str  # the name in ``aux_paths``
    repo_id: str
    files: tuple[str, ...]  # names in the hub's repository
    place: str  # a folder, or the file itself if ``is_folder`` is false
    is_folder: bool = True
    optional: tuple[str, ...] = ()  # fetched with the others, not needed to run

    def local(self, name: str) -> str:
        """Where the hub's file ``name`` lies, relative to the model directory."""
        return f"{self.place}/{name}" if self.is_folder else self.place

    def missing(self, path: Path) -> list[str]:
        """Files that the folder (or file) ``path`` lacks; an empty file counts as missing."""
        if not self.is_folder:
            return [] if has_content(path) else [path.name]
        return [name for name in self.files if name not in self.optional and not has_content(path / name)]


AUXILIARIES = (
    Auxiliary(
        "w2v_bert",
        "facebook/w2v-bert-2.0",
        ("config.json", "preprocessor_config.json", "model.safetensors"),
        f"{CACHE_NAME}/w2v-bert-2.0",
        optional=("preprocessor_config.json",),
    ),
    Auxiliary(
        "semantic_codec", "amphion/MaskGCT", ("semantic_codec/model.safetensors",), f"{CACHE_NAME}/semantic_codec_model.safetensors", False
    ),
    Auxiliary("campplus", "funasr/campplus", ("campplus_cn_common.bin",), f"{CACHE_NAME}/campplus_cn_common.bin", False),
    Auxiliary("bigvgan", "nvidia/bigvgan_v2_22khz_80band_256x", (BIGVGAN_CONFIG, BIGVGAN_GENERATOR), f"{CACHE_NAME}/bigvgan"),
)


@dataclass(frozen=True)
class Release:
    """A complete set of files: every path exists.

    ``w2v_bert`` and ``bigvgan`` are folders. ``bigvgan`` (for a vocoder without weights), ``qwen_dir`` (the text-emotion classifier),
    ``glossary`` and ``lexicon`` are None when absent.
    """

    model_dir: Path
    cfg_path: Path
    config: IndexTTSConfig
    bpe_model: Path
    gpt: Path
    s2mel: Path
    w2v_stat: Path
    speaker_matrix: Path
    emotion_matrix: Path
    w2v_bert: Path
    semantic_codec: Path
    campplus: Path
    bigvgan: Path | None = None
    qwen_dir: Path | None = None
    glossary: Path | None = None
    lexicon: Path | None = None
    bundled: bool = False

    @property
    def w2v_bert_config(self) -> Path:
        """``config.json`` of the semantic encoder."""
        return self.w2v_bert / "config.json"

    @property
    def w2v_bert_weights(self) -> Path:
        """Weights of the semantic encoder."""
        return self.w2v_bert / "model.safetensors"

    @property
    def bigvgan_config(self) -> Path:
        """``config.json`` of the vocoder."""
        return self._bigvgan / BIGVGAN_CONFIG

    @property
    def bigvgan_weights(self) -> Path:
        """Weights of the vocoder's generator."""
        return present(self._bigvgan / BIGVGAN_GENERATOR)

    @property
    def _bigvgan(self) -> Path:
        if self.bigvgan is None:
            raise ValueError(f"the vocoder of {self.cfg_path} is {self.config.vocoder.name}, which has no files")
        return self.bigvgan

    @property
    def voices(self) -> list[Path]:
        """Reference clips that come with the weights; the first is the default voice, which ``inference.voice`` may name."""
        clips = (self.model_dir / "voices").glob("*.wav")
        return sorted(clips, key=lambda path: (path.stem != self.config.inference.voice, path.name))

    def files(self) -> dict[str, Path]:
        """Every file that synthesis reads, by a short name, in the order in which it is read."""
        return {
            "config": self.cfg_path,
            "bpe_model": self.bpe_model,
            **({"lexicon": self.lexicon} if self.lexicon else {}),
            "gpt": self.gpt,
            "s2mel": self.s2mel,
            "w2v_stat": self.w2v_stat,
            "speaker_matrix": self.speaker_matrix,
            "emotion_matrix": self.emotion_matrix,
            "w2v_bert_config": self.w2v_bert_config,
            "w2v_bert": self.w2v_bert_weights,
            "semantic_codec": self.semantic_codec,
            "campplus": self.campplus,
            **({"bigvgan_config": self.bigvgan_config, "bigvgan": self.bigvgan_weights} if self.bigvgan else {}),
        }


class MissingFilesError(FileNotFoundError):
    """A release that is absent or incomplete. ``missing`` names every file; the message says how to get them."""

    def __init__(self, message: str, missing: list[str]) -> None:
        super().__init__(message)
        self.missing = missing


def has_content(path: Path) -> bool:
    """True for a file that is there and not empty, under its own name or as ``.safetensors``."""
    found = present(path)
    return found.is_file() and found.stat().st_size > 0


def present(path: Path) -> Path:
    """``path``, or the ``.safetensors`` file of the same stem if only that exists."""
    if path.suffix in (".pth", ".pt", ".bin") and not path.is_file():
        other = path.with_suffix(".safetensors")
        if other.is_file():
            return other
    return path


def inside(model_dir: Path, relative: str, field: str) -> Path:
    """``model_dir / relative``; :class:`ConfigError` if ``relative`` would leave the model directory.

    A downloaded configuration must not name files elsewhere on the disk. Links inside the folder are followed: the hub's own
    cache consists of them.
    """
    posix, windows = PurePosixPath(relative), PureWindowsPath(relative)
    if not relative.strip() or posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts):
        raise ConfigError(f"{field} is {relative!r}; it must be a path inside the model directory, without '..'")
    return model_dir / relative


def download_command(folder: Path) -> str:
    """The command that fetches what ``folder`` lacks."""
    return f"indextts download --dir {shlex.quote(str(folder))}"
