"""Ways to change the files of a release that tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml


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
