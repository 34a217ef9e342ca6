"""The text front-end: normalise, tokenise, split into segments. Strings in, lists of ids out; CPU only, no torch.

>>> frontend = TextFrontend(Tokenizer("checkpoints/bpe.model"), TextNormalizer())  # doctest: +SKIP
>>> [segment.ids for segment in frontend.segments("It's 7:45 a.m.!")]  # doctest: +SKIP
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indextts.text.glossary import Glossary
from indextts.text.lexicon import Lexicon, LexiconTokenizer, spelled
from indextts.text.normalize import TextNormalizer
from indextts.text.segment import shorten_first, split_segments
from indextts.text.tokenizer import Tokenizer

__all__ = [
    "Glossary", "Lexicon", "LexiconTokenizer", "Segment", "TextFrontend", "TextNormalizer", "Tokenizer", "open_tokenizer", "split_segments",
]  # fmt: skip

logger = logging.getLogger(__name__)

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Segment:
    """What the GPT speaks in one go: ``pieces`` and their ``ids`` (equal lengths), and those pieces that are ``unknown``."""

    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    unknown: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def text(self) -> str:
        """The segment as readable text."""
        return spelled(self.pieces)


class TextFrontend:
    """User text to segments, with one tokenizer and one normaliser."""

    def __init__(self, tokenizer: Tokenizer, normalizer: TextNormalizer | None = None) -> None:
        self.tokenizer = tokenizer
        self.normalizer = normalizer or TextNormalizer()

    def pieces(self, text: str) -> list[str]:
        """Pieces of the normalised text. As in the release, a single character goes to the tokenizer as it is."""
        text = _encodable(text)
        if len(text.strip()) == 1:
            return self.tokenizer.encode(text, raw=True)
        return self._normalized_pieces(text)

    def segments(self, text: str, max_tokens: int = 120, quick_streaming_tokens: int = 0, *, on_unknown: str = "log") -> list[Segment]:
        """Split ``text`` into segments of at most ``max_tokens`` pieces (see :func:`split_segments`).

        Pieces that the vocabulary lacks are kept as the unknown id and reported once a call: ``on_unknown`` is ``log``, ``warn``
        (through :mod:`warnings`) or ``ignore``. A single character that means nothing as it is (``a``, ``7``) is spoken like any other
        text, where the release would speak the unknown token.

        Errors: ``TypeError`` for anything but str; ``ValueError`` for text that is empty or holds nothing that can be pronounced, and
        for limits out of range.
        """
        if on_unknown not in ("log", "warn", "ignore"):
            raise ValueError(f"on_unknown must be 'log', 'warn' or 'ignore', got {on_unknown!r}")
        text = _encodable(text)
        if not text.strip():
            raise ValueError("the text is empty: nothing to say")
        pieces = self.pieces(text)
        if len(text.strip()) == 1 and not self.pronounceable(pieces):
            pieces = self._normalized_pieces(text)
        if not self.pronounceable(pieces):
            raise ValueError(f"nothing in this text can be pronounced: {_shortened(text)!r}")
        boundary = self.tokenizer.word_boundary
        parts = shorten_first(split_segments(pieces, max_tokens, quick_streaming_tokens, boundary=boundary), quick_streaming_tokens)
        segments = [self._segment(part) for part in parts]
        self._report(self.tokenizer.unknown(pieces), on_unknown)
        return segments

    def pronounceable(self, pieces: Sequence[str]) -> bool:
        """Whether any piece is in the vocabulary and holds a letter, a digit or an ideograph."""
        unknown = set(self.tokenizer.unknown(pieces))
        return any(piece not in unknown and any(character.isalnum() for character in piece) for piece in pieces)

    def _normalized_pieces(self, text: str) -> list[str]:
        return self.tokenizer.encode(self.normalizer.normalize(text))

    def _segment(self, pieces: list[str]) -> Segment:
        return Segment(tuple(pieces), tuple(self.tokenizer.ids(pieces)), tuple(self.tokenizer.unknown(pieces)))

    def _report(self, unknown: list[str], how: str) -> None:
        if not unknown or how == "ignore":
            return
        distinct = list(dict.fromkeys(unknown))
        listing = ", ".join(map(repr, distinct[:10])) + (", ..." if len(distinct) > 10 else "")
        message = f"{len(unknown)} text tokens are not in the vocabulary and will not be spoken as written: {listing}"
        if how == "warn":
            warnings.warn(message, stacklevel=3)
        else:
            logger.warning(message)


def open_tokenizer(model_path: str | Path, lexicon_path: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a release folder, with its pronunciation lexicon if there is one. Errors: those of the two classes."""
    return Tokenizer(model_path) if lexicon_path is None else LexiconTokenizer(model_path, Lexicon.load(lexicon_path))


def _encodable(text: str) -> str:
    """``text`` with lone surrogates, which have no encoding, replaced by U+FFFD."""
    if not isinstance(text, str):
        raise TypeError(f"text must be str, got {type(text).__name__}")
    return _SURROGATE.sub("\ufffd", text)


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
