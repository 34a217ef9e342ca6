"""Choosing a reference clip: one that comes with the weights, an upload, a recording, or a file on the kernel's machine."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W

from indextts.audio import load_audio
from widgets.base import words
from widgets.choice import Choice
from widgets.clips import MOST_MB, SUFFIXES, Voice, bundled_clips, describe, store_clip
from widgets.files import FileDrop
from widgets.player import Player
from widgets.recorder import Recorder
from widgets.sound import wav_bytes

NO_CLIPS = "These weights bring no clip; upload or record one."


class VoicePicker(W.VBox):
    """One reference clip. :attr:`voice` is the choice; ``on_change()`` is called after every change of it."""

    def __init__(self, tts: Any, on_change: Callable[[], object] = lambda: None, label: str = "reference voice") -> None:
        self.tts, self._on_change, self._label = tts, on_change, label
        self._clips = {path.stem: path for path in bundled_clips(tts)}
        self._made_up = not self._clips and getattr(tts, "release", None) is None
        self._voices: dict[str, Voice | None] = {"bundled": None, "upload": None, "record": None, "path": None}
        self.bundled = W.Dropdown(options=list(self._clips) or (["made-up tone"] if self._made_up else []), layout={"width": "100%"})
        self.upload = FileDrop(
            self._uploaded, SUFFIXES, most_mb=MOST_MB, label="Choose a file", hint=f"or drop one here: {', '.join(SUFFIXES)}, up to 20 MB"
        )
        self.recorder = Recorder()
        self.path = W.Text(placeholder="path of a file on the kernel's machine", continuous_update=False, layout={"width": "100%"})
        self.note = W.HTML("")
        self.player = Player(label=label)
        none_here = None if self._clips or self._made_up else NO_CLIPS
        self.choice = Choice(
            [("Bundled", "bundled", none_here), ("Upload", "upload", None), ("Record", "record", None), ("Path", "path", None)]
        )
        self._place = W.VBox()
        super().__init__((self.choice, self._place, self.note, self.player))
        self.choice.observe(lambda _: self._show(), "value")
        self.bundled.observe(lambda _: self._show(), "value")
        self.recorder.observe(lambda _: self._recorded(), "wav")
        self.path.observe(lambda _: self._typed(), "value")
        self._show()

    @property
    def voice(self) -> Voice:
        """The clip in force. Errors: ``ValueError`` that says what to do if there is none yet."""
        found = self._current()
        if found is None:
            todo = {"upload": "upload a file", "record": "record one", "path": "type the path of a file"}.get(self.choice.value, NO_CLIPS)
            raise ValueError(f"there is no {self._label} yet: {todo}")
        return found

    def set_voice(self, voice: Voice) -> None:
        """Take a clip from elsewhere, such as a preset."""
        kind = {"default": "bundled", "bundled": "bundled", "file": "path", "sound": "upload"}[voice.preset["kind"]]
        if kind == "path":
            self.path.value = voice.source
        elif kind == "upload":
            self._voices["upload"] = voice
        elif voice.preset["kind"] == "bundled":
            self.bundled.value = voice.label
        self.choice.value = kind
        self._show()

    def _current(self) -> Voice | None:
        if self.choice.value != "bundled":
            return self._voices[self.choice.value]
        if self._clips:
            return Voice.bundled(self._clips[self.bundled.value])
        return Voice.made_up(self.tts) if self._made_up else None

    def _uploaded(self, name: str, data: bytes) -> str:
        path, sentence = store_clip(name, data)
        self._voices["upload"] = Voice.stored(path)
        self._show()
        return sentence

    def _recorded(self) -> None:
        if not self.recorder.wav:
            return
        try:
            path, _ = store_clip("recording.wav", self.recorder.wav)
            self._voices["record"] = Voice.stored(path)
        except ValueError as error:
            self._voices["record"] = None
            self._show(words(error))
        else:
            self._show()

    def _typed(self) -> None:
        self._voices["path"], problem = None, ""
        if self.path.value.strip():
            try:
                self._voices["path"] = Voice.file(self.path.value.strip())
            except (ValueError, OSError) as error:
                problem = words(error)
        self._show(problem)

    def _show(self, problem: str = "") -> None:
        place = {"bundled": self.bundled, "upload": self.upload, "record": self.recorder, "path": self.path}[self.choice.value]
        if self._place.children != (place,):
            self._place.children = (place,)
        voice = self._current()
        self._play(voice)
        self.note.value = f'<div class="itl-hint">{html.escape(problem or self._about(voice))}</div>'
        self._on_change()

    def _play(self, voice: Voice | None) -> None:
        self.player.layout.display = "none" if voice is None else ""
        if voice is None:
            self.player.clear()
            return
        mono, rate = load_audio(voice.source)
        with self.player.hold_sync():
            self.player.label, self.player.filename = voice.label, f"{Path(voice.label).stem}.wav"
            self.player.wav = wav_bytes(mono, rate)

    def _about(self, voice: Voice | None) -> str:
        if voice is None:
            return ""
        if voice.preset["kind"] == "default":
            return "Random weights know no voices: a tone made by formula stands in for one."
        return describe(Path(voice.source), voice.label)
