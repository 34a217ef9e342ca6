"""If this fails, clones are credited to the wrong voice, or noise passes for clean speech."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from indextts.evaluate.likeness import average, dnsmos, embed, nearest, similarity
from tests.evaluate.conftest import RATE, SENTENCES


def test_a_voice_is_told_from_another(speech: list[np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("resemblyzer")
    subprocess.run(["flite", "-voice", "rms", "-t", SENTENCES[0], "-o", str(tmp_path / "rms.wav")], check=True)
    other, rate = soundfile.read(tmp_path / "rms.wav", dtype="int16")
    voices = {"slt": average([embed(speech[0], RATE), embed(speech[1], RATE)]), "rms": embed(other, rate)}
    vector = embed(speech[2], RATE)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert nearest(vector, voices) == "slt"
    assert similarity(vector, voices["slt"]) > 0.8 > similarity(vector, voices["rms"])
    assert capfd.readouterr() == ("", ""), "the packages' chatter must not reach the reader"


def test_clean_speech_is_worth_more_than_noisy(speech: list[np.ndarray]) -> None:
    pytest.importorskip("speechmos")
    noise = np.random.default_rng(0).standard_normal(speech[0].shape) * np.abs(speech[0]).max() * 0.2
    assert dnsmos(speech[0], RATE) > 2.3 > dnsmos((speech[0] + noise).clip(-32768, 32767).astype(np.int16), RATE)
