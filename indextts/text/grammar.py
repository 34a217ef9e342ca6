"""Written forms to spoken forms (numbers, dates, money, measures): the grammar packages behind one call.

A grammar is a callable ``(text, language) -> text`` with language ``zh`` or ``en``. Two packages implement the same project's
rules: ``wetext`` (fast, ships its compiled rules) and ``WeTextProcessing`` (module ``tn``; what the release uses on Linux).
Both work offline, are imported on first use, and may raise on texts that their rules do not accept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indextts.text.grammar_wetext import WetextGrammar
from indextts.utils.cache_folder import user_cache

Grammar = Callable[[str, str], str]

logger = logging.getLogger(__name__)


def make_grammar(name: str) -> Grammar:
    """Grammar by name: ``wetext``, ``WeTextProcessing`` (``wetext`` where that is not installed) or ``identity``.

    Errors: ``ValueError`` for another name.
    """
    key = name.lower()
    if key == "identity":
        return identity
    if key == "wetext":
        return WetextGrammar()
    if key == "wetextprocessing":
        if _has_tn():
            return WeTextProcessingGrammar()
        logger.warning("WeTextProcessing is not installed; using wetext for numbers and symbols")
        return WetextGrammar()
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
                from importlib import import_module
                from importlib.metadata import version

                # One folder per version: the package reuses whatever compiled rules it finds, whatever they were made with.
                cache = Path(self._cache_dir or user_cache()) / f"wetextprocessing-{version('WeTextProcessing')}"
                cache.mkdir(parents=True, exist_ok=True)
                self._normalizers = {
                    "zh": import_module("tn.chinese.normalizer").Normalizer(
                        cache_dir=str(cache), remove_interjections=False, remove_erhua=False
                    ),
                    "en": import_module("tn.english.normalizer").Normalizer(),
                }
            return self._normalizers

    def __call__(self, text: str, language: str) -> str:
        """Spoken form of ``text``."""
        return self.load()[language].normalize(text)
