"""A real browser against real servers. Set INDEXTTS_SCREENSHOTS to a folder to have every panel photographed there."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
START_S = 120.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")  # no longer: while it is open, playwright's event loop looks like a kernel's to the panels of other tests
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--mute-audio"]
        )
        yield made
        made.close()


class Server:
    """A server process with its log, ended with its whole group."""

    def __init__(self, command: list[str], log: Path, cwd: Path, **environment: str) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
            )

    def wait_for(self, ready: Callable[[], Any]) -> Any:
        """Whatever ``ready()`` returns once it is true. Fails, with the log, if the process ends or takes too long."""
        deadline = time.monotonic() + START_S
        while not (found := ready()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not come up:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        return found

    def children(self) -> list[int]:
        """The processes it has started that still run: its kernels."""
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(number) for path in lists for number in path.read_text().split()]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """JupyterLab on an empty folder: (address, token, folder)."""
    pytest.importorskip("jupyterlab", reason="the lab extra is not installed")
    folder, settings = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("settings")
    quiet = settings / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    port, token = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True"]
    options = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    server = Server(
        [*command, *options],
        folder.parent / "jupyter.log",
        folder,
        JUPYTER_TOKEN=token,
        JUPYTER_CONFIG_DIR=str(settings),
        JUPYTERLAB_SETTINGS_DIR=str(settings),
    )
    address = f"http://127.0.0.1:{port}"
    server.wait_for(lambda: status_of(f"{address}/api?token={token}") == 200)
    yield address, token, folder
    server.stop()


@pytest.fixture(scope="session")
def photographs() -> Path | None:
    folder = os.environ.get("INDEXTTS_SCREENSHOTS")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)
