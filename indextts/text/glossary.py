"""The user's glossary: terms and how they are spoken, live for the next inference and editable from a panel.

``glossary.yaml`` maps a term to its spoken form, or to one per language::

    SQL: {en: sequel, zh: S Q L}
    tts: T T S
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

LANGUAGES = ("zh", "en")
SpokenForm = str | Mapping[str, str]


class Glossary(MutableMapping[str, SpokenForm]):
    """Term -> spoken form (a string, or a dict with ``zh`` and/or ``en``); every entry is checked when it is set.

    Errors: ``ValueError`` that names the entry and what it should be.
    """

    def __init__(self, terms: Mapping[str, SpokenForm] | None = None) -> None:
        self._terms: dict[str, SpokenForm] = {}
        self.update(terms or {})

    def __getitem__(self, term: str) -> SpokenForm:
        return self._terms[term]

    def __setitem__(self, term: str, spoken: SpokenForm) -> None:
        self._terms[_checked_term(term)] = _checked_spoken(term, spoken)

    def __delitem__(self, term: str) -> None:
        del self._terms[term]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def __repr__(self) -> str:
        return f"Glossary({self._terms!r})"

    def add(self, term: str, *, zh: str | None = None, en: str | None = None) -> None:
        """Set the spoken form per language, or one of them; the other language keeps what it had."""
        given = {language: spoken for language, spoken in (("zh", zh), ("en", en)) if spoken is not None}
        if not given:
            raise ValueError(f"glossary term {term!r}: give its spoken form for zh, en or both")
        old = self._terms.get(term, {})
        self[term] = {**(dict.fromkeys(LANGUAGES, old) if isinstance(old, str) else old), **given}

    def remove(self, term: str) -> None:
        """Forget a term; ``ValueError`` if it is not there."""
        if term not in self._terms:
            raise ValueError(f"the glossary has no term {term!r}")
        del self._terms[term]

    def apply(self, text: str, language: str) -> str:
        """Replace the terms, longest first, regardless of case and of word boundaries; ``language`` is ``zh`` or ``en``."""
        for term, spoken in sorted(self._terms.items(), key=lambda item: len(item[0]), reverse=True):
            replacement = spoken if isinstance(spoken, str) else spoken.get(language)
            if replacement is not None:
                literal = replacement.replace("\\", r"\\")
                text = re.sub(re.escape(term), literal, text, flags=re.IGNORECASE)
        return text

    @classmethod
    def load(cls, path: str | Path) -> Glossary:
        """Read ``glossary.yaml``.

        Errors: ``FileNotFoundError``; ``ValueError`` for YAML that does not parse or an entry of the wrong form.
        """
        import yaml

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no glossary at {path}")
        try:
            raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        if raw is None:
            return cls()
        if not isinstance(raw, dict):
            raise ValueError(f"{path} must map terms to spoken forms, found {type(raw).__name__}")
        try:
            return cls(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the glossary as YAML (parents created; the old file stays whole if writing fails)."""
        import yaml

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {term: spoken if isinstance(spoken, str) else dict(spoken) for term, spoken in self._terms.items()}
        draft = path.with_name(path.name + ".part")
        try:
            draft.write_text(yaml.safe_dump(plain, allow_unicode=True, sort_keys=False), encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _checked_term(term: Any) -> str:
    if not isinstance(term, str):
        raise ValueError(f"glossary term {term!r} must be text; quote it in YAML: '{term}'")
    if not term.strip():
        raise ValueError("a glossary term must not be empty")
    return term


def _checked_spoken(term: str, spoken: Any) -> SpokenForm:
    if isinstance(spoken, str):
        return spoken
    if not isinstance(spoken, Mapping) or not spoken:
        raise ValueError(f"glossary term {term!r}: the spoken form must be text or a mapping with zh and/or en, got {spoken!r}")
    for language, form in spoken.items():
        if language not in LANGUAGES:
            raise ValueError(f"glossary term {term!r}: unknown language {language!r}; use zh or en")
        if not isinstance(form, str):
            raise ValueError(f"glossary term {term!r}: the spoken form for {language} must be text, got {form!r}")
    return dict(spoken)
