"""Inputs that a fuzzing run found to go wrong once, by boundary."""

from __future__ import annotations

from typing import Any

CORPUS: list[tuple[str, Any]] = [
    ("script", ("[pause 1s]", [])),
    ("text", ("\ud800", 5, 0)),
]
