"""User text to the words that are spoken: language, contractions, glossary, protected spans, grammar, punctuation.

The order of the steps is that of the IndexTTS2 release, whose vocabulary holds no digits and few punctuation marks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from indextts.text import english, patterns
from indextts.text.glossary import Glossary, SpokenForm
from indextts.text.grammar import Grammar, make_grammar

logger = logging.getLogger(__name__)


class TextNormalizer:
    """Text normaliser; ``glossary`` is live: what a panel adds to it counts from the next call on.

    ``grammar`` is ``wetext`` (the default), ``WeTextProcessing``, ``identity`` or a callable ``(text, language) -> text`` with
    language ``zh`` or ``en``; the packages are imported on first use and never download anything. ``language`` keeps to the rules of
    one language, for a voice that has no other: ``45`` alone is otherwise Chinese.
    """

    def __init__(
        self, glossary: Mapping[str, SpokenForm] | None = None, grammar: str | Grammar = "wetext", language: str | None = None
    ) -> None:
        if language not in (None, "zh", "en"):
            raise ValueError(f"language must be 'zh', 'en' or None, got {language!r}")
        self._language = language
        self.glossary = glossary if isinstance(glossary, Glossary) else Glossary(glossary)
        self.grammar: Grammar = make_grammar(grammar) if isinstance(grammar, str) else grammar

    def load(self) -> None:
        """Load the grammar now, so that the first call does not have to."""
        load = getattr(self.grammar, "load", None)
        if load is not None:
            load()

    def language(self, text: str) -> str:
        """``zh`` or ``en``: which rules :meth:`normalize` applies to ``text``."""
        return self._language or ("zh" if patterns.is_chinese(patterns.hide_annotations(text)[0]) else "en")

    def normalize(self, text: str) -> str:
        """Spoken form of ``text``. If the grammar fails, the text passes without it and one warning is logged."""
        chinese = self.language(text) == "zh"
        text, annotations = patterns.hide_annotations(text)
        text = patterns.between_annotations(text, lambda part: self._expand(part, "zh" if chinese else "en"))
        text = self._chinese(text) if chinese else self._english(text)
        return patterns.show_annotations(patterns.map_punctuation(text, chinese=chinese), annotations)

    def _expand(self, text: str, language: str) -> str:
        return self.glossary.apply(patterns.expand_contractions(text), language)

    def _chinese(self, text: str) -> str:
        text = patterns.hide_tech_terms(text.rstrip())
        pinyin = patterns.shield_pinyin(text)
        text = pinyin.hide(text)
        names = patterns.shield_names(text)
        text = names.show(self._speak(names.hide(text), "zh"))
        return patterns.show_tech_terms(pinyin.show(text, patterns.correct_pinyin))

    def _english(self, text: str) -> str:
        if self._language is None:
            return patterns.show_tech_terms(self._speak(patterns.hide_tech_terms(text), "en"))
        text = patterns.hide_tech_terms(english.before_grammar(text))
        return english.after_grammar(patterns.show_tech_terms(self._speak(text, "en")))

    def _speak(self, text: str, language: str) -> str:
        if not text:
            return text
        try:
            return self.grammar(text, language)
        except Exception as error:  # a grammar must not cost the user the text
            logger.warning("numbers and symbols are not spelled out: the text grammar failed with %s: %s", type(error).__name__, error)
            return text
