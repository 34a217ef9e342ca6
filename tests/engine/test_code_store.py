"""Compiled kernels on disk: found again, and never wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from indextts.engine.kernels import code_store, cuda_source


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(code_store.VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def made(parts: list[str], code: bytes = b"code") -> tuple[bytes, int]:
    """What is remembered, and how often it had to be made."""
    calls = []
    found = code_store.remembered(parts, lambda: calls.append(1) or code)  # type: ignore[func-returns-value]
    return found, len(calls)


def test_made_once_for_the_same_parts(folder: Path) -> None:
    assert made(["source", "-DA=1"]) == (b"code", 1)
    assert made(["source", "-DA=1"], b"other") == (b"code", 0)
    assert made(["source", "-DA=2"], b"other") == (b"other", 1)
    assert made(["source-DA=1", ""], b"third") == (b"third", 1)  # parts do not run into each other
    assert {path.suffix for path in folder.iterdir()} == {".cubin"}


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: content[:10], lambda content: b"", lambda c: c[:-1] + b"x"]
)
def test_a_damaged_file_is_made_again(folder: Path, damage: object) -> None:
    made(["source"])
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert made(["source"]) == (b"code", 1)
    assert made(["source"]) == (b"code", 0)


def test_off_and_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("a file where the folder should be")
    assert made(["source"]) == made(["source"]) == (b"code", 1)
    monkeypatch.setenv(code_store.VARIABLE, "off")
    assert code_store.folder() is None
    assert made(["source"]) == (b"code", 1)
    monkeypatch.delenv(code_store.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    assert code_store.folder() == folder.parent / "indextts" / "kernels"


def test_a_failure_leaves_nothing(folder: Path) -> None:
    def refuse() -> bytes:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        code_store.remembered(["source"], refuse)
    assert not folder.exists()


def test_the_compiler_is_asked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    defines = (("HALF", 0),)
    monkeypatch.setattr(cuda_source, "source", lambda file: 'extern "C" __global__ void twice(float* x) { *x *= 2.0f + HALF; }')
    first = cuda_source.compiled("twice.cu", "sm_90", defines)
    monkeypatch.setattr(cuda_source, "_compile", lambda *_: pytest.fail("compiled again"))
    assert cuda_source.compiled("twice.cu", "sm_90", defines) == first
    monkeypatch.setattr(cuda_source, "_compile", lambda *_: b"other")
    assert cuda_source.compiled("twice.cu", "sm_80", defines) == b"other"
