"""Speech to judge, from flite where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

SENTENCES = (
    "The train leaves at seven in the morning.",
    "My sister bought a red bicycle last week.",
    "Please put the clean plates back on the shelf.",
    "We waited under the bridge until the rain stopped.",
    "The old clock in the kitchen is ten minutes slow.",
)
RATE = 16000


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[npt.NDArray[np.int16]]:
    """:data:`SENTENCES` spoken by flite's slt, int16 at 16 kHz."""
    if shutil.which("flite") is None:
        pytest.skip("flite is not installed")
    folder: Path = tmp_path_factory.mktemp("speech")
    sounds = []
    for i, sentence in enumerate(SENTENCES):
        subprocess.run(["flite", "-voice", "slt", "-t", sentence, "-o", str(folder / f"{i}.wav")], check=True)
        samples, rate = soundfile.read(folder / f"{i}.wav", dtype="int16")
        assert rate == RATE
        sounds.append(samples)
    return sounds


def shuffled(samples: npt.NDArray[np.int16], seconds: float = 0.06) -> npt.NDArray[np.int16]:
    """The same sound in pieces of 60 ms, in random order: speech to a meter, noise to a listener."""
    piece = int(seconds * RATE)
    pieces = samples[: len(samples) // piece * piece].reshape(-1, piece)
    mixed: npt.NDArray[np.int16] = np.random.default_rng(0).permutation(pieces).reshape(-1)
    return mixed
