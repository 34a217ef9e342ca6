"""The ``wetext`` grammar, brought as close to WeTextProcessing 1.0.4.1 (what the release uses on Linux) as is safe.

wetext refuses some English texts as a whole (runs of white space, a symbol that touches a number in an unusual way), returns
quotes with the escapes of its internal notation, and reads some written forms badly. The rules here were found by comparing the
two packages; each is covered by a test.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable
from typing import Any

# Left alone by WeTextProcessing, but read as words by wetext.
_LEFT_ALONE = re.compile(r"([~|])")
# A sentence end, not "Dr." or "St.": an abbreviation must not be cut from its name.
_SENTENCE_END = re.compile(r"(?<=[a-z]{2}[.!?])(?= )|(?<=[。！？\n])")
_CHUNK = 1000
REMEMBERED = 256
_CLAUSE_END = re.compile(r"((?<=[,.;:!?]) |(?<=[，。；：！？、]))")
_SYMBOL = re.compile(r"([^\w\s])")
_ESCAPED = re.compile(r'\\(["\\])')

_ABOUT = re.compile(r"(?<!\w)~ ?(?=[$£€¥]?[0-9])")
_THOUSANDS = re.compile(r"[$£€¥￥][0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
_ONE_THOUSAND = re.compile(r"[$£€¥]1[0-9]{3}(?:\.[0-9]+)?(?!\w|[.,][0-9]| [a-z]*illion)")
_DECADE = re.compile(r"(?<![\w.,$£€¥-])(1[1-9]|20)([0-9])0s(?!\w)")
_VERSION = re.compile(r"(?<![\w.$£€¥/@:-])([A-Za-z]+)?([0-9]+)((?:\.[0-9]+){1,2})(?![\w./@-]*\w)")

_DIGITS = ("oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CENTURIES = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
_DECADES = ("hundreds", "tens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")


class WetextGrammar:
    """Spoken forms by the package ``wetext``: milliseconds a sentence, offline, imported on first use.

    Chinese is simplified and brought to half width, as WeTextProcessing does by default. Where wetext has no reading for an
    English text, only the smallest part that it refuses stays as written.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._normalizers: dict[str, Any] | None = None
        self._remembered = functools.lru_cache(maxsize=REMEMBERED)(self._spoken)

    def load(self) -> dict[str, Any]:
        """Import the package and its rules (once; well under a second); returns them by language.

        Errors: ``RuntimeError`` that says what to install when the package is missing.
        """
        with self._lock:
            if self._normalizers is None:
                try:
                    from wetext import Normalizer
                except ImportError as error:
                    raise RuntimeError(f"text normalisation needs the package wetext (pip install wetext): {error}") from error
                self._normalizers = {
                    "zh": Normalizer(lang="zh", operator="tn", traditional_to_simple=True, full_to_half=True),
                    "en": Normalizer(lang="en", operator="tn"),
                }
            return self._normalizers

    def __call__(self, text: str, language: str) -> str:
        """Spoken form of ``text``; of short texts the last ``REMEMBERED`` are remembered, since previews and takes ask again and again."""
        self.load()
        return self._remembered(text, language) if len(text) <= 2 * _CHUNK else self._spoken(text, language)

    def _spoken(self, text: str, language: str) -> str:
        return self._chinese(text) if language == "zh" else self._english(text)

    def _speak(self, text: str, language: str) -> str:
        """wetext's reading, with the white space at both ends kept."""
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        return text[:start] + _ESCAPED.sub(r"\1", self.load()[language].normalize(core)) + text[start + len(core) :]

    def _chinese(self, text: str) -> str:
        return "".join(self._speak(chunk, "zh") for chunk in _chunks(_drop_thousands_commas(text)))

    def _english(self, text: str) -> str:
        text = _drop_thousands_commas(" ".join(text.split()))
        text = _ABOUT.sub("approximately ", _DECADE.sub(_spell_decade, _VERSION.sub(_spell_version, text)))
        text = _ONE_THOUSAND.sub(self._spell_one_thousand, text)
        return "".join(part if i % 2 else "".join(map(self._english_part, _chunks(part))) for i, part in enumerate(_LEFT_ALONE.split(text)))

    def _english_part(self, text: str) -> str:
        """Read the whole text; if that is refused, its clauses, then halves, then what stands between symbols."""
        try:
            return self._speak(text, "en")
        except (AssertionError, RuntimeError):  # wetext asserts that its rules found a reading
            pass
        parts = [part for part in _CLAUSE_END.split(text) if part]
        if len(parts) == 1:
            words = text.split(" ")
            middle = len(words) // 2
            parts = [" ".join(words[:middle]), " ", " ".join(words[middle:])] if middle else []
        if parts:
            return "".join(map(self._english_part, parts))
        return _join_words(self._speak_or_keep(part) for part in _SYMBOL.split(text) if part)

    def _speak_or_keep(self, text: str) -> str:
        try:
            return self._speak(text, "en")
        except (AssertionError, RuntimeError):
            return text

    def _spell_one_thousand(self, match: re.Match[str]) -> str:
        """``$1200``: wetext drops the first word of "one thousand two hundred dollars"."""
        spoken = self._speak_or_keep(match[0])
        return f"one {spoken}" if spoken.startswith("thousand") else spoken


def _chunks(text: str) -> list[str]:
    """Sentences grouped to about ``_CHUNK`` characters: wetext's memory grows with the length of what it reads at once."""
    chunks = [""]
    for sentence in _SENTENCE_END.split(text):
        if chunks[-1] and len(chunks[-1]) + len(sentence) > _CHUNK:
            chunks.append("")
        chunks[-1] += sentence
    return chunks


def _drop_thousands_commas(text: str) -> str:
    """``$1,200`` -> ``$1200``: with the comma the amount is read in pieces."""
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)


def _spell_version(match: re.Match[str]) -> str:
    """``USB3.0``, ``2.0.1``: read digit by digit after each point; plain decimals and addresses are left to the grammar."""
    name, first, rest = match[1] or "", match[2], match[3]
    if not name and rest.count(".") == 1:
        return match[0]
    points = "".join(" point " + " ".join(_DIGITS[int(digit)] for digit in part) for part in rest.split(".")[1:])
    return f"{name} {first}{points}".lstrip()


def _spell_decade(match: re.Match[str]) -> str:
    """``1990s`` is a decade (nineteen nineties), not a number of seconds."""
    century, decade = int(match[1]), int(match[2])
    return "two thousands" if (century, decade) == (20, 0) else f"{_CENTURIES[century - 11]} {_DECADES[decade]}"


def _join_words(parts: Iterable[str]) -> str:
    """Concatenate, with a space where two words would touch."""
    text = ""
    for part in parts:
        text += " " + part if text[-1:].isalnum() and part[:1].isalnum() else part
    return text
