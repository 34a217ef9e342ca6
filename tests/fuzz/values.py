"""Strategies: damaged files, odd values, any text."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import soundfile
from hypothesis import strategies as st

from tests.fuzz.world import CLIP, RATE

ODD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400) | st.lists(st.floats(), max_size=3)
PARTS = [
    *("Hello", "你好", "7:45", "$3.50", "1e9", ".", ",", "'", "-", "…", "<s>", "▁", "🙂", "é", "pin1yin1", "AB-12", "www.a.b\n"),
    *("[pause 1s]", "Anna:", "\u200f", "e\u0301", "３", "½", "²", "Ⅷ", "1,000.5", "12/13/14", "+49 30 1", "a@b.c", "#", "\x00"),
    *("\r\n", "\u2028", "100%", "-0"),
]
WORDS = st.lists(st.sampled_from(PARTS), max_size=12).map(" ".join)
PAGE = 256  # characters; every block of Unicode begins on a multiple of 16 and most on one of 256
PAGES = 0x110000 // PAGE


@st.composite
def of_one_block(draw: st.DrawFn) -> str:
    """Some characters of one page of Unicode, alone or between words."""
    page = draw(st.integers(0, PAGES - 1))
    characters = "".join(chr(page * PAGE + draw(st.integers(0, PAGE - 1))) for _ in range(draw(st.integers(1, 8))))
    return draw(st.sampled_from(["{}", "Hello {} there.", "{}。"])).format(characters)


ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=40) | WORDS | of_one_block()


def sound_file(kind: str, channels: int = 1) -> bytes:
    """The clip as a file of some format."""
    file = BytesIO()
    soundfile.write(file, np.stack([CLIP] * channels, axis=1), RATE, format=kind)
    return file.getvalue()


FORMATS = (("WAV", 1), ("FLAC", 1), ("OGG", 1), ("MP3", 1), ("AIFF", 2))
FILES = {kind.lower(): sound_file(kind, channels) for kind, channels in FORMATS}


@st.composite
def damaged_bytes(draw: st.DrawFn, original: bytes, header: int = 120) -> bytes:
    """Some bytes changed, most of them in the header, and cut short."""
    data = bytearray(original)
    place = st.integers(0, min(header, len(data) - 1)) | st.integers(0, len(data) - 1)
    for where, byte in draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=8)):
        data[where] = byte
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@st.composite
def sound(draw: st.DrawFn) -> tuple[str, bytes]:
    """The suffix and the content of a file that is, was or calls itself sound."""
    if draw(st.booleans()):
        return draw(st.sampled_from([*FILES, "raw", "txt", ""])), draw(st.binary(max_size=300))
    kind = draw(st.sampled_from(sorted(FILES)))
    return kind, draw(damaged_bytes(FILES[kind]))


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)
