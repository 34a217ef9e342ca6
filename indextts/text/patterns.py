"""What the grammar must not see: annotations, pinyin, names and hyphenated terms; and the rules around it.

All functions are pure. The patterns are those of the IndexTTS2 release's front-end (arXiv 2506.21619): Chinese text may carry
pinyin with tone digits as a reading, foreign names keep their middle dots, and terms such as ``wi-fi`` keep their hyphens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# ------------------------------------------------------------------------------------------------------------ language

_IDEOGRAPH = re.compile(r"[\u4e00-\u9fff]")
_LATIN_LETTER = re.compile(r"[A-Za-z]")
_EMAIL = re.compile(r"[A-Za-z0-9]+@[A-Za-z0-9]+\.[A-Za-z]+")

# The final "ün" is absent on purpose: the release does not take "xün2" for pinyin.
_FINALS = (
    "iang|iong|uang|üang|vang|ang|eng|ing|ong|ian|iao|uai|uan|üan|van|ai|ei|ao|ou|ua|ui|uo|ia|iu|ie|ue|üe|ve|an|en|in|un|vn|a|e|i|o|u|ü|v"
)
_PINYIN = re.compile(rf"(?<![A-Za-z])(?:(?:zh|ch|sh|[bpmfdtnlgkhjqxzcsryw])?(?:{_FINALS})|ng|er)[1-5]", re.IGNORECASE)
_J_Q_X_READING = re.compile(r"([jqx])[uü](n|e|an)?([1-5])", re.IGNORECASE)


def is_email(text: str) -> bool:
    """Whether the whole text is an address of the simple form ``letters/digits@letters/digits.letters``."""
    return _EMAIL.fullmatch(text) is not None


def is_chinese(text: str) -> bool:
    """Whether the Chinese rules apply: ideographs, no Latin letter at all, one bare address, or pinyin with a tone digit."""
    return bool(_IDEOGRAPH.search(text)) or not _LATIN_LETTER.search(text) or is_email(text) or bool(_PINYIN.search(text))


# ------------------------------------------------------------------------------------------------- rules without state

_CONTRACTION = re.compile(r"(what|where|who|which|how|there|here|it|he|she|that|this)'s", re.IGNORECASE)

_MARKS = {
    **dict.fromkeys("：；;，、:", ","),
    **dict.fromkeys('“”"‘’（）()《》【】[]「」', "'"),
    **dict.fromkeys("·—～~", "-"),
    **dict.fromkeys(("...", ",,,", "，，，", "……"), "…"),
    "。": ".",
    "！": "!",
    "？": "?",
    "\n": " ",
}
_MARKS_CHINESE = {"$": ".", **_MARKS}
# Single characters are tried before the runs: "，，，" becomes ",,,", not an ellipsis, as in the release.
_MARK = re.compile("|".join(re.escape(mark) for mark in sorted(_MARKS_CHINESE, key=len)))


def expand_contractions(text: str) -> str:
    """``it's`` -> ``it is`` after twelve words, also at the end of a longer word; any other ``'s`` stays."""
    return _CONTRACTION.sub(r"\1 is", text)


def map_punctuation(text: str, *, chinese: bool) -> str:
    """Reduce punctuation to the marks that the vocabulary holds, in one pass; in Chinese text ``$`` becomes a full stop."""
    marks = _MARKS_CHINESE if chinese else _MARKS
    return _MARK.sub(lambda match: marks.get(match[0], match[0]), text)


# -------------------------------------------------------------------------------------------------------- placeholders


def letters(index: int) -> str:
    """a, b, .. z, aa, ab, ..: placeholder labels without digits, which a grammar would read out."""
    label = ""
    index += 1
    while index:
        index, remainder = divmod(index - 1, 26)
        label = chr(ord("a") + remainder) + label
    return label


def longest_first(matches: Iterable[str]) -> list[str]:
    """Distinct matches, longest first, then in order of appearance: none can be cut by the replacement of a shorter one."""
    return sorted(dict.fromkeys(matches), key=len, reverse=True)


class Shield:
    """Distinct spans of a text replaced by ``{prefix}{letters}{suffix}`` and put back after the grammar."""

    def __init__(self, spans: Iterable[str], prefix: str, suffix: str) -> None:
        self.spans = longest_first(spans)
        self._prefix, self._suffix = prefix, suffix
        self._index = {letters(i): i for i in range(len(self.spans))}
        self._pattern = re.compile(f"{re.escape(prefix)}([a-z]+){re.escape(suffix)}")

    def hide(self, text: str) -> str:
        """Replace every occurrence of every span."""
        for i, span in enumerate(self.spans):
            text = text.replace(span, f"{self._prefix}{letters(i)}{self._suffix}")
        return text

    def show(self, text: str, change: Callable[[str], str] = str) -> str:
        """Put the spans back, each passed through ``change``."""
        if not self.spans:
            return text
        return self._pattern.sub(lambda match: change(self.spans[self._index[match[1]]]) if match[1] in self._index else match[0], text)


# ---------------------------------------------------------------------------------------------------------- annotations

_ANNOTATION = re.compile(r"<[^|>\n]+\|[^>\n]+>")
# Latin letters only, so that it survives either grammar as one word.
_ANNOTATION_MARK = "PRONPLACEHOLDER"
_ANNOTATION_HIDDEN = re.compile(f"({_ANNOTATION_MARK}[a-z]+{_ANNOTATION_MARK})")


def hide_annotations(text: str) -> tuple[str, list[str]]:
    """Replace each ``<word|reading>`` by a placeholder; returns the text and the annotations in order."""
    found: list[str] = []
    if "|" not in text:
        return text, found

    def hide(match: re.Match[str]) -> str:
        found.append(match[0])
        return f"{_ANNOTATION_MARK}{letters(len(found) - 1)}{_ANNOTATION_MARK}"

    return _ANNOTATION.sub(hide, text), found


def show_annotations(text: str, found: list[str]) -> str:
    """Put the annotations back, unchanged."""
    if not found:
        return text
    hidden = {f"{_ANNOTATION_MARK}{letters(i)}{_ANNOTATION_MARK}": annotation for i, annotation in enumerate(found)}
    return _ANNOTATION_HIDDEN.sub(lambda match: hidden.get(match[0], match[0]), text)


def between_annotations(text: str, change: Callable[[str], str]) -> str:
    """Apply ``change`` to the text around annotation placeholders only."""
    return "".join(part if i % 2 else change(part) for i, part in enumerate(_ANNOTATION_HIDDEN.split(text)))


# ------------------------------------------------------------------------------------------- technical terms with hyphens

# The look-behinds keep the search linear: a match can only begin where a run of letters and digits does.
_TECH_TERM = re.compile(r"(?<![A-Za-z0-9])[0-9]*([A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)+)")
_HYPHEN_MARK = "<H>"
_HYPHEN_HIDDEN = re.compile(r"(?<!\s)\s*<H>\s*")


def find_tech_terms(text: str) -> list[str]:
    """Terms such as ``GPT-4-turbo`` or ``wi-fi``: a letter, letters or digits, then groups after hyphens."""
    return longest_first(_TECH_TERM.findall(text))


def hide_tech_terms(text: str) -> str:
    """Replace the hyphens of technical terms by a mark; the parts between are still normalised."""
    for term in find_tech_terms(text):
        text = text.replace(term, term.replace("-", _HYPHEN_MARK))
    return text


def show_tech_terms(text: str) -> str:
    """Turn the marks back into hyphens, dropping white space that a grammar put around them."""
    return _HYPHEN_HIDDEN.sub("-", text) if _HYPHEN_MARK in text else text


# ------------------------------------------------------------------------------------------------------ pinyin and names

_NAME = re.compile(r"(?<![\u4e00-\u9fff])[\u4e00-\u9fff]+(?:[-·—][\u4e00-\u9fff]+){1,2}")


def find_pinyin(text: str) -> list[str]:
    """Pinyin syllables with tone digit 1..5, in order of appearance, repetitions included."""
    return _PINYIN.findall(text)


def correct_pinyin(syllable: str) -> str:
    """The vocabulary's spelling: after j, q and x the vowel ü is written V (``ju4`` -> ``JV4``); other syllables stay as typed."""
    if syllable[:1] not in tuple("jqxJQX"):
        return syllable
    return _J_Q_X_READING.sub(r"\1v\2\3", syllable).upper()


def find_names(text: str) -> list[str]:
    """Chinese spellings of foreign names: runs of ideographs joined by one or two of ``-``, ``·``, ``—``."""
    return _NAME.findall(text)


def shield_pinyin(text: str) -> Shield:
    """Placeholders for the pinyin syllables of ``text``."""
    return Shield(find_pinyin(text), "<pinyin_", ">")


def shield_names(text: str) -> Shield:
    """Placeholders for the names of ``text``."""
    return Shield(find_names(text), "<n_", ">")
