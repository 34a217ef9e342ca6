"""Pronunciation front-end: known words become phones, unknown ones stay letters. For voices that come with a ``lexicon.txt.gz``.

Interface, for synthesis and training alike:

>>> tokenizer = LexiconTokenizer("checkpoints/small/bpe.model", Lexicon.load("checkpoints/small/lexicon.txt.gz"))  # doctest: +SKIP
>>> len(tokenizer)                                       # pieces of the vocabulary  # doctest: +SKIP
>>> tokenizer.encode("Hello, world!")                    # doctest: +SKIP
['▁', 'hh', 'ah0', 'l', 'ow1', ',', '▁', 'w', 'er1', 'l', 'd', '!']
>>> tokenizer.ids(tokenizer.encode("Hello, world!"))     # what the GPT reads  # doctest: +SKIP

Pieces: ``▁`` before every word; phones of the ARPAbet set in lower case, vowels with their stress (``ow1``: CMUdict's 39 phones, 69 with
stress); upper-case letters for the words that no rule can pronounce; marks as they are. ``<read|r eh1 d>`` gives a word its phones.
The vocabulary file is a SentencePiece model that holds the phones as control symbols, so that no text can be taken for them
(:func:`indextts.training.letters.phone_tokenizer`). Without a lexicon file nothing here is used.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from indextts.text.tokenizer import Tokenizer

Phones = tuple[str, ...]

VOWELS = ("aa", "ae", "ah", "ao", "aw", "ay", "eh", "er", "ey", "ih", "iy", "ow", "oy", "uh", "uw")
_CONSONANTS = "b ch d dh f g hh jh k l m n ng p r s sh t th v w y z zh"
PHONES = (*(f"{vowel}{stress}" for vowel in VOWELS for stress in "012"), *_CONSONANTS.split())
BOUNDARY = "▁"

_SIBILANTS = frozenset(("s", "z", "sh", "zh", "ch", "jh"))
_VOICELESS = frozenset(("p", "t", "k", "th", "f", *_SIBILANTS - {"z", "zh", "jh"}))
_WORD = re.compile(r"<([^|>\n]+)\|([^>\n]+)>|([A-Z]+(?:'[A-Z]+)*)")
_INITIALS = re.compile(r"(?<![A-Za-z'])([A-Z]{2,5})('?s?)(?![A-Za-z'])")  # GPU, PDFs, GPU's
_VOWEL = re.compile("[AEIOUY]")
_LONGEST_INITIALS = 5
_CAMEL = re.compile("[A-Za-z]*[a-z][A-Z][A-Za-z]*")
_HUMP = re.compile("(?<=[a-z])(?=[A-Z])")
_SHORTEST_PART = 3  # letters of each half of a compound
_MOST_CACHED = 200_000  # words: a service must not grow for ever


class Lexicon:
    """Words (upper case) to phones; endings and compounds of known words are worked out by rule.

    ``entries`` maps words to phones separated by spaces; stress digits belong to the vowels.
    """

    def __init__(self, entries: dict[str, str]) -> None:
        self._entries = entries

    @classmethod
    def load(cls, path: str | Path) -> Lexicon:
        """Read ``lexicon.txt.gz``: a word and its phones on each line; lines that begin with ``;;;`` are comments.

        Errors: ``FileNotFoundError``, or ``ValueError`` that names the file and the first line that is not a pronunciation.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no lexicon at {path}")
        try:
            lines = gzip.decompress(path.read_bytes()).decode("ascii").splitlines()
        except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path} is not a gzipped lexicon (damaged or incomplete download?): {error}") from error
        entries: dict[str, str] = {}
        for line in lines:
            word, _, phones = line.partition(" ")
            if phones and not line.startswith(";;;"):
                entries[word.upper()] = phones.lower()
        wrong = next((f"{word} {phones}" for word, phones in entries.items() if not _KNOWN.issuperset(phones.split())), None)
        if wrong is not None or not entries:
            raise ValueError(f"{path} is not a lexicon: {'no entries' if wrong is None else repr(wrong) + ' is not a pronunciation'}")
        return cls(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, word: str) -> bool:
        """Whether ``word`` has an entry of its own."""
        return word.upper() in self._entries

    def phones(self, word: str) -> Phones | None:
        """Phones of ``word`` in any case, or None if neither an entry nor a rule knows it."""
        word = word.upper()
        return self._entry(word) or self.by_rule(word)

    def letters(self, word: str) -> list[Phones] | None:
        """The names of a word's letters, each a word of its own (``GPU``), or None where the lexicon lacks one."""
        names = [self._entry(f"{letter}.") or self._entry(letter) for letter in word.upper()]
        return [name for name in names if name] if all(names) else None

    def by_rule(self, word: str) -> Phones | None:
        """Phones of ``word`` from its parts, its own entry left aside: endings first, then two known words side by side."""
        return self._inflected(word) or self._compound(word)

    def _entry(self, word: str) -> Phones | None:
        found = self._entries.get(word)
        return tuple(found.split()) if found else None

    def _inflected(self, word: str) -> Phones | None:
        for ending, rule in _ENDINGS:
            if word.endswith(ending) and len(word) > len(ending) + 1:
                for stem in _stems(word[: -len(ending)], ending):
                    base = self._entry(stem) or (self._inflected(stem) if ending in _OUTER else None)
                    if base:
                        return base + rule(base)
        return None

    def _compound(self, word: str) -> Phones | None:
        """The most even split into two known words; the second loses its main stress, as in ``lighthouse``."""
        for cut in sorted(range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1), key=lambda cut: abs(2 * cut - len(word))):
            first, second = self._entry(word[:cut]), self._entry(word[cut:]) or self._inflected(word[cut:])
            if first and second:
                return first + tuple(phone.replace("1", "2") for phone in second)
        return None


