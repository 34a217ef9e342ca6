"""A book or a script to the sentences and silences it consists of.

Plain text: paragraphs are separated by empty lines, line breaks inside them mean nothing. With voices named, every line stands for itself
and may begin with ``name:``. ``[pause 500ms]`` and ``[pause 1.5 s]`` are silences; other text in brackets is spoken.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

LONGEST_PAUSE_MS = 60_000
LONGEST_LABEL = 40

_PAUSE = re.compile(r"\[\s*pause\b([^\]\n]*)\]", re.IGNORECASE)
_LENGTH = re.compile(r"[\s:=]*(\d+(?:\.\d+)?)\s*(ms|s|sec|seconds?)?\s*", re.IGNORECASE)
_LABEL = re.compile(rf"((?:\s*\[\s*pause\b[^\]\n]*\])*)\s*([^:：\n]{{1,{LONGEST_LABEL}}})[:：]\s*(.*)", re.DOTALL)
# The end of a sentence: marks with closing quotes, before a space or, after Chinese marks, before anything.
_END = re.compile(r"""(?:[.!?…]+["'”’)\]»]*(?=\s)|[。！？…]+[”’」』）]*)""")
_OPEN = re.compile(r"""(?:^|[\s("'“‘])(\S+)$""")
_NARROW = str.maketrans("。？！", ".?!")
# A full stop after these does not end a sentence.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st mt vs etc no vol fig approx dept est gen col lt capt sgt rev hon messrs mme mlle "  # noqa: SIM905
    "e.g i.e a.m p.m u.s u.k".split()
)


@dataclass(frozen=True)
class Pauses:
    """Silence in ms after a sentence, by its last mark, and after a paragraph (or a line of a script)."""

    full_stop: int = 300
    question: int = 350
    exclamation: int = 350
    ellipsis: int = 500
    other: int = 250
    line: int = 450
    paragraph: int = 700

    def after(self, sentence: str) -> int:
        """The silence that follows ``sentence`` within a paragraph."""
        bare = sentence.rstrip("\"'”’)]»」』） ")
        if bare.endswith(("...", "…")):
            return self.ellipsis
        by_mark = {".": self.full_stop, "?": self.question, "!": self.exclamation}
        return by_mark.get(bare[-1:].translate(_NARROW), self.other)


@dataclass(frozen=True)
class Sentence:
    """What is spoken in one go: its text, who speaks (None: the narrator), the silence after it, and its line in the file."""

    text: str
    speaker: str | None
    pause_ms: int
    line: int


def read_script(text: str, speakers: Collection[str] = (), pauses: Pauses | None = None) -> list[Sentence]:
    """All sentences of ``text``, in order. ``speakers``: the names that may stand before a colon, compared without case.

    Errors: ``ValueError`` naming the line, for a pause without a length, or for a label that is almost one of ``speakers``;
    ``ValueError`` for text without any sentence.
    """
    pauses = pauses or Pauses()
    sentences: list[Sentence] = []
    for block in _blocks(text, by_line=bool(speakers)):
        speaker, body = _speaker(block.text, block.line, speakers)
        _add(sentences, body, speaker, block.line, pauses)
        if sentences and body.strip():
            _lengthen(sentences, pauses.paragraph if block.ends_paragraph else pauses.line)
    if not any(sentence.text for sentence in sentences):
        raise ValueError("the text is empty: nothing to say")
    return sentences


@dataclass(frozen=True)
class _Block:
    text: str
    line: int
    ends_paragraph: bool


def _blocks(text: str, by_line: bool) -> Iterator[_Block]:
    lines = text.replace("\ufeff", "").splitlines()
    begin = 0
    while begin < len(lines):
        if not lines[begin].strip():
            begin += 1
            continue
        end = begin + 1
        while not by_line and end < len(lines) and lines[end].strip():
            end += 1
        last = all(not line.strip() for line in lines[end : end + 1])
        yield _Block("\n".join(lines[begin:end]), begin + 1, last)
        begin = end


def _speaker(text: str, line: int, speakers: Collection[str]) -> tuple[str | None, str]:
    match = _LABEL.fullmatch(text) if speakers else None
    if match is None:
        return None, text
    names = {name.casefold(): name for name in speakers}
    label = match[2].strip().casefold()
    if label in names:
        return names[label], match[1] + match[3]
    close = difflib.get_close_matches(label, names, n=1, cutoff=0.75)
    if close:
        raise ValueError(
            f"line {line}: there is no voice {match[2].strip()!r}; did you mean {names[close[0]]!r}? Known: {', '.join(sorted(speakers))}"
        )
    return None, text  # a colon in the text


def _add(sentences: list[Sentence], text: str, speaker: str | None, line: int, pauses: Pauses) -> None:
    """Append the sentences of one block, its inline pauses added to the sentence before."""
    position = 0
    for match in [*_PAUSE.finditer(text), None]:
        stretch = text[position : match.start() if match else len(text)]
        here = line + text[:position].count("\n")
        sentences += [Sentence(sentence, speaker, pauses.after(sentence), here) for sentence in split_sentences(stretch)]
        if match is None:
            return
        position = match.end()
        length_ms = _pause_ms(match, line + text[: match.start()].count("\n"))
        if sentences:
            _set_pause(sentences, length_ms, add=not stretch.strip())
        else:
            sentences.append(Sentence("", speaker, length_ms, here))  # silence before the first word


def _pause_ms(match: re.Match[str], line: int) -> int:
    length = _LENGTH.fullmatch(match[1])
    if length is None:
        raise ValueError(f"line {line}: {match[0]!r} has no length; write [pause 500ms] or [pause 1.5 s]")
    milliseconds = float(length[1]) * (1000 if (length[2] or "ms").lower().startswith("s") else 1)
    if milliseconds > LONGEST_PAUSE_MS:
        raise ValueError(f"line {line}: {match[0]!r} is longer than {LONGEST_PAUSE_MS // 1000} s")
    return round(milliseconds)


def _set_pause(sentences: list[Sentence], length_ms: int, add: bool) -> None:
    """An explicit pause takes the place of the mark's; several in a row add up."""
    last = sentences[-1]
    sentences[-1] = Sentence(last.text, last.speaker, length_ms + (last.pause_ms if add else 0), last.line)


def _lengthen(sentences: list[Sentence], least_ms: int) -> None:
    last = sentences[-1]
    sentences[-1] = Sentence(last.text, last.speaker, max(last.pause_ms, least_ms), last.line)


def split_sentences(text: str) -> list[str]:
    """Cut at sentence ends, not after abbreviations, initials or within numbers; white space becomes single spaces."""
    text = " ".join(text.split())
    sentences, begin = [], 0
    for match in _END.finditer(text):
        # "Really?" she said.
        goes_on = match[0][0] in ".!?…" and text[match.end() : match.end() + 2].strip()[:1].islower()
        if goes_on or (match[0] == "." and _is_abbreviation(text[begin : match.start()])):
            continue
        sentences.append(text[begin : match.end()].strip())
        begin = match.end()
    sentences.append(text[begin:].strip())
    return [sentence for sentence in sentences if sentence]


def _is_abbreviation(before: str) -> bool:
    word = _OPEN.search(before)
    if word is None:
        return False
    bare = word[1].strip("\"'“‘(")
    return bare.lower() in _ABBREVIATIONS or (len(bare) == 1 and bare.isupper() and bare != "I")
