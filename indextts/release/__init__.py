"""The files of a release: find, check, load, download, or make up with random weights.

Finding, checking and downloading work without torch; what needs it is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from indextts.release.download import DownloadError, download_release
from indextts.release.find import bundled_voice, find_release
from indextts.release.layout import AUXILIARIES, MODEL_ID, MissingFilesError, Release
from indextts.release.verify import Finding, verify_release

if TYPE_CHECKING:
    from indextts.models.weights import CheckpointError
    from indextts.release.checkpoints import (
        load_bigvgan,
        load_campplus,
        load_emotion_matrices,
        load_gpt,
        load_models,
        load_s2mel,
        load_semantic_codec,
        load_semantic_encoder,
    )
    from indextts.release.random_release import random_models, write_random_release
    from indextts.release.sizes import SystemSizes, release_config, small_config

__all__ = [
    "AUXILIARIES",
    "MODEL_ID",
    "CheckpointError",
    "DownloadError",
    "Finding",
    "MissingFilesError",
    "Release",
    "SystemSizes",
    "bundled_voice",
    "download_release",
    "find_release",
    "load_bigvgan",
    "load_campplus",
    "load_emotion_matrices",
    "load_gpt",
    "load_models",
    "load_s2mel",
    "load_semantic_codec",
    "load_semantic_encoder",
    "random_models",
    "release_config",
    "small_config",
    "verify_release",
    "write_random_release",
]

_HOME = {
    "CheckpointError": "indextts.models.weights",
    "random_models": "indextts.release.random_release",
    "write_random_release": "indextts.release.random_release",
    "SystemSizes": "indextts.release.sizes",
    "release_config": "indextts.release.sizes",
    "small_config": "indextts.release.sizes",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME.get(name, "indextts.release.checkpoints")), name)
