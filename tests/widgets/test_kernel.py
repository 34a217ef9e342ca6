"""A real kernel: runs go on beside cells, an interrupt ends a wait and nothing else, and no thread prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = f"""
import sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from tests.widgets.fake import FakeTTS, VOICE
from widgets import Session
tts = FakeTTS()
tts.warns = "the model was cut short"
session = Session(tts)
heard = []
def speak():
    return session.render(
        spk_audio_prompt=VOICE, text="Hello.",
        on_done=lambda record: heard.append(("done", threading.current_thread() is threading.main_thread())),
        on_error=lambda error: heard.append((type(error).__name__, threading.current_thread() is threading.main_thread())),
    )
"""


class Notebook:
    """A kernel, and what its cells write."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client, self.written = manager, client, ""

    def start(self, code: str) -> str:
        message: str = self.client.execute(code)
        return message

    def finish(self, message: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while (reply := self.client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != message:
            assert time.monotonic() < deadline
        self._collect()
        content: dict[str, Any] = reply["content"]
        return content

    def cell(self, code: str) -> dict[str, Any]:
        content = self.finish(self.start(code))
        assert content["status"] == "ok", content
        return content

    def value(self, expression: str) -> str:
        message: str = self.client.execute("", user_expressions={"value": expression})
        result: str = self.finish(message)["user_expressions"]["value"]["data"]["text/plain"]
        return result

    def _collect(self) -> None:
        while self.client.iopub_channel.msg_ready():
            message = self.client.get_iopub_msg(timeout=1)
            if message["msg_type"] == "stream":
                self.written += message["content"]["text"]


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager = manager_module.KernelManager()
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel(extra_arguments=["--HistoryManager.enabled=False"])
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_runs_beside_cells_and_through_interrupts(notebook: Notebook) -> None:
    notebook.cell(SETUP)
    notebook.cell("tts.hold.clear(); task = speak()")
    assert notebook.value("1 + 1") == "2", "the kernel must be free while a run is in progress"
    assert notebook.value("session.busy") == "True"

    waiting = notebook.start("task.result()")
    time.sleep(0.5)
    notebook.manager.interrupt_kernel()
    content = notebook.finish(waiting)
    assert (content["status"], content["ename"]) == ("error", "KeyboardInterrupt")

    notebook.cell("task.wait(10); tts.hold.set()")
    assert notebook.value("task.state") == "'cancelled'"
    notebook.cell("again = speak(); again.wait(10)")
    assert notebook.value("again.state") == "'done'"

    notebook.manager.interrupt_kernel()  # while no cell runs
    notebook.cell("third = speak(); third.wait(10)")
    assert notebook.value("third.state") == "'done'"
    assert notebook.value("heard") == "[('Cancelled', True), ('done', True), ('done', True)]", "callbacks belong to the main thread"
    assert notebook.value("third.notices") == "['the model was cut short']", "every time, not once a session"
    assert notebook.written == "", "threads must not print"
