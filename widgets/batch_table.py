"""A table of texts: generate all, redo one, hear one, export."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as W

from indextts.runs import RunRecord
from widgets.base import words
from widgets.batch_rows import BatchRow, CheckSettings, pack, read_rows
from widgets.clips import Voice, bundled_clips
from widgets.files import Download, FileDrop
from widgets.loop import Latest
from widgets.player import Player
from widgets.session import Cancelled, Session, Task

PAGE = 10
OTHER_EMOTIONS = ("emo_audio_prompt", "use_emo_text", "emo_text")
WORDS = {"waiting": "waiting", "working": "working", "done": "done", "failed": "failed", "bad": "cannot be spoken"}


class BatchTable(W.VBox):
    """Rows from a file, spoken one after the other with the panel's voice and settings where a row says nothing else.

    ``defaults()`` gives those arguments of ``infer`` (``ValueError`` if something is missing), ``check(settings)`` checks a row's own.
    """

    def __init__(self, session: Session, defaults: Callable[[], dict[str, Any]], check: CheckSettings) -> None:
        self.session, self._defaults, self._check = session, defaults, check
        self.rows: list[BatchRow] = []
        self._tasks: dict[int, Task] = {}
        self._page = 0
        self.drop = FileDrop(
            self._loaded, (".csv", ".tsv", ".jsonl"), most_mb=5.0, label="Load rows", hint="CSV or JSONL with a column text"
        )
        self.summary, self.table, self.message = W.HTML(""), W.HTML(""), W.HTML("")
        self.all_button = _button("Generate all", "Speak every row that is not done", self.generate_all)
        self.cancel_button = _button("Cancel", "Give up the row in progress and those that wait", self.cancel)
        self.row = W.BoundedIntText(
            value=1, min=1, max=1, description="Row", style={"description_width": "36px"}, layout={"width": "110px"}
        )
        self.redo_button = _button("Redo", "Speak this row again", lambda: self.redo(self.row.value))
        self.play_button = _button("Play", "Hear this row", lambda: self.play(self.row.value))
        self.back = _button("Earlier rows", "Previous page", lambda: self._turn(-1))
        self.next = _button("Later rows", "Next page", lambda: self._turn(1))
        self.export = Download("Export ZIP", lambda: ("batch.zip", pack(self.rows)), self._fail)
        self.player = Player(layout={"display": "none"})
        hint = W.HTML(
            '<div class="itl-hint">Columns: text, and if you like voice (a path or the name of a bundled clip), name, emo_vector, '
            "or any setting by its name in Python. What a row leaves open comes from this panel.</div>"
        )
        self._line = W.HBox([self.all_button, self.cancel_button, self.row, self.redo_button, self.play_button, self.export])
        self._line.layout.flex_flow = "row wrap"
        self._pages = W.HBox([self.back, self.next])
        self._redraw = Latest(lambda _: None, lambda _: self.show())
        super().__init__((hint, self.drop, self.message, self.summary, self.table, self._pages, self._line, self.player))
        self.show()

    # ------------------------------------------------------------------------------------------------------------- what it does

    def load(self, name: str, data: bytes) -> None:
        """Replace the rows. Errors: ``ValueError`` for a file that is no table; ``RuntimeError`` while rows are being spoken."""
        if self.working:
            raise RuntimeError("rows are being spoken; cancel them before loading others")
        self.rows = read_rows(name, data, self._check, self._find_voice)
        self._page, self.message.value = 0, ""
        self.row.max = len(self.rows)
        self.row.value = 1
        self.show()

    @property
    def working(self) -> bool:
        """Whether any row is being spoken or waits for it."""
        return any(not task.over for task in self._tasks.values())

    def generate_all(self) -> None:
        """Speak every row that can be and is not done."""
        self._start([row for row in self.rows if row.state in ("waiting", "failed")])

    def redo(self, number: int) -> None:
        """Speak one row again."""
        row = self._row(number)
        if row is None or row.state == "bad":
            self._fail(ValueError(f"row {number} cannot be spoken: {row.problem if row else 'there is no such row'}"))
        elif row.number not in self._tasks or self._tasks[row.number].over:
            self._start([row])

    def play(self, number: int) -> None:
        """Put a row's sound into the player."""
        row = self._row(number)
        if row is None or row.record is None:
            self._fail(ValueError(f"row {number} has no sound yet"))
            return
        self.message.value = ""
        self.player.layout.display = ""
        self.player.autoplay = True
        self.player.show(row.record)

    def cancel(self) -> None:
        """Give up what runs and what waits; rows that are done stay done."""
        for task in self._tasks.values():
            task.cancel()

    def stop(self) -> None:
        """Cancel, and show nothing more."""
        self.cancel()
        self._redraw.stop()

    # ------------------------------------------------------------------------------------------------------------- inside

    def _start(self, rows: list[BatchRow]) -> None:
        self.message.value = ""
        try:
            defaults = self._defaults() if any("spk_audio_prompt" not in row.arguments for row in rows) else self._without_voice()
        except ValueError as error:
            self._fail(error)
            return
        for row in rows:
            row.state, row.problem = "waiting", ""
            arguments = {**defaults, **row.arguments}
            if "emo_vector" in row.arguments:  # a row's own emotion replaces the panel's, whatever its kind
                arguments = {name: value for name, value in arguments.items() if name not in OTHER_EMOTIONS}
            self._tasks[row.number] = self.session.render(
                label=row.name,
                on_done=partial(self._done, row),
                on_error=partial(self._failed, row),
                on_progress=partial(self._working, row),
                **arguments,
            )
        self.show()

    def _without_voice(self) -> dict[str, Any]:
        try:
            return self._defaults()
        except ValueError:
            return {}

    def _working(self, row: BatchRow, *_: object) -> None:
        if row.state == "waiting":
            row.state = "working"
            self._redraw.submit(None)

    def _done(self, row: BatchRow, record: RunRecord) -> None:
        row.state, row.problem, row.record = "done", " ".join(record.notes), record
        self._redraw.submit(None)

    def _failed(self, row: BatchRow, error: BaseException) -> None:
        if isinstance(error, Cancelled):
            row.state = "done" if row.record is not None else "waiting"
        else:
            row.state, row.problem = "failed", words(error)
        self._redraw.submit(None)

    def _row(self, number: int) -> BatchRow | None:
        return self.rows[number - 1] if 1 <= number <= len(self.rows) else None

    def _find_voice(self, given: str) -> str:
        clips = {path.stem: path for path in bundled_clips(self.session.tts)}
        source: str = (Voice.bundled(clips[given]) if given in clips else Voice.file(given)).source
        return source

    def _loaded(self, name: str, data: bytes) -> str:
        self.load(name, data)
        bad = sum(row.state == "bad" for row in self.rows)
        return f"{len(self.rows)} rows" + (f", {bad} of which cannot be spoken; see the table." if bad else ".")

    def _fail(self, error: Exception) -> None:
        self.message.value = f'<div class="itl-error" role="alert">{html.escape(words(error))}</div>'

    def _turn(self, pages: int) -> None:
        self._page += pages
        self.show()

    def show(self) -> None:
        """Show the rows as they are now."""
        last = max(0, (len(self.rows) - 1) // PAGE)
        self._page = min(max(0, self._page), last)
        shown = self.rows[self._page * PAGE : (self._page + 1) * PAGE]
        heads = "<tr><th>Row</th><th>Name</th><th>Text</th><th>State</th><th>Sound</th></tr>"
        self.table.value = f'<table class="itl-table">{heads}{"".join(map(_table_row, shown))}</table>' if shown else ""
        counts = {state: sum(row.state == state for row in self.rows) for state in WORDS}
        facts = ", ".join(f"{count} {WORDS[state]}" for state, count in counts.items() if count)
        self.summary.value = f'<div class="itl-hint" role="status">{len(self.rows)} rows: {facts}.</div>' if self.rows else ""
        self._pages.layout.display = "" if last else "none"
        self._line.layout.display = "" if self.rows else "none"
        self.back.disabled, self.next.disabled = self._page == 0, self._page == last
        self.all_button.disabled = not (counts["waiting"] or counts["failed"]) or self.working
        self.cancel_button.disabled = not self.working
        self.export.disabled = not counts["done"]


def _table_row(row: BatchRow) -> str:
    text = str(row.arguments.get("text", ""))
    sound = "" if row.record is None else f"{row.record.audio_s:.1f} s, RTF {row.record.rtf:.2f}, seed {row.record.request.get('seed')}"
    state = WORDS[row.state] + (f": {row.problem}" if row.problem else "")
    cells = (str(row.number), row.name, text if len(text) <= 80 else text[:77] + "...", state, sound)
    return f'<tr class="itl-row-{row.state}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _button(label: str, tooltip: str, action: Callable[[], object]) -> W.Button:
    button = W.Button(description=label, tooltip=tooltip, layout={"width": "auto"})
    button.on_click(lambda _: action())
    return button
