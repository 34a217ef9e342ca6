"""SentencePiece BPE (arXiv 1808.06226) over spaced-out, upper-cased text, as the release's ``bpe.model`` expects it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Hangul Jamo; CJK from radicals to Yi; Hangul and Jamo extensions; compatibility ideographs, forms and half-width kana; the
# supplementary ideographic plane. Kana and CJK punctuation are inside.
_CJK = re.compile(
    r"([\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff])"
)  # fmt: skip


def pretokenize(text: str, *, upper: bool = True) -> str:
    """Put single spaces around every CJK character and upper-case the rest (``ß`` becomes ``SS``)."""
    parts = (part.strip() for part in _CJK.split(text.strip()))
    return " ".join(part.upper() if upper else part for part in parts if part)


class Tokenizer:
    """The tokenizer of a model directory; the file is read on construction.

    Errors: ``FileNotFoundError`` for a missing file, ``ValueError`` for one that is not a SentencePiece model; both name it.
    """

    def __init__(self, model_path: str | Path) -> None:
        self.path = Path(model_path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no tokenizer model at {self.path}")
        from sentencepiece import SentencePieceProcessor

        processor: Any = SentencePieceProcessor()
        try:
            loaded = processor.LoadFromSerializedProto(self.path.read_bytes())
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{self.path} is not a SentencePiece model (damaged or incomplete download?): {error}") from error
        if not loaded or processor.get_piece_size() < 1:
            raise ValueError(f"{self.path} is not a SentencePiece model (damaged or incomplete download?)")
        self._processor = processor

    def __len__(self) -> int:
        """Number of pieces."""
        return int(self._processor.get_piece_size())

    @property
    def unknown_id(self) -> int:
        """Id of pieces that the vocabulary lacks."""
        return int(self._processor.unk_id())

    @property
    def start_id(self) -> int:
        """Id of ``<s>``."""
        return int(self._processor.bos_id())

    @property
    def stop_id(self) -> int:
        """Id of ``</s>``."""
        return int(self._processor.eos_id())

    pretokenize = staticmethod(pretokenize)
    word_boundary: str | None = None  # the piece before each word, where words are spelled in many pieces

    def encode(self, text: str, *, raw: bool = False) -> list[str]:
        """Pieces of ``text``; with ``raw`` the text goes to SentencePiece as it is, without :func:`pretokenize`."""
        return list(self._processor.encode(text if raw else pretokenize(text), out_type=str))

    def ids(self, pieces: Iterable[str]) -> list[int]:
        """Ids of pieces, one by one; what the vocabulary lacks becomes :attr:`unknown_id`."""
        return [int(self._processor.piece_to_id(piece)) for piece in pieces]

    def unknown(self, pieces: Iterable[str]) -> list[str]:
        """Those pieces that the vocabulary lacks, in order, repetitions included."""
        return [piece for piece in pieces if self._processor.piece_to_id(piece) == self.unknown_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. Errors: ``ValueError`` for an id outside the vocabulary."""
        wrong = [i for i in ids if not 0 <= i < len(self)]
        if wrong:
            raise ValueError(f"ids outside the vocabulary of {len(self)} pieces: {wrong[:10]}")
        return str(self._processor.decode(list(ids)))