_KNOWN = frozenset(PHONES)


def plural(base: Phones) -> Phones:
    """What an s adds to a word that ends in these phones."""
    return ("ih0", "z") if base[-1] in _SIBILANTS else ("s",) if base[-1] in _VOICELESS else ("z",)


def _ed(base: Phones) -> Phones:
    return ("ih0", "d") if base[-1] in ("t", "d") else ("t",) if base[-1] in _VOICELESS else ("d",)


def _always(*phones: str) -> Callable[[Phones], Phones]:
    return lambda _: phones


_ENDINGS: tuple[tuple[str, Callable[[Phones], Phones]], ...] = (
    ("'S", plural), ("'LL", _always("ah0", "l")), ("'D", _ed), ("'VE", _always("ah0", "v")), ("S", plural), ("ED", _ed),
    ("ING", _always("ih0", "ng")), ("LY", _always("l", "iy0")), ("ER", _always("er0")), ("EST", _always("ah0", "s", "t")),
    ("NESS", _always("n", "ah0", "s")), ("LESS", _always("l", "ah0", "s")), ("FUL", _always("f", "ah0", "l")),
    ("ABLE", _always("ah0", "b", "ah0", "l")), ("MENT", _always("m", "ah0", "n", "t")),
)  # fmt: skip
_OUTER = frozenset(("'S", "S", "LY", "NESS"))  # follow other endings: lookers, boringly
_SILENT_E = frozenset(("ED", "ING", "ER", "EST", "ABLE"))


def _stems(stem: str, ending: str) -> list[str]:
    """Spellings that ``stem`` may have without the ending: as it is, with its e, its y, or its last letter once."""
    if ending == "S":
        if stem.endswith("SS"):
            return []
        return [stem, *([stem[:-1]] if stem.endswith("E") else []), *([stem[:-2] + "Y"] if stem.endswith("IE") else [])]
    stems = [stem]
    if ending in _SILENT_E:
        stems.append(stem + "E")
        if len(stem) > 3 and stem[-1] == stem[-2]:
            stems.append(stem[:-1])
    if stem.endswith("I"):
        stems.append(stem[:-1] + "Y")
    return stems


class _Phone(str):
    """A phone piece that remembers the letters it stands for (those of the whole word at its first phone), for display."""

    __slots__ = ("spelled",)
    spelled: str


