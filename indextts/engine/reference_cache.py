"""Everything computed from a reference clip, kept per content: several voices stay warm, the least recently used one goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor

MB = 1024 * 1024


@dataclass
class SpeakerPrompt:
    """What the speaker's clip contributes; M mel frames, T semantic frames."""

    features: Tensor  # (1, T, 1024)  semantic features
    style: Tensor  # (1, 192)      CAM++ embedding
    condition: Tensor  # (1, M, 512)   quantised features, length-regulated to mel frames
    mel: Tensor  # (1, 80, M)    reference mel
    latents: Tensor  # (1, 32, 1280) the GPT's speaker latents
    emotion: Tensor | None = None  # (1, 1280) e(features), from the first merge with another emotion on


@dataclass
class EmotionPrompt:
    """What a clip contributes as emotion reference."""

    features: Tensor  # (1, T, 1024)
    vector: Tensor  # (1, 1280)     e(features), before the merge


Prompt = TypeVar("Prompt", SpeakerPrompt, EmotionPrompt)


def tensor_bytes(record: Any) -> int:
    """Bytes held by the tensors of a dataclass."""
    values = (getattr(record, f.name) for f in fields(record))
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))


class ReferenceCache:
    """Least-recently-used cache of prompts, keyed by (role, content of the clip).

    Not limited by itself: the engine asks it to :meth:`evict` down to the live limit at its own interval.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str], SpeakerPrompt | EmotionPrompt] = OrderedDict()
        self._lock = threading.Lock()
        self.evictions = 0

    def get(self, role: str, key: str, make: Callable[[], Prompt]) -> tuple[Prompt, bool]:
        """The entry, made if absent; and whether it was there."""
        with self._lock:
            if (role, key) in self._entries:
                self._entries.move_to_end((role, key))
                return self._entries[role, key], True  # type: ignore[return-value]
        entry = make()
        with self._lock:
            self._entries[role, key] = entry
        return entry, False

    def holds(self, role: str, key: str) -> bool:
        """Whether :meth:`get` would find the entry."""
        with self._lock:
            return (role, key) in self._entries

    def latest(self, role: str) -> SpeakerPrompt | EmotionPrompt | None:
        """The most recently used entry of ``role`` (``"speaker"`` or ``"emotion"``)."""
        with self._lock:
            return next((entry for (r, _), entry in reversed(self._entries.items()) if r == role), None)

    def sizes_mb(self) -> dict[str, float]:
        """Megabytes by role."""
        with self._lock:
            sizes: dict[str, float] = {}
            for (role, _), entry in self._entries.items():
                sizes[role] = sizes.get(role, 0.0) + tensor_bytes(entry) / MB
            return sizes

    @property
    def memory_mb(self) -> float:
        """Megabytes held by all entries."""
        return sum(self.sizes_mb().values())

    def evict(self, limit_mb: float) -> int:
        """Drop least recently used entries until at most ``limit_mb`` are held; returns how many went."""
        dropped = 0
        with self._lock:
            held = sum(tensor_bytes(entry) for entry in self._entries.values())
            while self._entries and held > limit_mb * MB:
                _, entry = self._entries.popitem(last=False)
                held -= tensor_bytes(entry)
                dropped += 1
            self.evictions += dropped
        return dropped

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
