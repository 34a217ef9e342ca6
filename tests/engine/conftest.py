"""What tests of kernels share."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch


@pytest.fixture
def loops_of_loaded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter counts with arrays of one number, which numpy 2.4 no longer takes for a number."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
