"""Import of the judges, which are no part of the base installation."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

INSTALL = "pip install 'indextts2-lab[train]'"
_ALONE = {"resemblyzer": "pip install --no-deps resemblyzer && pip install webrtcvad-wheels librosa"}  # its own list needs a compiler


def needed(module: str, package: str | None = None) -> Any:
    """The imported ``module``. ``ImportError`` that names the command which installs ``package``."""
    package = package or module.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what these packages have to say about theirs
            return importlib.import_module(module)
    except ImportError as error:
        alone = f" (or, without a compiler: {_ALONE[package]})" if package in _ALONE else ""
        raise ImportError(f"indextts evaluate needs {package}: {INSTALL}{alone}. [{error}]") from error
