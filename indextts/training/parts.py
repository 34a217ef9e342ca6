"""Parts: what a training stage leaves behind. One safetensors file each, half precision, with a little metadata."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)

SUFFIX = ".part.safetensors"
_LARGEST_HALF = 60_000.0
NAMES = ("encoder", "codec", "speaker", "gpt", "s2mel", "vocoder", "discriminator")


def part_path(folder: Path, name: str) -> Path:
    """Where part ``name`` lies in ``folder``."""
    return folder / f"{name}{SUFFIX}"


def save_part(folder: Path, name: str, tensors: Mapping[str, Tensor], **facts: Any) -> Path:
    """Write a part, weights as float16 and statistics as float32; the old file is replaced only when the new one is complete."""
    from safetensors.torch import save_file

    stored = {key: stored_form(key, value) for key, value in tensors.items()}
    path = part_path(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    save_file(stored, unfinished, metadata={"facts": json.dumps(facts)})
    unfinished.replace(path)
    return path


def stored_form(key: str, value: Tensor) -> Tensor:
    """``value`` on the CPU, halved in width unless it is a statistic, an integer, or too large for 16 bits."""
    value = value.detach().cpu().contiguous()
    exact = not value.is_floating_point() or key.endswith(("running_mean", "running_var", ".mean", ".var"))
    if exact or (value.numel() and float(value.abs().max()) > _LARGEST_HALF):
        return value
    return value.half()


def load_part(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (floats as float32) and facts of a part. ``FileNotFoundError`` if the stage has not run."""
    from safetensors import safe_open

    path = part_path(folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"no part {name!r} in {folder}: run that stage first")
    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}, facts


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below ``prefix.``, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def restore(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Load ``name.key`` tensors into the modules; position tables and constants that a part leaves out keep their values."""
    for name, module in modules.items():
        missing, unexpected = module.load_state_dict(under(tensors, name), strict=False)
        lost = [key for key in missing if not key.endswith((".pe", "num_batches_tracked"))]
        if lost or unexpected:
            raise RuntimeError(f"the part does not fit {name}: missing {lost[:5]}, unexpected {unexpected[:5]}")


def state_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """``name.key`` to tensor for all parameters and statistics, without sinusoid tables."""
    return {
        f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items() if not key.endswith(".pe")
    }
