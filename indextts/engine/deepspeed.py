"""DeepSpeed for the GPT of the plain path, as the public pipeline offers it (``use_deepspeed``); untried on a GPU so far.

DeepSpeed's injected kernels know Hugging Face's classes only, so the stack is handed over without them: what remains is its engine
around the same layers. The accelerated decoder, which is faster than both, does not use it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from typing import TypeVar

import torch
from torch import nn

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)
HINT = "using the normal path (pip install 'indextts2-lab[deepspeed]')"


def deepspeed_available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("deepspeed") is not None


def warn_without_deepspeed(stacklevel: int) -> None:
    """Say once that it is not."""
    warnings.warn(f"DeepSpeed was asked for but is not installed; {HINT}", stacklevel=stacklevel + 1)


def with_deepspeed(stack: M, dtype: torch.dtype) -> M:
    """``stack`` run by DeepSpeed's inference engine; the stack itself, after one log line, where that fails."""
    try:
        engine = importlib.import_module("deepspeed").init_inference(
            model=stack, tensor_parallel={"tp_size": 1}, dtype=dtype, replace_with_kernel_inject=False
        )
    except Exception as error:  # compilers, drivers and launchers fail in many ways
        logger.warning("DeepSpeed could not take the GPT over (%s); the normal path is used", error)
        return stack
    module: M = engine.module
    return module.eval()
