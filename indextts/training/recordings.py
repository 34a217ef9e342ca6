"""Recordings of more people for the training: free voices of other languages, as FLAC files for the bundle.

English has half a dozen free voices of people, too few to learn what a voice is. Festival and RHVoice have others, in Czech, Finnish,
Italian, Catalan, Russian, Ukrainian, Kyrgyz, Esperanto, Hindi, Marathi and Telugu. What they say does not matter: the texts are made of
syllables by chance, and nothing learns words from them.
"""

from __future__ import annotations

import logging
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from indextts.training.corpus import SAMPLE_RATE
from indextts.training.synthesisers import RHVoice, Samples, Speech

logger = logging.getLogger(__name__)

# Name here -> festival's own, and the script that it reads.
FESTIVAL = {
    "lj": ("suo_fi_lj_diphone", "latin"), "mv": ("hy_fi_mv_diphone", "latin"), "dita": ("czech_dita", "latin"),
    "krb": ("czech_krb", "latin"), "machac": ("czech_machac", "latin"), "ph": ("czech_ph", "latin"), "lp": ("lp_diphone", "latin"),
    "pc": ("pc_diphone", "latin"), "ona": ("upc_ca_ona_hts", "latin"), "nsh": ("msu_ru_nsh_clunits", "cyrillic"),
    "hindi": ("hindi_NSK_diphone", "devanagari"), "marathi": ("marathi_NSK_diphone", "devanagari"),
    "telugu": ("telugu_NSK_diphone", "telugu"),
}  # fmt: skip
RHVOICE = dict.fromkeys(("aleksandr", "anna", "elena", "irina", "natalia", "anatol", "azamat", "nazgul"), "cyrillic")
RHVOICE |= {"spomenka": "latin"}  # those under the LGPL; others of RHVoice's voices forbid commercial use
_SCRIPTS = {  # consonants, vowels
    "latin": ("b d f g k l m n p r s t v z", "a e i o u"),
    "cyrillic": ("б в г д ж з к л м н п р с т ф х ц ч ш", "а е и о у я ю"),
    "devanagari": ("क ख ग घ च ज ट ड त थ द ध न प फ ब भ म य र ल व श स ह", "ा ि ी ु े ो ै"),
    "telugu": ("క ఖ గ చ జ ట డ త ద న ప బ భ మ య ర ల వ శ స హ", "ా ి ీ ు ే ో"),
}
_LEVEL = 0.08  # root mean square
_MOST_TRIES = 40
_TIMEOUT_S = 60.0


def make_recordings(folder: Path, rhvoice: Path | None = None, seconds: float = 46.0, seed: int = 3) -> list[Path]:
    """Write ``folder/NAME.flac`` for every voice that is here, about ``seconds`` each; returns the paths.

    Festival's voices are those installed (packages ``festvox-*``); ``rhvoice`` is a folder as of a bundle, with ``lib`` and ``RHVoice``.
    A voice that does not speak is left out, with a warning.
    """
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    speakers: dict[str, tuple[Callable[[str], Speech], str]] = {}
    for name, (voice, script) in FESTIVAL.items():
        if any(Path("/usr/share/festival/voices").glob(f"*/{voice}")):
            speakers[name] = (lambda text, voice=voice: _festival(voice, text)), script  # type: ignore[misc]
    if rhvoice is not None:
        engine = RHVoice(rhvoice)
        for name in sorted(set(engine.voices()) & set(RHVOICE)):
            speakers[name] = (lambda text, name=name: engine.speak(text, name)), RHVOICE[name]  # type: ignore[misc]
    paths = []
    for name, (speak, script) in speakers.items():
        samples = _recorded(speak, random.Random(f"{seed} {name}"), script, seconds)
        if samples.size < 0.5 * seconds * SAMPLE_RATE:
            logger.warning("%s hardly speaks and is left out", name)
            continue
        paths.append(folder / f"{name}.flac")
        soundfile.write(paths[-1], samples, SAMPLE_RATE, subtype="PCM_16")
        logger.info("%s: %.0f s", name, samples.size / SAMPLE_RATE)
    return paths


def gibberish(rng: random.Random, script: str) -> str:
    """A sentence of six to eleven words that mean nothing, in one of the scripts latin, cyrillic, devanagari, telugu."""
    consonants, vowels = (letters.split() for letters in _SCRIPTS[script])

    def word() -> str:
        return "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.randint(1, 4))) + (
            rng.choice(consonants) if rng.random() < 0.2 else ""
        )

    return " ".join(word() for _ in range(rng.randint(6, 11))) + rng.choice(".?.!")


def _recorded(speak: Callable[[str], Speech], rng: random.Random, script: str, seconds: float) -> Samples:
    """Sentences without the silence around them, at one level."""
    import torch
    from torchaudio.functional import resample

    pieces: list[Samples] = []
    for _ in range(_MOST_TRIES):
        if sum(piece.size for piece in pieces) > seconds * SAMPLE_RATE:
            break
        speech = speak(gibberish(rng, script))
        if speech.samples.size > speech.rate / 2:
            wave = resample(torch.from_numpy(speech.samples.astype(np.float32)), speech.rate, SAMPLE_RATE).numpy()
            pieces.append(_trimmed(wave))
    together = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    level = float(np.sqrt(np.mean(np.square(together)))) if together.size else 1.0
    return (together * (_LEVEL * 32768 / max(level, 1.0))).clip(-32767, 32767)[: int(seconds * SAMPLE_RATE)].astype(np.int16)


def _trimmed(wave: np.ndarray) -> np.ndarray:
    width = SAMPLE_RATE // 20
    loud = np.convolve(np.abs(wave), np.ones(width) / width, "same")
    on = np.flatnonzero(loud > 0.02 * loud.max())
    return wave[max(0, on[0] - width) : on[-1] + 2 * width]


def _festival(voice: str, text: str) -> Speech:
    """Nothing if festival fails on this text, as some of its old voices now and then do."""
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "speech.wav")
        command = ["text2wave", "-eval", f"(voice_{voice})", "-o", str(wav)]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False, timeout=_TIMEOUT_S)
        if done.returncode or not wav.is_file():
            return Speech(np.zeros(0, np.int16), SAMPLE_RATE)
        samples, rate = soundfile.read(wav, dtype="int16")
    return Speech(samples, int(rate))
