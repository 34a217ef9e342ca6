"""Blind listening: two runs, or one text in two settings, at one loudness and behind letters; votes, reveal, and what differs."""

from __future__ import annotations

import html
import json
import math
from typing import Any

import ipywidgets as W

from indextts.listening import (
    AbxTest,
    PreferenceTest,
    difference,
    log_mel_db,
    log_mel_distance_db,
    loudness_lufs,
    match_loudness,
    render_pair,
    say_tally,
)
from indextts.runs import RunRecord
from widgets.base import Panel, group
from widgets.chart import Chart
from widgets.choice import Choice
from widgets.files import Download
from widgets.listening_setup import PairForm
from widgets.player import Player, SwitchPlayer
from widgets.plots_sound import difference_image, mel_image
from widgets.session import Cancelled, Session
from widgets.throttle import Throttle
from widgets.timing import settings_words
from widgets.votes import Votes

__all__ = ["ListeningPanel"]

PREFERENCE_OPTIONS = [
    {"answer": "A", "label": "A is better", "key": "a"},
    {"answer": "same", "label": "No difference", "key": "s"},
    {"answer": "B", "label": "B is better", "key": "b"},
]
ABX_OPTIONS = [{"answer": "A", "label": "X is A", "key": "a"}, {"answer": "B", "label": "X is B", "key": "b"}]
HELP = {
    "preference": "Listen to A and B as often as you like, then say which is better. They are shuffled anew after every answer.",
    "abx": "X is either A or B. Say which; they are shuffled anew after every answer. Twelve right of sixteen are hardly luck.",
}


