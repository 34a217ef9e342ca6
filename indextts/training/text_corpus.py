"""What the synthesisers read: sentences of documents on this machine, templates, and word sweeps.

The documents are only reading matter: nothing of them is kept in the package or in the weights. The list is prepared once
(:func:`write_corpus`) and carried to where the speech is made; :class:`SentenceSource` mixes it with what is made up on the spot.
"""

from __future__ import annotations

import ast
import gzip
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from indextts.training.templates import template_sentence, vocabulary

logger = logging.getLogger(__name__)

LONGEST = 118  # characters of an utterance: a segment of the pipeline holds at most 120 pieces, and a letter is a piece
_WORDS_MARK = "#words"  # the line that separates sentences from words in the corpus file
_ABBREVIATIONS = {
    "Mr.": "Mister",
    "Mrs.": "Missis",
    "Dr.": "Doctor",
    "e.g.": "for example",
    "i.e.": "that is",
    "etc.": "and so on",
    "vs.": "versus",
}
_COMMON = "the a an of to in is are was were and or for with that this it on as by be from you we they he she not have has can will"
_STOP_WORDS = frozenset(_COMMON.split())
# Words that begin a phrase, before which some readers pause although nothing is written there.
_OPENING = "about across after and around as at because before behind between beside but by during for from if in into near next of on or"
_OPENERS = frozenset(f"{_OPENING} over than that through to under until when where which while who with without".split())
_FEWEST_WORDS = 3  # of a phrase
_KEPT = re.compile(r"[A-Z][A-Za-z' ,.!?-]*[.!?]")
_LONG_FORM = re.compile(r"\b(?:it|he|she|that|this|there|here|what|where|who|which|how)'s\b", re.IGNORECASE)


def write_corpus(path: Path, dictionary: Path, folders: Iterable[Path], most: int = 60_000, seed: int = 0) -> Path:
    """Collect sentences from the texts under ``folders`` and write the corpus file ``path`` (``.txt.gz``).

    ``dictionary``: a pronunciation dictionary or word list, one word first on each line; other words disqualify a sentence.
    """
    known = {
        line.split()[0].lower() for line in dictionary.read_text(encoding="utf-8", errors="replace").splitlines() if line[:1].isalpha()
    }
    known = {word for word in known if word.isalpha() or "'" in word} | vocabulary()
    seen: set[str] = set()
    sentences: list[str] = []
    counts: Counter[str] = Counter()
    for file in _text_files(folders):
        for sentence in sentences_of(_read(file), known):
            key = re.sub(r"[^a-z ]", "", sentence.lower())
            if key not in seen:
                seen.add(key)
                sentences.append(sentence)
                counts.update(key.split())
    random.Random(seed).shuffle(sentences)
    words = [word for word, _ in counts.most_common() if word in known and len(word) > 1]
    words += sorted(word for word in known - set(words) if 2 < len(word) < 13 and word.isalpha())
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="ascii") as out:
        out.write("\n".join([*sentences[:most], _WORDS_MARK, *words]))
    logger.info("%s: %d of %d sentences, %d words", path, min(most, len(sentences)), len(sentences), len(words))
    return path


def sentences_of(text: str, known: set[str]) -> Iterator[str]:
    """The plain English sentences of ``text`` that hold only words of ``known``."""
    for short, spoken in _ABBREVIATIONS.items():
        text = text.replace(short, spoken)
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        for raw in re.split(r"(?<=[.!?])\s+(?=[A-Z])", flat):
            sentence = raw.replace(";", ",").replace(":", ",").strip()
            if _is_speakable(sentence, known):
                yield sentence


def _is_speakable(sentence: str, known: set[str]) -> bool:
    if not 12 <= len(sentence) <= LONGEST or not _KEPT.fullmatch(sentence) or _LONG_FORM.search(sentence) or "--" in sentence:
        return False
    words = re.findall(r"[A-Za-z']+", sentence)
    if not 3 <= len(words) <= 22 or not _STOP_WORDS.intersection(word.lower() for word in words):
        return False
    for word in words:
        if len(word) > 14 or word.lower() not in known or (len(word) > 1 and word.isupper()) or (len(word) == 1 and word not in "aIA"):
            return False
    return True


def _text_files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.is_symlink() and file.suffix not in (".so", ".pyc", ".dat", ".png", ".u8", ".xz", ".pdf"):
                yield file


def _read(file: Path) -> str:
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = data[:2_000_000].decode("utf-8", "ignore")
    except (OSError, EOFError):
        return ""
    if file.suffix != ".py":
        return re.sub(r"^%$", "\n", text, flags=re.MULTILINE)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))


def phrased(text: str, rng: random.Random, chance: float = 0.85) -> str:
    """``text`` with commas before some words that begin a phrase, as somebody reads who pauses there.

    ``chance``: of a comma where one can be: at least three words after the last mark, and one word before the next.
    """
    words = text.split()
    spoken: list[str] = []
    since = 0
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if since >= _FEWEST_WORDS and word in _OPENERS and after and words[len(spoken) - 1] not in _OPENERS and rng.random() < chance:
            spoken[-1] += ","
            since = 0
        spoken.append(word)
        since = since + 1 if word[-1].isalpha() else 0
    return " ".join(spoken)


class SentenceSource:
    """An endless stream of utterance texts, different for each ``seed``.

    Without a corpus file it consists of template sentences only.
    """

    def __init__(self, corpus: Path | None, seed: int) -> None:
        self._rng = random.Random(seed)
        self._sentences: list[str] = []
        self._words: list[str] = []
        if corpus is not None:
            with gzip.open(corpus, "rt", encoding="ascii") as lines:
                sentences, _, words = lines.read().partition(_WORDS_MARK)
            self._sentences, self._words = sentences.split("\n")[:-1], words.split()

    def next(self) -> str:
        """One to three sentences, at most :data:`LONGEST` characters, with the marks and letters of the small voice's tokenizer."""
        text = self._sentence()
        while self._rng.random() < 0.35:
            more = self._sentence()
            if len(text) + 1 + len(more) > LONGEST:
                break
            text = f"{text} {more}"
        return text[:LONGEST]

    def _sentence(self) -> str:
        kind = self._rng.random()
        if self._sentences and kind < 0.42:
            return self._rng.choice(self._sentences)
        if self._words and kind < 0.70:
            return self._salad()
        if kind < 0.74:
            return self._short()
        return template_sentence(self._rng)

    def _salad(self) -> str:
        """Words in no order: every spelling gets its turn. The list begins with the frequent ones."""
        rng, words = self._rng, self._words
        frequent = min(len(words), 15_000)
        count = rng.randint(3, 9)
        chosen = [words[int(frequent * rng.random() ** 1.5)] if rng.random() < 0.75 else rng.choice(words) for _ in range(count)]
        text = chosen[0].capitalize()
        for word in chosen[1:]:
            text += (", " if rng.random() < 0.12 else " ") + word
        return text + rng.choice("...?!")

    def _short(self) -> str:
        """One or two words, such as answers and labels."""
        rng = self._rng
        pool = self._words[:8000] if self._words else ["yes", "no", "hello", "thanks", "maybe", "sorry"]
        words = [rng.choice(pool) for _ in range(rng.randint(1, 2))]
        return " ".join(words).capitalize() + rng.choice(".!?")
