"""IndexTTS2 text-to-speech for notebooks.

Importing this package loads nothing heavy: ``IndexTTS2`` and ``GPUConfig`` are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2
    from indextts.utils.gpu_config import GPUConfig

__version__ = "0.1.0"
__all__ = ["GPUConfig", "IndexTTS2", "__version__"]

_HOMES = {"IndexTTS2": "indextts.pipeline", "GPUConfig": "indextts.utils.gpu_config"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
