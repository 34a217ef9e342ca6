"""What the tests of the synthesis panel share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from widgets import SynthesisPanel

TONE = (np.sin(np.arange(22050 * 2) / 9) * 8000).astype(np.int16)


def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def generate(panel: SynthesisPanel) -> None:
    task = panel.generate()
    assert task is not None, panel.error_text
    assert task.wait(10)
    until(lambda: panel.state != "working")


def send(drop: Any, name: str, data: bytes, size: int | None = None) -> None:
    """As the browser sends it: announced, then in pieces."""
    drop._hear(drop, {"type": "begin", "id": "1", "name": name, "size": len(data) if size is None else size}, [])
    for at in range(0, len(data), 50_000):
        drop._hear(drop, {"type": "piece", "id": "1"}, [memoryview(data[at : at + 50_000])])
