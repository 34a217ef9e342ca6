"""What ``torch.compile`` has cost so far, and where it keeps its results for the next process."""

from __future__ import annotations

import os
import tempfile
from typing import Any


def compile_report() -> dict[str, Any]:
    """``compile_s``: seconds this process has spent compiling; ``compile_cache``: the folder of compiled kernels."""
    from torch._dynamo.utils import compilation_time_metrics

    spent = sum(sum(times) for name, times in compilation_time_metrics.items() if name in ("_compile.compile_inner", "compile_inner"))
    return {"compile_s": float(spent), "compile_cache": cache_folder()}


def cache_folder() -> str:
    """Set by ``TORCHINDUCTOR_CACHE_DIR``; a start with a filled folder compiles in a fraction of the time."""
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir
    except ImportError:
        return os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    return cache_dir()
