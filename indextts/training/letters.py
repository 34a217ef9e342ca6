"""The small voice's tokenizer: every letter is a piece, so that spelling is all there is to learn; and every phone of the lexicon.

A SentencePiece model, like the release's; accented Latin letters count as their base letter. Specials as there: ``<s>`` 0, ``</s>`` 1,
``<unk>`` 2.
"""

from __future__ import annotations

import functools
import io
import tempfile
import unicodedata
from pathlib import Path

from indextts.text.lexicon import PHONES

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARKS = "',.?!-"
VOCABULARY = 3 + 1 + len(LETTERS) + len(MARKS)  # specials, the space, letters, marks
PHONE_VOCABULARY = VOCABULARY + len(PHONES)


def letter_tokenizer() -> bytes:
    """The serialised SentencePiece model of :data:`VOCABULARY` pieces."""
    return _model(())


def phone_tokenizer() -> bytes:
    """The same with the phones of :mod:`indextts.text.lexicon` as pieces that no text can match: :data:`PHONE_VOCABULARY` pieces."""
    return _model(PHONES)


@functools.cache
def _model(phones: tuple[str, ...]) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.tsv")
        rules.write_text(_rules(), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([LETTERS, MARKS, " ".join(LETTERS)]),
            model_writer=model,
            model_type="char",
            vocab_size=VOCABULARY + len(phones),
            control_symbols=list(phones),
            character_coverage=1.0,
            normalization_rule_tsv=str(rules),
            add_dummy_prefix=True,
            bos_id=0,
            eos_id=1,
            unk_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    return model.getvalue()


def _rules() -> str:
    """Normalisation as ``source code points TAB target code points``: accents dropped, typographic marks made plain."""
    targets = {0x2018: "'", 0x2019: "'", 0x201C: "'", 0x201D: "'", 0x2013: "-", 0x2014: "-", 0x2026: "...", 0x3A: ",", 0x3B: ",", 0x22: "'"}
    for code in range(0xC0, 0x250):
        base = unicodedata.normalize("NFKD", chr(code))[0]
        if base != chr(code) and base.isascii() and base.isalpha():
            targets[code] = base.upper()
    targets.update({ord(letter.lower()): letter for letter in LETTERS})
    return "".join(f"{code:X}\t{' '.join(f'{ord(c):X}' for c in target)}\n" for code, target in sorted(targets.items()))
