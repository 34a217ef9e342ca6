"""Import path of the optimisation guide, and its two live cache settings.

The engine reads ``MAX_CACHE_SIZE_MB`` and ``CACHE_CHECK_INTERVAL`` from this module at every check, so assigning to them
changes the next inference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from indextts.engine.batching import group_sentences_by_length

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

__all__ = ["CACHE_CHECK_INTERVAL", "MAX_CACHE_SIZE_MB", "IndexTTS2", "group_sentences_by_length"]

MAX_CACHE_SIZE_MB: float = 2048
"""Reference prompts, KV buffers and graph pools together may hold this many MiB between inferences.

Where the buffers of the calls at hand alone need more, which a warning says, they stay, and prompts get a twentieth of it.
"""

CACHE_CHECK_INTERVAL: int = 5
"""The size is checked every so many inferences."""


def __getattr__(name: str) -> Any:
    # Late, because the pipeline's own modules read the two settings from here.
    if name == "IndexTTS2":
        from indextts.pipeline import IndexTTS2

        return IndexTTS2
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
