"""What an engine is made of: files, sizes, dates, parameters by module, vocabulary, number format and device of every stage."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from indextts.pipeline import IndexTTS2

MB = 1024 * 1024
_ROLES = {
    "gpt": ("GPT", "text and voice to codes"),
    "s2mel": ("S2Mel", "codes to mel, by flow matching"),
    "vocoder": ("Vocoder", "mel to wave"),
    "semantic_encoder": ("Semantic encoder", "reference clip to features"),
    "semantic_codec": ("Semantic codec", "features to codes and back"),
    "campplus": ("Speaker encoder", "reference clip to style vector"),
    "emotion": ("Emotion matrices", "eight emotions to a vector"),
}


@dataclass(frozen=True)
class FileFact:
    """One file of the release; ``modified`` is local time."""

    role: str
    path: str
    size_mb: float
    modified: str


@dataclass(frozen=True)
class ModuleFact:
    """One network as it is loaded: parameters and buffers, their MiB, number formats (most frequent first) and device."""

    name: str
    label: str
    what: str
    parameters: int
    size_mb: float
    dtypes: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class ModelCard:
    """The whole card. ``source`` is a folder, or says that the weights are random."""

    name: str
    version: str
    source: str
    settings: dict[str, Any]
    vocabulary: dict[str, int]
    audio: dict[str, Any]
    files: tuple[FileFact, ...]
    modules: tuple[ModuleFact, ...]

    @property
    def parameters(self) -> int:
        """Of all modules."""
        return sum(module.parameters for module in self.modules)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**asdict(self), "parameters": self.parameters}


def model_card(tts: IndexTTS2) -> ModelCard:
    """Describe a loaded engine."""
    gpt, stages = tts.cfg.gpt, tts._stages
    modules = tuple(_module(name, getattr(stages, name)) for name in _ROLES if getattr(stages, name, None) is not None)
    release = tts.release
    return ModelCard(
        name=str(tts.name),
        version=str(tts.cfg.version),
        source="random weights, no files" if release is None else str(release.model_dir),
        settings={
            "device": str(tts.device),
            "precision": tts.precision,
            "attention": tts.attention,
            "path": "accelerated" if tts.use_accel else "plain",
        },
        vocabulary={
            "text pieces": len(tts.tokenizer),
            "text ids of the GPT": gpt.number_text_tokens,
            "codes": tts.cfg.semantic_codec.codebook_size,
            "longest text (tokens)": gpt.max_text_tokens,
            "most codes of a segment": gpt.max_mel_tokens,
        },
        audio={"sample rate (Hz)": tts.sample_rate, "codes per second": 50, "mel bands": tts.cfg.s2mel.DiT.in_channels},
        files=() if release is None else tuple(_files(release)),
        modules=modules,
    )


def _module(name: str, module: nn.Module) -> ModuleFact:
    label, what = _ROLES[name]
    tensors = list({id(t): t for t in [*_parameters(module), *_buffers(module)]}.values())
    formats: Counter[str] = Counter()
    for tensor in tensors:
        formats[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return ModuleFact(
        name,
        label,
        what,
        sum(t.numel() for t in _parameters(module)) or sum(t.numel() for t in tensors),
        sum(t.numel() * t.element_size() for t in tensors) / MB,
        tuple(kind for kind, _ in formats.most_common()),
        str(tensors[0].device) if tensors else "none",
    )


def _parameters(module: Any) -> list[Any]:
    return list(module.parameters()) if hasattr(module, "parameters") else []


def _buffers(module: Any) -> list[Any]:
    import torch

    if hasattr(module, "buffers"):
        return list(module.buffers())
    return [value for value in vars(module).values() if isinstance(value, torch.Tensor)]


def _files(release: Any) -> list[FileFact]:
    found, seen = [], set()
    for entry in fields(release):
        path = getattr(release, entry.name)
        if entry.name == "model_dir" or not isinstance(path, Path) or not path.exists():
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file() or file in seen:
                continue
            seen.add(file)
            status = file.stat()
            shown = file.relative_to(release.model_dir) if file.is_relative_to(release.model_dir) else file
            stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
            found.append(FileFact(entry.name.replace("_", " "), str(shown), status.st_size / MB, stamp))
    return found