class ListeningPanel(Panel):
    """A/B and ABX. The names stay in the kernel until the reveal, and after it no vote counts."""

    title = "Listening"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.add_class("itl-listening")
        self.records: tuple[RunRecord, RunRecord] | None = None
        self.test: PreferenceTest | AbxTest | None = None
        self._sounds: list[Any] = []
        self._task: Any = None
        self.form = PairForm(session)
        self.start = W.Button(description="Compare these runs", button_style="primary", icon="headphones")
        self.render = W.Button(description="Render both and compare", button_style="primary", icon="play")
        self.cancel = W.Button(description="Cancel", icon="stop", disabled=True)
        self.mode = Choice([("Which is better? (A/B)", "preference", None), ("Which one is X? (ABX)", "abx", None)])
        self.status = W.HTML()
        self.player = SwitchPlayer(blind=True)
        self.votes = Votes(self.vote, options=PREFERENCE_OPTIONS)
        self.help, self.count = W.HTML(), W.HTML()
        self.reveal_button = W.Button(description="Reveal", icon="eye", disabled=True)
        self.again = W.Button(description="New test", icon="refresh", disabled=True)
        self.export = Download("Export votes", self._export, self.show_error, disabled=True)
        self.result = W.HTML()
        self.first, self.second, self.rest = Chart(), Chart(), Chart()
        self.rest_player = Player()
        self.start.on_click(lambda _: self.compare_runs())
        self.render.on_click(lambda _: self.render_pair())
        self.cancel.on_click(lambda _: self._task and self._task.cancel())
        self.reveal_button.on_click(lambda _: self.reveal())
        self.again.on_click(lambda _: self.new_test())
        self.mode.observe(lambda _: self.new_test(), "value")
        images = W.Box([self.first, self.second, self.rest])
        images.add_class("itl-thirds")
        self.outcome = group("What was compared", self.result, images, self.rest_player)
        self.outcome.layout.display = "none"
        self.form.place(self.start, self.render, self.cancel)
        answers = W.HBox([self.votes, self.count])
        ends = W.HBox([self.reveal_button, self.again, self.export])
        for row in (answers, ends):
            row.add_class("itl-actions")
        self.set_content(
            group("What to compare", self.form, self.status),
            group("Listen", self.mode, self.help, self.player, answers, ends),
            self.outcome,
        )
        throttle = self.own(Throttle(self.form.refresh))
        self.own(session.history.subscribe(throttle.call))
        self._show()

    # --------------------------------------------------------------------------------------------------------- starting

    def compare_runs(self) -> None:
        """Begin a test of the two runs chosen."""
        self.clear_error()
        try:
            first, second = (self.session.history.get(number) for number in self.form.chosen_runs)
            self.begin(first, second)
        except (KeyError, ValueError, ImportError) as error:
            self.show_error(error)

    def render_pair(self) -> None:
        """Render the text in both settings, in the background, then begin a test of the two."""
        self.clear_error()
        try:
            first, second, arguments = self.form.pair()
        except (ValueError, OSError) as error:
            self.show_error(error)
            return
        session = self.session
        self._say("Rendering both…")
        self.render.disabled, self.cancel.disabled = True, False
        self._task = session.run(
            lambda progress: render_pair(session.tts, first, second, session.history, progress, **arguments),
            on_done=self._rendered,
            on_error=self._failed,
            on_progress=lambda fraction, message: self._say(f"{fraction:.0%}, {message}"),
        )

    def begin(self, first: RunRecord, second: RunRecord) -> None:
        """Test two records. Errors: ``ValueError`` if they are one and the same, or differ in sample rate; ``ImportError``."""
        if first.id == second.id:
            raise ValueError("a run cannot be compared with itself: choose two")
        if first.sample_rate != second.sample_rate:
            raise ValueError(f"the two differ in sample rate: {first.sample_rate} and {second.sample_rate} Hz")
        self._sounds = list(match_loudness([first.samples, second.samples], first.sample_rate))
        self.records = (first, second)
        self.new_test()

    def new_test(self) -> None:
        """Forget the votes and hide the names again."""
        if self.records is None:
            self._show()
            return
        names = tuple(f"{record.id} · {record.label}" for record in self.records)
        self.test = (AbxTest if self.mode.value == "abx" else PreferenceTest)((names[0], names[1]))
        self.outcome.layout.display = "none"
        self.rest_player.clear()
        self._load()
        self._show()

    # ----------------------------------------------------------------------------------------------------------- voting

    def vote(self, answer: str) -> None:
        """Take an answer and go on to the next trial."""
        if self.test is None:
            return
        try:
            self.test.vote(answer)
        except (ValueError, RuntimeError) as error:
            self.show_error(error)
            return
        self._load()
        self._show()

    def reveal(self) -> None:
        """End the test: names, tally, and what differs."""
        if self.test is None or self.records is None or self.test.revealed:
            return
        letters = self.test.reveal()
        rate, (a, b) = self.records[0].sample_rate, self._sounds
        rest, level = difference(a, b)
        distance = log_mel_distance_db(a, b, rate)
        self._load(names=list(letters.values()))
        self.result.value = self._result(letters, level, distance)
        mels = log_mel_db(a, rate), log_mel_db(b, rate)
        longest = max(len(sound) for sound in (a, b)) / rate
        for chart, mel, record in zip((self.first, self.second), mels, self.records, strict=True):
            chart.show(mel_image(mel, rate, f"{record.id} · {record.label}", duration_s=longest))
        self.rest.show(difference_image(*mels, rate, f"{self.records[0].id} minus {self.records[1].id}"))
        self.rest_player.set_sound(rest, rate, "difference signal, at its own level")
        self.outcome.layout.display = None
        self._show()

    # ----------------------------------------------------------------------------------------------------------- inside

    def _rendered(self, records: tuple[RunRecord, RunRecord]) -> None:
        if self.closed:
            return
        self._idle()
        try:
            self.begin(*records)
        except (ValueError, ImportError) as error:
            self.show_error(error)
        self._say("Both are rendered, with the same seed, and in the list of runs.")

    def _failed(self, error: BaseException) -> None:
        if self.closed:
            return
        self._idle()
        self._say("Cancelled." if isinstance(error, Cancelled) else "")
        if not isinstance(error, Cancelled):
            self.show_error(error)

    def _idle(self) -> None:
        self._task = None
        self.render.disabled, self.cancel.disabled = False, True

    def _load(self, names: list[str] | None = None) -> None:
        """The present trial's sounds in the player, by letter; after the reveal with their names."""
        assert self.test is not None
        assert self.records is not None
        order = self.test.sounds if isinstance(self.test, AbxTest) else self.test.order
        labels = ["A", "B", "X"] if names is None else [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)] + ["X"]
        self.player.blind = names is None
        self.player.set_sounds([(labels[place], self._sounds[i], self.records[0].sample_rate) for place, i in enumerate(order)])

    def _show(self) -> None:
        test = self.test
        self.votes.options = ABX_OPTIONS if self.mode.value == "abx" else PREFERENCE_OPTIONS
        self.votes.disabled = test is None or test.revealed
        self.reveal_button.disabled = test is None or test.revealed
        self.again.disabled = test is None
        self.export.disabled = test is None or not test.votes
        self.help.value = _hint(HELP[self.mode.value] if test else "Choose or render two sounds above; they come here without their names.")
        if test is None:
            self.count.value = ""
        elif test.revealed:
            self.count.value = _hint(f"Revealed after {_votes(len(test.votes))}; start a new test to go on.")
        else:
            self.count.value = _hint(f"Trial {test.trial}; {_votes(len(test.votes))} so far.")

    def _result(self, letters: dict[str, str], level: float, distance: float) -> str:
        assert self.test is not None
        assert self.records is not None
        rate = self.records[0].sample_rate
        names = " · ".join(f"<b>{letter}</b> was {html.escape(name)}" for letter, name in letters.items())
        rest = "the two are identical" if level == -math.inf else f"{level:+.1f} dB against the first"
        loud = loudness_lufs(self._sounds[0], rate)
        facts = [
            f"Settings: {' — '.join(html.escape(settings_words(record.settings)) for record in self.records)}",
            f"RTF: {' — '.join(f'{record.rtf:.3g}' for record in self.records)}",
            f"Lengths: {' — '.join(f'{record.audio_s:.2f} s' for record in self.records)}, both played at {loud:.1f} LUFS",
            f"Difference signal: {rest}. Mean log-mel distance: {distance:.2f} dB, frame by frame without alignment",
        ]
        lines = "".join(f"<li>{fact}.</li>" for fact in facts)
        tally = html.escape(say_tally(self.test))
        return f'<div class="itl-reveal" role="status">{names}.<br><b>{tally}</b></div><ul class="itl-list">{lines}</ul>'

    def _say(self, text: str) -> None:
        self.status.value = f'<span role="status">{html.escape(text)}</span>' if text else ""

    def _export(self) -> tuple[str, bytes]:
        assert self.test is not None
        assert self.records is not None
        if not self.test.revealed:
            raise ValueError("the votes name the sounds: reveal first, then export")
        facts = {**self.test.to_dict(), "runs": [record.to_dict() for record in self.records]}
        return "listening.json", json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8")


def _votes(count: int) -> str:
    return f"{count} answer{'s' * (count != 1)}"


def _hint(text: str) -> str:
    return f'<span class="itl-hint">{html.escape(text)}</span>'
