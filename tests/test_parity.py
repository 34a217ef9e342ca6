"""If this fails, the package no longer computes what the released IndexTTS2 computes."""

from pathlib import Path

import pytest

from tests.parity import check_file

GOLDENS = sorted(Path(__file__).with_name("golden").glob("*.json"))


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    checks = list(check_file(path))
    assert checks, "the golden compared nothing"
    failures = [f"{check.name}: error {check.error:.2e} > {check.tolerance:.0e} {check.detail}" for check in checks if not check.passed]
    assert not failures, "\n".join(failures)
