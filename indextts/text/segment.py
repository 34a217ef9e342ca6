"""Long text to segments that the GPT speaks one by one.

The cut points and their merging are those of the IndexTTS2 release, oddities included, because the segments decide the prosody:
a quote after a cut is spoken twice, and pieces without any punctuation are cut at exactly ``max_tokens``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)

_SENTENCE_ENDS = frozenset({".", "!", "?", "▁.", "▁?", "▁..."})
_COMMAS = frozenset({",", "▁,"})
_HYPHENS = frozenset({"-"})
_QUOTES = frozenset({"'", "▁'"})
_ANY_MARK = _SENTENCE_ENDS | _COMMAS | _HYPHENS | _QUOTES
_SHORTEST_CUT = 3  # pieces a segment must have to be cut at a mark


def split_segments(
    pieces: Sequence[str], max_tokens: int = 120, quick_streaming_tokens: int = 0, *, boundary: str | None = None
) -> list[list[str]]:
    """Split pieces into segments of at most ``max_tokens`` (one more where a quote is repeated).

    ``boundary``: the piece before each word, for vocabularies that spell words in many pieces: forced cuts are then made before it.
    ``quick_streaming_tokens`` > 0 keeps segments apart until that many pieces have passed, so that the first audio comes early.
    Errors: ``ValueError`` for limits that are not whole numbers in range.
    """
    _check("max_tokens", max_tokens, 1)
    _check("quick_streaming_tokens", quick_streaming_tokens, 0)
    segments = _split(list(pieces), _SENTENCE_ENDS, max_tokens, quick_streaming_tokens, boundary)
    forced = sum(len(segment) == max_tokens and segment[-1] not in _ANY_MARK for segment in segments[:-1])
    if forced:
        logger.warning(
            "%d cuts fall inside a phrase, because %d text tokens pass without punctuation; they may be heard", forced, max_tokens
        )
    return segments


def shorten_first(segments: list[list[str]], most: int) -> list[list[str]]:
    """Cut the first of ``segments`` at a mark so that it has at most ``most`` pieces, or as few more as the marks allow; 0: leave it.

    For streaming: the first sound comes when the first segment is done. The release does not do this: its ``quick_streaming_tokens`` only
    keeps :func:`split_segments` from joining, and half a segment's length is joined all the same.
    """
    _check("quick_streaming_tokens", most, 0)
    if not most or not segments or len(segments[0]) <= most:
        return segments
    first, *others = segments
    cuts = [
        i
        for i in range(_SHORTEST_CUT, len(first) - _SHORTEST_CUT + 1)
        if first[i - 1] in _SENTENCE_ENDS | _COMMAS and first[i] not in _ANY_MARK
    ]
    if not cuts:
        return segments
    cut = max((i for i in cuts if i <= most), default=cuts[0])
    return [first[:cut], first[cut:], *others]


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def _split(pieces: list[str], marks: frozenset[str], limit: int, quick: int, boundary: str | None) -> list[list[str]]:
    """One level: cut at ``marks``, and within what holds them at commas and hyphens, then merge."""
    emitted: list[list[str]] = []
    current: list[str] = []
    has_comma = has_hyphen = False
    for i, piece in enumerate(pieces):
        current.append(piece)
        has_comma = has_comma or piece in _COMMAS
        has_hyphen = has_hyphen or piece in _HYPHENS
        if has_comma and marks.isdisjoint(_COMMAS):
            emitted += _split(current, _COMMAS, limit, quick, boundary)
        elif has_hyphen and marks.isdisjoint(_HYPHENS):
            emitted += _split(current, _HYPHENS, limit, quick, boundary)
        elif len(current) > limit:
            whole, rest = _forced(current, limit, boundary)
            emitted += whole
            if rest:
                current = rest
                continue
        elif piece in marks and len(current) >= _SHORTEST_CUT:
            # The quote closes this segment and, as the next piece, opens the following one.
            closing = pieces[i + 1 : i + 2]
            emitted.append(current + closing if closing and closing[0] in _QUOTES else current)
        else:
            continue
        current, has_comma, has_hyphen = [], False, False
    if current:
        emitted.append(current)
    return _merge(emitted, limit, quick)


def _forced(pieces: list[str], limit: int, boundary: str | None) -> tuple[list[list[str]], list[str]]:
    """Cuts of a phrase of ``limit`` + 1 pieces without marks: at exactly ``limit``; or before the last word, which is left to go on."""
    if boundary is not None and boundary in pieces[1:]:
        cut = len(pieces) - 1 - pieces[::-1].index(boundary)
        return [pieces[:cut]], pieces[cut:]
    return [pieces[start : start + limit] for start in range(0, len(pieces), limit)], []


def _merge(segments: list[list[str]], limit: int, quick: int) -> list[list[str]]:
    """Join neighbours, left to right, as long as they fit."""
    merged: list[list[str]] = []
    total = 0
    for segment in segments:
        total += len(segment)
        joined = len(merged[-1]) + len(segment) if merged else 0
        if merged and ((joined <= limit and total > quick) or joined <= limit / 2):
            merged[-1] = merged[-1] + segment
        else:
            merged.append(segment)
    return merged
