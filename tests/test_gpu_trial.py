"""If this fails, the next hour on a GPU goes into mending the script that was to use it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from tests.gpu_trial import SECTIONS, main


@pytest.mark.slow
def test_every_section_runs_where_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        report = main(["--size", "small", "--codes", "6", "--json", str(tmp_path / "trial.json")])
    assert report["sections"].keys() == SECTIONS.keys()
    assert not [row for rows in report["sections"].values() for row in rows if "failure" in row]
    assert json.loads((tmp_path / "trial.json").read_text(encoding="utf-8")) == report
    assert "step_ms" in capsys.readouterr().out
