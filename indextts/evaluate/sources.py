"""The voices of an evaluation: a clip to clone, and, where it is known, the synthesiser that the clip came from.

A voice is called ``ENGINE-NAME``: ``flite-slt``, ``rhvoice-bdl``, ``espeak-en-us+f2``. Its source speaks the same sentences, so that a
clone can be held against it. Synthesisers are the programs installed here, or the bundles that the training unpacks.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from indextts.audio import load_audio
from indextts.evaluate.sound import Floats, floats
from indextts.evaluate.texts import PROMPT

Sound = tuple[Floats, int]
Speak = Callable[[str], Sound]

# Different people, human-like voices first: those of recordings; then the formant voices that the word judge understands at all.
PREFERRED = (
    "flite-slt", "flite-rms", "flite-awb", "flite-kal16", "rhvoice-bdl", "rhvoice-alan", "rhvoice-clb", "festival-kal_diphone",
    "espeak-en-us+f2", "espeak-en-us+klatt3", "espeak-en-us+f4", "espeak-en-us+linda", "espeak-en-us+f5", "espeak-en-us+steph2",
)  # fmt: skip
_SAME_PERSON = {"festival-kal_diphone": "flite-kal16", "rhvoice-slt": "flite-slt"}
_PROGRAM_S = 60.0


@dataclass(frozen=True)
class Voice:
    """``heard``: the weights were trained on it. ``judged``: it is cloned; others only stand beside to be confused with."""

    name: str
    prompt: Sound
    speak: Speak | None
    heard: bool
    judged: bool = True

    @property
    def human(self) -> bool:
        """Whether it is made of recordings of a person, as far as its name tells."""
        return not self.name.startswith("espeak")


def find_voices(
    clips: Sequence[Path], synth: Sequence[Path] = (), *, count: int = 8, heard: Callable[[str], bool] = lambda _: False, clone: bool = True
) -> list[Voice]:
    """The ``clips`` (each a voice called like its file), filled up to ``count`` with synthesisers' voices.

    ``synth``: folders of unpacked bundles, looked through before the programs installed here. ``clone``: the added voices are judged as
    well. Errors: those of :func:`load_audio`; ``ValueError`` if there is no voice at all.
    """
    speakers = synthesisers(synth)
    voices = []
    for path in clips:
        samples, rate = load_audio(path, role="voice")
        voices.append(Voice(path.stem, (samples, rate), speakers.get(path.stem), heard(path.stem)))
    people = {_SAME_PERSON.get(voice.name, voice.name) for voice in voices}
    for name in [*(name for name in PREFERRED if name in speakers)]:
        person = _SAME_PERSON.get(name, name)
        if len(voices) < count and person not in people:
            people.add(person)
            voices.append(Voice(name, speakers[name](PROMPT), speakers[name], heard(name), clone))
    if not voices:
        raise ValueError("no voice to clone: name clips with --voice, or install a synthesiser (flite or espeak-ng)")
    return voices


def trained_on(name: str) -> bool:
    """Whether the bundled small voice's recipe trains on the voice called so."""
    from indextts.training.speakers import all_speakers

    return name in {f"{speaker.engine}-{speaker.voice}" for speaker in all_speakers()}


def synthesisers(bundles: Sequence[Path] = ()) -> dict[str, Speak]:
    """Every voice that can speak here, by name."""
    found: dict[str, Speak] = {}
    for folder in bundles:
        for name, speak in _bundled(folder).items():
            found.setdefault(name, speak)
    for name, speak in _installed().items():
        found.setdefault(name, speak)
    return found


def _installed() -> dict[str, Speak]:
    found: dict[str, Speak] = {}
    if shutil.which("flite"):
        listed = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=True, timeout=_PROGRAM_S).stdout
        for voice in set(listed.partition(":")[2].split()) & {"slt", "rms", "awb", "kal16"}:
            found[f"flite-{voice}"] = _program(["flite", "-voice", voice, "-t", "{text}", "-o", "{wav}"])
    if shutil.which("text2wave"):
        for folder in Path("/usr/share/festival/voices").glob("*/*"):
            found[f"festival-{folder.name}"] = _program(["text2wave", "-eval", f"(voice_{folder.name})", "-o", "{wav}"])
    if shutil.which("espeak-ng"):
        for name in PREFERRED:
            engine, _, voice = name.partition("-")
            if engine == "espeak":
                found[name] = _program(["espeak-ng", "-v", voice, "-s", "155", "-w", "{wav}", "{text}"])
    return found


def _program(command: list[str]) -> Speak:
    """A function that runs ``command`` for one text, which also comes on its standard input."""

    def speak(text: str) -> Sound:
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder, "speech.wav")
            filled = [part.replace("{text}", text).replace("{wav}", str(wav)) for part in command]
            done = subprocess.run(filled, input=text, capture_output=True, text=True, check=False, timeout=_PROGRAM_S)
            if done.returncode or not wav.is_file():
                raise RuntimeError(f"{command[0]} did not speak: {done.stderr.strip()[-200:] or f'exit code {done.returncode}'}")
            samples, rate = soundfile.read(wav, dtype="float32")
        return np.asarray(samples, np.float32), int(rate)

    return speak


def _bundled(folder: Path) -> dict[str, Speak]:
    """Voices of an unpacked bundle of :mod:`indextts.training.bundle`."""
    from indextts.training.synthesisers import Flite, RHVoice, Speech

    def sound(speech: Speech) -> Sound:
        return floats(speech.samples), speech.rate

    if not folder.is_dir():
        raise FileNotFoundError(f"no bundle of synthesisers at {folder}")
    found: dict[str, Speak] = {}
    if any((folder / "lib").glob("libflite_cmu_us_*.so*")):
        flite = Flite(folder)
        for voice in flite.voices():
            found[f"flite-{voice}"] = lambda text, voice=voice: sound(flite.speak(text, voice))  # type: ignore[misc]
    if (folder / "RHVoice/voices").is_dir():
        rhvoice = RHVoice(folder)
        for voice in rhvoice.voices():
            found[f"rhvoice-{voice}"] = lambda text, voice=voice: sound(rhvoice.speak(text, voice))  # type: ignore[misc]
    return found
