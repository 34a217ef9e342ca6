"""What the panels' tests share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.widgets.fake import FakeTTS

pytest.importorskip("ipywidgets", reason="the lab extra is not installed")


@pytest.fixture
def tts() -> FakeTTS:
    return FakeTTS()


@pytest.fixture
def session(tts: FakeTTS) -> Iterator[Any]:
    from widgets.session import Session

    made = Session(tts)  # type: ignore[arg-type]
    yield made
    tts.hold.set()
    made.close()


class Kernel:
    """An event loop in a thread of its own, as a notebook's kernel has one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def cell(self, function: Callable[[], Any]) -> Any:
        """Run like a cell: on the loop's thread, within the loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def close(self) -> None:
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture(scope="session")
def small_engine() -> Iterator[Any]:
    """A real engine, tiny and with random weights, for panels that look inside it. Tests leave its switches as they found them."""
    from indextts import IndexTTS2

    with IndexTTS2.from_random("small", device="cpu") as engine:
        yield engine


@pytest.fixture
def lab_session(small_engine: Any) -> Iterator[Any]:
    from widgets.session import Session

    made = Session(small_engine)
    yield made
    made.close()
