"""A listener's answers: buttons, and the same by key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets as T

__all__ = ["Votes"]


class Votes(anywidget.AnyWidget):
    """``options``: dicts with ``answer``, ``label`` and ``key`` (one letter). ``on_vote(answer)`` hears of an answer."""

    _esm = Path(__file__).with_name("votes.js").read_text(encoding="utf-8")
    options = T.List(T.Dict()).tag(sync=True)
    disabled = T.Bool(True).tag(sync=True)

    def __init__(self, on_vote: Callable[[str], object], **traits: Any) -> None:
        super().__init__(**traits)
        self._on_vote = on_vote
        self.on_msg(self._hear)

    def _hear(self, _: Any, message: dict[str, Any], __: Any) -> None:
        known = {option["answer"] for option in self.options}
        if message.get("type") == "vote" and message.get("answer") in known and not self.disabled:
            self._on_vote(message["answer"])
