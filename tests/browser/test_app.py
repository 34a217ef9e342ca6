"""``indextts app``: the same panels as a page of their own, behind a token."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import Server, free_port, status_of
from tests.browser.pages import TABS, LabPage


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("voila", reason="the lab extra is not installed")
    folder = tmp_path_factory.mktemp("app")
    command = [sys.executable, "-m", "indextts.cli", "app", "--random-weights", "--device", "cpu", "--no-browser"]
    made = Server([*command, "--port", str(free_port())], folder / "app.log", folder, JUPYTER_CONFIG_DIR=str(folder / "config"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def address(server: Server) -> str:
    found = server.wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", server.log.read_text()))
    server.wait_for(lambda: status_of(found.group().partition("?")[0]) != 0)
    return str(found.group())


def test_nothing_without_the_token(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address.partition("?")[0])
    assert page.locator(".itl-tabs").count() == 0
    assert "login" in page.url or "403" in page.content()
    page.close()


@pytest.fixture(scope="module")
def app(browser: Any, address: str) -> Iterator[LabPage]:
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    made = LabPage(page)
    page.goto(address, wait_until="commit")
    page.locator(".itl-tabs").first.wait_for()
    yield made
    page.close()


def test_the_app_speaks_and_measures(app: LabPage) -> None:
    app.generate("One two three.")
    assert app.heard()["seconds"] > 0.2
    app.tab("Timing")
    app.wait_for_figure("figures.length === 2 && figures[0].lengths[0] === 1 && figures[0].drawn > 0")
    app.watch_memory()


def test_the_app_switches_precision_and_compares_blindly(app: LabPage) -> None:
    app.tab("Switches")
    app.button("bfloat16").click()
    app.header("bf16")
    app.generate("One two three.")
    app.listen_to_the_reveal()


def test_the_app_gives_a_long_run_up(app: LabPage, photographs: Path | None) -> None:
    app.cancel_a_long_run()
    if photographs is not None:
        for name in TABS:
            app.tab(name)
            app.page.wait_for_timeout(800)
            app.photograph(photographs, f"app-{name.replace(' ', '-').lower()}")
    assert app.problems == []
    assert app.strangers == [], "nothing comes from elsewhere"


def test_the_app_ends_with_its_kernels(app: LabPage, server: Server) -> None:
    kernels = server.children()
    assert kernels, "a page has a kernel of its own"
    app.page.close()
    server.stop()
    assert server.process.returncode == 0
    assert [number for number in kernels if Path(f"/proc/{number}/cmdline").exists()] == []
