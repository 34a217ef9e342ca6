"""Pack the synthesisers' programs and English data into one archive that runs on a bare Linux machine.

Input is a folder in which Debian packages were unpacked (``dpkg -x``): espeak-ng (GPL-3 program; its output is free), flite (BSD-like)
and RHVoice with the voices bdl, slt, alan (LGPL-2.1+). Only libc, libm and libstdc++ are needed where the archive is used: the audio
device libraries that the packages link to are replaced by empty stubs.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

FLITE_VOICES = ("slt", "rms", "awb", "kal16")
RHVOICE_VOICES = ("bdl", "slt", "alan")
RHVOICE_RATE = "24000"
_LIBRARIES = ("libsonic.so.0", "libespeak-ng.so.1", "libflite.so.1", "libflite_usenglish.so.1", "libflite_cmulex.so.1")
_OPTIONAL_LIBRARIES = ("libRHVoice_core.so.7", "libRHVoice.so.5")
# Library that asks for a device library -> the device library, and the version its symbols carry.
_STUBS = {"libflite.so.1": ("libasound.so.2", "ALSA_0.9"), "libespeak-ng.so.1": ("libpcaudio.so.0", None)}


def make_bundle(
    root: Path,
    archive: Path,
    flite: tuple[str, ...] = FLITE_VOICES,
    rhvoice: tuple[str, ...] = RHVOICE_VOICES,
    recordings: Path | None = None,
) -> Path:
    """Write the ``.tar.xz`` ``archive`` from the unpacked packages under ``root``; needs gcc and objdump. Returns its path.

    ``recordings``: folder of FLAC files of people who speak other languages (:data:`indextts.training.speakers.RECORDED`).
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        libraries = folder / "lib"
        libraries.mkdir()
        source = root / "usr/lib/x86_64-linux-gnu"
        for name in (*_LIBRARIES, *(f"libflite_cmu_us_{voice}.so.1" for voice in flite)):
            shutil.copy(source / name, libraries / name)
        for name in _OPTIONAL_LIBRARIES:
            if (source / name).exists():
                shutil.copy(source / name, libraries / name)
        for user, (stub, version) in _STUBS.items():
            _make_stub(source / user, libraries / stub, version)
        _copy_espeak_data(source / "espeak-ng-data", folder / "espeak-ng-data")
        _copy_rhvoice_data(root / "usr/share/RHVoice", folder / "RHVoice", rhvoice)
        if recordings is not None:
            shutil.copytree(recordings, folder / "recordings", ignore=lambda _, names: [n for n in names if not n.endswith(".flac")])
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(folder, arcname=".")
    logger.info("%s: %.1f MB", archive, archive.stat().st_size / 1e6)
    return archive


def unpack_bundle(archive: Path, folder: Path) -> Path:
    """Unpack ``archive`` into ``folder`` unless that was done before; returns ``folder``."""
    done = folder / "unpacked"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        done.touch()
    return folder


def _make_stub(user: Path, stub: Path, version: str | None) -> None:
    """A library with the functions that ``user`` misses; each returns 0. An unversioned one would abort the loader."""
    listing = subprocess.run(["objdump", "-T", str(user)], capture_output=True, text=True, check=True).stdout
    wanted = version or "audio_"
    names = sorted({line.split()[-1] for line in listing.splitlines() if "*UND*" in line and wanted in line})
    with tempfile.TemporaryDirectory() as scratch:
        code, script = Path(scratch, "stub.c"), Path(scratch, "stub.map")
        code.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in names), encoding="ascii")
        command = ["gcc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{stub.name}", "-o", str(stub), str(code)]
        if version:
            script.write_text(f"{version} {{ global: *; }};\n", encoding="ascii")
            command.insert(-1, f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def _copy_espeak_data(source: Path, target: Path) -> None:
    (target / "lang/gmw").mkdir(parents=True)
    for name in ("phondata", "phonindex", "phontab", "intonations", "en_dict"):
        shutil.copy(source / name, target / name)
    for voice in (source / "lang/gmw").glob("en*"):
        shutil.copy(voice, target / "lang/gmw" / voice.name)
    shutil.copytree(source / "voices/!v", target / "voices/!v")


def _copy_rhvoice_data(source: Path, target: Path, voices: tuple[str, ...]) -> None:
    if not source.exists():
        return
    shutil.copytree(source / "languages/English", target / "languages/English")
    for voice in voices:
        shutil.copytree(source / "voices" / voice, target / "voices" / voice, ignore=shutil.ignore_patterns("16000"))
