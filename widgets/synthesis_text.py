"""The text, the segments it will be spoken in, and the glossary of how terms are spoken."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as W

from indextts.runs import preview_segments, text_lock
from indextts.text import Glossary
from widgets.base import words
from widgets.files import Download, FileDrop
from widgets.loop import Latest
from widgets.notices import collecting

SAMPLE = "The ferry came in at 7:45, and nobody was waiting. So we walked home along the harbour."
MOST_SHOWN = 12
LETTERS_A_SECOND, CHARACTERS_A_SECOND = 15, 4.5  # of ordinary English and Chinese speech; good for a first idea only


@dataclass(frozen=True)
class Preview:
    """What the front-end makes of a text: per segment its token count and readable text; or why it refuses it."""

    segments: tuple[tuple[int, str], ...] = ()
    unknown: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    problem: str = ""

    @property
    def tokens(self) -> int:
        """Text tokens of all segments."""
        return sum(count for count, _ in self.segments)

    @property
    def seconds(self) -> float:
        """How long it may take to say all this: by letters, since tokens are words here and single sounds there."""
        text = "".join(text for _, text in self.segments)
        latin = sum(character.isascii() for character in text)
        return latin / LETTERS_A_SECOND + (len(text) - latin) / CHARACTERS_A_SECOND


def preview(tts: Any, text: str, most_tokens: int, quick: int) -> Preview:
    """Segments of ``text`` as ``infer`` would speak them; for any thread."""
    if not text.strip():
        return Preview(problem="Type something to say.")
    notices: list[str] = []
    try:
        with collecting(notices):
            segments = preview_segments(tts, text, most_tokens, quick)
    except (ValueError, TypeError) as error:
        return Preview(problem=words(error))
    unknown = dict.fromkeys(piece for segment in segments for piece in segment.unknown)
    shown = tuple((len(segment), segment.text) for segment in segments)
    return Preview(shown, tuple(unknown), tuple(notices))


class TextBox(W.VBox):
    """The text and its segments, which follow the typing at most twice a second. :meth:`refresh` after a change of limits."""

    def __init__(self, tts: Any, limits: Callable[[], tuple[int, int]], on_change: Callable[[], object] = lambda: None) -> None:
        self._limits, self._on_change = limits, on_change
        self.text = W.Textarea(value=SAMPLE, placeholder="What to say", rows=4, layout={"width": "100%"})
        self.summary = W.HTML("")
        self.segments = W.HTML("")
        self.segments.add_class("itl-preview")  # of a fixed height: buttons below must not move away from under a pointer
        self._latest = Latest(lambda request: preview(tts, *request), self.show)
        super().__init__((self.text, self.summary, self.segments))
        self.text.observe(lambda _: self.refresh(), "value")
        self.refresh()

    def refresh(self) -> None:
        """Ask for a new preview, and tell of the change."""
        self._latest.submit((self.text.value, *self._limits()))
        self._on_change()

    def show(self, found: Preview) -> None:
        """Show a preview."""
        if found.problem:
            self.summary.value = f'<div class="itl-hint">{html.escape(found.problem)}</div>'
            self.segments.value = ""
            return
        count = len(found.segments)
        facts = f"{found.tokens} tokens in {count} {'segment' if count == 1 else 'segments'}, roughly {found.seconds:.0f} s of speech."
        if found.unknown:
            pieces = ", ".join(map(repr, found.unknown[:8]))
            facts += f" Not in the vocabulary, so not spoken as written: {pieces}."
        self.summary.value = f'<div class="itl-hint">{html.escape(" ".join([facts, *found.notices]))}</div>'
        rows = "".join(
            f'<li><span class="itl-count">{tokens} tokens</span> {html.escape(text)}</li>' for tokens, text in found.segments[:MOST_SHOWN]
        )
        more = f'<div class="itl-hint">and {count - MOST_SHOWN} more segments</div>' if count > MOST_SHOWN else ""
        self.segments.value = f'<ol class="itl-segments" aria-label="Segments">{rows}</ol>{more}'

    def stop(self) -> None:
        """No more previews."""
        self._latest.stop()


class GlossaryEditor(W.VBox):
    """Terms and how they are spoken, live: what is set here counts from the next run on. ``on_change()`` follows every change."""

    def __init__(self, tts: Any, on_change: Callable[[], object] = lambda: None) -> None:
        self._tts, self._on_change = tts, on_change
        width = {"width": "auto", "flex": "1 1 140px"}
        self.term = W.Text(placeholder="Term, as written", layout=width)
        self.english = W.Text(placeholder="spoken in English text", layout=width)
        self.chinese = W.Text(placeholder="spoken in Chinese text", layout=width)
        self.add_button = W.Button(description="Set", tooltip="Add the term, or replace how it is spoken", layout={"width": "80px"})
        self.terms = W.Dropdown(options=[], layout={"width": "auto", "flex": "1 1 140px"})
        self.remove_button = W.Button(description="Remove", layout={"width": "80px"})
        self.table = W.HTML("")
        self.message = W.HTML("")
        self.load = FileDrop(self._loaded, (".yaml", ".yml"), most_mb=1.0, label="Load glossary.yaml", hint="replaces the terms above")
        self.save = Download("Save glossary.yaml", self._saved, self._fail)
        super().__init__(
            (
                W.HTML('<div class="itl-hint">Longest terms first, in any case of letters. English or Chinese, or both.</div>'),
                W.HBox([self.term, self.english, self.chinese, self.add_button], layout={"flex_flow": "row wrap"}),
                self.table,
                W.HBox([self.terms, self.remove_button], layout={"flex_flow": "row wrap"}),
                self.message,
                self.load,
                W.HBox([self.save]),
            )
        )
        self.add_button.on_click(lambda _: self.set_term(self.term.value, self.english.value, self.chinese.value))
        self.remove_button.on_click(lambda _: self.remove_term(self.terms.value))
        self.show()

    @property
    def glossary(self) -> Glossary:
        """The engine's glossary."""
        glossary: Glossary = self._tts.normalizer.glossary
        return glossary

    def set_term(self, term: str, english: str = "", chinese: str = "") -> None:
        """Set how a term is spoken; what is left empty keeps what it had."""
        self._change(lambda: self.glossary.add(term.strip(), en=english.strip() or None, zh=chinese.strip() or None))
        if not self.message.value:
            self.term.value = self.english.value = self.chinese.value = ""

    def remove_term(self, term: str | None) -> None:
        """Forget a term."""
        if term:
            self._change(lambda: self.glossary.remove(term))

    def show(self) -> None:
        """Show the terms as they are now."""
        rows = "".join(
            f"<tr><td>{html.escape(term)}</td><td>{html.escape(_form(spoken, 'en'))}</td><td>{html.escape(_form(spoken, 'zh'))}</td></tr>"
            for term, spoken in self.glossary.items()
        )
        heads = "<tr><th>Term</th><th>In English text</th><th>In Chinese text</th></tr>"
        self.table.value = f'<table class="itl-table">{heads}{rows}</table>' if rows else '<div class="itl-hint">No terms yet.</div>'
        self.terms.options = list(self.glossary)
        self.remove_button.disabled = not self.terms.options

    def _change(self, change: Callable[[], object]) -> None:
        self.message.value = ""
        try:
            with text_lock(self._tts):
                change()
        except ValueError as error:
            self._fail(error)
        self.show()
        self._on_change()

    def _loaded(self, name: str, data: bytes) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            loaded = Glossary.load(path)

        def replace() -> None:
            self.glossary.clear()
            self.glossary.update(loaded)

        self._change(replace)
        return f"{len(loaded)} terms loaded."

    def _saved(self) -> tuple[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "glossary.yaml"
            self.glossary.save(path)
            return path.name, path.read_bytes()

    def _fail(self, error: Exception) -> None:
        self.message.value = f'<div class="itl-error" role="alert">{html.escape(words(error))}</div>'


def _form(spoken: Any, language: str) -> str:
    return spoken if isinstance(spoken, str) else spoken.get(language, "")
