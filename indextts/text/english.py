"""What the grammar leaves of English that a voice of phones and letters cannot read: abbreviations with dots, signs between words.

Only for voices that speak nothing else (:class:`indextts.text.normalize.TextNormalizer` with ``language="en"``).
"""

from __future__ import annotations

import re

_SHORT = {
    "e.g.": "for example",
    "i.e.": "that is",
    "etc.": "and so on",
    "vs.": "versus",
    "approx.": "approximately",
    "w/o": "without",
    "w/": "with",
}
_SHORT_FORMS = re.compile("(?<![A-Za-z.])(" + "|".join(re.escape(short) for short in _SHORT) + ")(?![A-Za-z])", re.IGNORECASE)
_ENDS = re.compile(r"\s*$|\s+[A-Z]")  # what follows a full stop
_DOTTED = re.compile(r"(?<![A-Za-z.])(?:[A-Z]\.){2,}")
_BETWEEN = re.compile(r"(?<=\w)[/_|](?=\w)|(?<=\w)\s+[/|]\s+(?=\w)")
_DOT_TOO_MANY = re.compile(r"\.(?=\s?[,;:])")


def before_grammar(text: str) -> str:
    """``e.g.`` and its like in words, ``U.S.`` as letters, ``and/or`` as two words; web addresses stay for the grammar."""
    text = _SHORT_FORMS.sub(lambda match: _SHORT[match[1].lower()] + _full_stop(match, "etc."), text)
    return _DOTTED.sub(lambda match: match[0].replace(".", "") + ("." if match.end() == len(match.string.rstrip()) else ""), text)


def after_grammar(text: str) -> str:
    """Signs between words become spaces; of ``.,`` the comma stays."""
    return _DOT_TOO_MANY.sub("", _BETWEEN.sub(" ", text))


def _full_stop(match: re.Match[str], ending: str) -> str:
    """The stop of an abbreviation that also ends its sentence."""
    return "." if match[1].lower() == ending and _ENDS.match(match.string, match.end()) else ""
