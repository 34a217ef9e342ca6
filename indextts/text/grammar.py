"""Written forms to spoken forms (numbers, dates, money, measures): the grammar packages behind one call.

A grammar is a callable ``(text, language) -> text`` with language ``zh`` or ``en``. Two packages implement the same project's
rules: ``wetext`` (fast, ships its compiled rules) and ``WeTextProcessing`` (module ``tn``; what the release uses on Linux).
Both work offline, are imported on first use, and may raise on texts that their rules do not accept.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Grammar = Callable[[str, str], str]


def make_grammar(name: str) -> Grammar:
    """Grammar by name: ``wetext``, ``WeTextProcessing`` (``wetext`` where that is not installed) or ``identity``.

    Errors: ``ValueError`` for another name.
    """
    key = name.lower()
    if key == "identity":
        return identity
    if key == "wetext" or (key == "wetextprocessing" and not _has_tn()):
        return WetextGrammar()
    if key == "wetextprocessing":
        return WeTextProcessingGrammar()
    raise ValueError(f"unknown text grammar {name!r}; use 'wetext', 'WeTextProcessing', 'identity' or a function (text, language) -> text")


def identity(text: str, language: str) -> str:
    """No grammar: the text as it is."""
    return text


def _has_tn() -> bool:
    from importlib.util import find_spec

    try:
        return find_spec("tn.chinese.normalizer") is not None and find_spec("tn.english.normalizer") is not None
    except ModuleNotFoundError:
        return False


# -------------------------------------------------------------------------------------------------------------- wetext

# Read as words by wetext but left alone by WeTextProcessing 1.0.4.1; "~5" would even lose its space ("approximatelyfive").
_LEFT_ALONE = re.compile(r"\s*[~|]\s*")
_CLAUSE_END = re.compile(r"((?<=[,.;:!?]) |(?<=[，。；：！？、]))")
_SYMBOL = re.compile(r"([^\w\s])")
# wetext returns quotes and backslashes with the escape that its internal notation needs.
_ESCAPED = re.compile(r'\\(["\\])')
_DECADE = re.compile(r"(?<![\w.,$£€¥-])(1[1-9]|20)([0-9])0s(?!\w)")
# "$1,200" comes back without its "one"; "$1200" does not.
_PRICE = re.compile(r"[$£€¥][0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
_DECADES = ("hundreds", "tens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")


class WetextGrammar:
    """The ``wetext`` package, brought as close to WeTextProcessing as is safe.

    Chinese is simplified and brought to half width as WeTextProcessing does by default. English white space is collapsed
    (runs make wetext fail); where wetext has no reading for a text, only the smallest part that it refuses stays as written.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._normalizers: dict[str, Any] | None = None

    def load(self) -> dict[str, Any]:
        """Import the package and its rules (once; about half a second); returns them by language.

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
        """Spoken form of ``text``."""
        self.load()
        if language == "zh":
            indent = text[: len(text) - len(text.lstrip())]
            return indent + self._speak(text, language)
        return self._english(text)

    def _speak(self, text: str, language: str) -> str:
        return _ESCAPED.sub(r"\1", self.load()[language].normalize(text))

    def _english(self, text: str) -> str:
        text = _DECADE.sub(_spell_decade, " ".join(text.split()))
        text = _PRICE.sub(lambda match: match[0].replace(",", ""), text)
        marks = _LEFT_ALONE.findall(text)
        parts = [self._english_part(part) for part in _LEFT_ALONE.split(text)]
        return parts[0] + "".join(mark + part for mark, part in zip(marks, parts[1:], strict=True))

    def _english_part(self, text: str) -> str:
        """Read the whole text; if that is refused, its clauses, then halves, then what stands between symbols."""
        if not text:
            return text
        try:
            return self._speak(text, "en")
        except (AssertionError, RuntimeError):  # wetext asserts that its rules found a reading
            pass
        clauses = [part for part in _CLAUSE_END.split(text) if part]
        if len(clauses) == 1:
            words = text.split(" ")
            middle = len(words) // 2
            clauses = [" ".join(words[:middle]), " ", " ".join(words[middle:])] if middle else []
        if clauses:
            return "".join(part if part == " " else self._english_part(part) for part in clauses)
        return _join_words(self._speak_or_keep(part) for part in _SYMBOL.split(text) if part)

    def _speak_or_keep(self, text: str) -> str:
        try:
            return self._speak(text, "en")
        except (AssertionError, RuntimeError):
            return text


def _join_words(parts: Iterable[str]) -> str:
    """Concatenate, with a space where two words would touch."""
    text = ""
    for part in parts:
        text += " " + part if text[-1:].isalnum() and part[:1].isalnum() else part
    return text


def _spell_decade(match: re.Match[str]) -> str:
    """``1990s`` is a decade (nineteen nineties), not a number of seconds."""
    century, decade = int(match[1]), int(match[2])
    if century == 20 and decade == 0:
        return "two thousands"
    teens = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
    return f"{teens[century - 11]} {_DECADES[decade]}"


# ---------------------------------------------------------------------------------------------------- WeTextProcessing


class WeTextProcessingGrammar:
    """The ``WeTextProcessing`` package (optional): 10 to 30 times slower; compiles its Chinese rules once into a cache folder."""

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        self._cache_dir = cache_dir
        self._lock = threading.Lock()
        self._normalizers: dict[str, Any] | None = None

    def load(self) -> dict[str, Any]:
        """Import the package and read or compile its rules (seconds); returns them by language."""
        with self._lock:
            if self._normalizers is None:
                from importlib.metadata import version

                from tn.chinese.normalizer import Normalizer as Chinese
                from tn.english.normalizer import Normalizer as English

                # One folder per version: the package reuses whatever compiled rules it finds, whatever they were made with.
                cache = Path(self._cache_dir or _user_cache()) / f"wetextprocessing-{version('WeTextProcessing')}"
                cache.mkdir(parents=True, exist_ok=True)
                self._normalizers = {
                    "zh": Chinese(cache_dir=str(cache), remove_interjections=False, remove_erhua=False),
                    "en": English(),
                }
            return self._normalizers

    def __call__(self, text: str, language: str) -> str:
        """Spoken form of ``text``."""
        return self.load()[language].normalize(text)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "indextts"