class LexiconTokenizer(Tokenizer):
    """The tokenizer of a voice with a lexicon; see the module.

    Errors: those of :class:`Tokenizer`, and ``ValueError`` for a vocabulary without the phones.
    """

    word_boundary: str | None = BOUNDARY

    def __init__(self, model_path: str | Path, lexicon: Lexicon) -> None:
        super().__init__(model_path)
        self.lexicon = lexicon
        self._ids: dict[str, int] = {self._processor.id_to_piece(i): i for i in range(len(self))}
        self._words: dict[tuple[str, int], Sequence[str]] = {}
        missing = [phone for phone in PHONES if phone not in self._ids]
        if missing:
            raise ValueError(f"{self.path} does not fit the voice's lexicon: its vocabulary lacks the phones {', '.join(missing[:8])}, ..")

    def encode(self, text: str, *, raw: bool = False, spell: Callable[[str], bool] | None = None) -> list[str]:
        """Pieces of ``text``. ``raw`` changes nothing here: a single letter is spoken by its name.

        ``spell`` says of a word (upper case) whether to leave it spelled although it is known: training shows both ways.
        """
        del raw
        text = _CAMEL.sub(self._parted, text)
        initials = {match[0].upper(): len(match[1]) for match in _INITIALS.finditer(text)}
        alone = len(text.strip()) == 1
        pieces: list[str] = []
        normal, at = self._processor.normalize(self.pretokenize(text)), 0
        for match in _WORD.finditer(normal):
            self._marks(normal[at : match.start()], pieces)
            at = match.end()
            reading, word = match[2], match[3]
            if word is None:
                self._annotated(match[1], reading.replace(BOUNDARY, " "), pieces)
            elif spell is not None and spell(word):
                pieces += word
            else:
                pieces += self._word(word, len(word) if alone else initials.get(word, 0))
        self._marks(normal[at:], pieces)
        return pieces

    def ids(self, pieces: Iterable[str]) -> list[int]:
        """Ids of pieces, one by one; what the vocabulary lacks becomes :attr:`unknown_id`."""
        get, unknown = self._ids.get, self.unknown_id
        return [get(piece, unknown) for piece in pieces]

    def unknown(self, pieces: Iterable[str]) -> list[str]:
        """Those pieces that the vocabulary lacks, in order, repetitions included."""
        return [piece for piece in pieces if piece not in self._ids]

    def _parted(self, match: re.Match[str]) -> str:
        """``IndexTTS`` as two words; ``McDonald``, which the lexicon knows, as one."""
        return match[0] if match[0] in self.lexicon else _HUMP.sub(" ", match[0])

    def _word(self, word: str, initials: int = 0) -> Sequence[str]:
        """One word: phones, else letter names for what is no word (``GPU``, ``HTML``), else letters. ``initials``: how many stand first."""
        found = self._words.get((word, initials))
        if found is None:
            if len(self._words) >= _MOST_CACHED:
                self._words.clear()
            found = self._words[word, initials] = self._worked_out(word, initials)
        return found

    def _worked_out(self, word: str, initials: int) -> Sequence[str]:
        lexicon = self.lexicon
        letter = len(word) == 1 and (initials > 0 or word not in ("A", "I"))  # inside a text, those two are words
        phones = None if letter else lexicon.phones(word)
        if phones:
            return _phone_pieces(phones, word)
        if not initials and (letter or (len(word) <= _LONGEST_INITIALS and not _VOWEL.search(word))):
            initials = len(word)
        names = lexicon.letters(word[:initials])
        if not names:
            return tuple(word)
        if len(word) > initials:
            names[-1] += plural(names[-1])
        pieces: list[str] = []
        for character, name in zip(word, names, strict=False):
            pieces += [BOUNDARY] * bool(pieces) + [*_phone_pieces(name, character)]
        return tuple(pieces)

    def _annotated(self, word: str, reading: str, pieces: list[str]) -> None:
        """``<word|phones>``, in any case; a reading that is not phones is read as text in the word's place."""
        phones = tuple(reading.lower().split())
        if _KNOWN.issuperset(phones):
            pieces += _phone_pieces(phones, word)
        else:
            pieces += self.encode(reading)[1:]

    def _marks(self, run: str, pieces: list[str]) -> None:
        """What is no word, one character a piece; unknown neighbours stay together, as in SentencePiece."""
        unknown = ""
        for character in run:
            if character in self._ids:
                if unknown:
                    pieces.append(unknown)
                    unknown = ""
                pieces.append(character)
            else:
                unknown += character
        if unknown:
            pieces.append(unknown)


def _phone_pieces(phones: Phones, word: str) -> Phones:
    pieces = tuple(map(_Phone, phones))
    for i, piece in enumerate(pieces):
        piece.spelled = "" if i else word
    return pieces


def spelled(pieces: Iterable[str]) -> str:
    """The words that ``pieces`` stand for, as readable text."""
    return "".join(getattr(piece, "spelled", piece) for piece in pieces).replace(BOUNDARY, " ").strip()
