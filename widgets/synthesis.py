"""The synthesis panel: text, voice, emotion and settings in; sound, picture and the equivalent Python call out."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as W

from indextts.runs import RunRecord
from widgets.base import Panel, group, words
from widgets.batch_table import BatchTable
from widgets.clips import voice_of_preset
from widgets.files import CodeBox
from widgets.player import StreamPlayer
from widgets.python_call import plain_arguments, python_call
from widgets.session import Cancelled, Session, Task
from widgets.stage_progress import StageBars
from widgets.synthesis_emotion import EmotionBox
from widgets.synthesis_presets import PresetBox, preset_from_json, preset_to_json
from widgets.synthesis_result import ResultView
from widgets.synthesis_settings import SettingsBox
from widgets.synthesis_text import GlossaryEditor, TextBox
from widgets.synthesis_voice import VoicePicker


class SynthesisPanel(Panel):
    """Text to speech with everything ``infer`` offers.

    ``panel.text.text.value = "..."`` and so on set it from Python; :meth:`generate`, :meth:`cancel`, :meth:`arguments`, :meth:`preset`
    and :meth:`use_preset` are what its buttons do.
    """

    title = "Synthesis"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        tts = session.tts
        self._built = False
        self.task: Task | None = None
        self.settings = SettingsBox(tts, self._changed)
        self.text = TextBox(tts, self._segment_limits, self._changed)
        self.voice = VoicePicker(tts, self._changed)
        self.emotion = EmotionBox(tts, self._changed)
        self.glossary = GlossaryEditor(tts, self.text.refresh)
        self.presets = PresetBox(self.preset, self.use_preset, self.show_error)
        self.batch = BatchTable(session, self._batch_defaults, self.settings.check)
        self.code = CodeBox()
        self.result = ResultView()
        self.stream = StreamPlayer()
        self.bars = StageBars()
        self.status = W.HTML("")
        self.generate_button = W.Button(description="Generate", button_style="primary", tooltip="Speak the text")
        self.cancel_button = W.Button(description="Cancel", disabled=True, tooltip="Give up the run in progress")
        self.streaming = W.Checkbox(value=False, description="Play while it is made", indent=False, layout={"width": "auto"})
        self.keep_seed = W.Button(description="Keep this seed", disabled=True, tooltip="Use the seed of this result from now on")
        self.generate_button.on_click(lambda _: self.generate())
        self.cancel_button.on_click(lambda _: self.cancel())
        self.keep_seed.on_click(lambda _: self._keep_seed())
        self.streaming.observe(lambda _: self._show_stream(), "value")
        self._arrange()
        self.own(self.text)
        self.own(session.subscribe(self._show_state))
        self._built = True
        self._last_limits = self._segment_limits()
        self._say("idle", "Ready.")
        self._show_stream()
        self._changed()

    # ------------------------------------------------------------------------------------------------------------- what it does

    def arguments(self) -> dict[str, Any]:
        """``infer``'s arguments as the panel is set, voices as :class:`widgets.clips.Voice`. Errors: ``ValueError`` for what is missing."""
        return {
            "spk_audio_prompt": self.voice.voice,
            "text": self.text.text.value,
            **self.emotion.arguments(),
            **self.settings.arguments(),
        }

    def generate(self) -> Task | None:
        """Start a run; None, with the reason shown, if something is missing."""
        if self.task is not None and not self.task.over:
            return None
        self.clear_error()
        try:
            arguments = self.arguments()
            if not self.text.text.value.strip():
                raise ValueError("there is nothing to say: type a text")
        except ValueError as error:
            self._fail(error)
            return None
        live = self.streaming.value
        if live:
            self.stream.begin(self.session.tts.sample_rate)
        self._say("working", "Waiting for other work." if self.session.busy else "Starting.")
        self.bars.show(0.0, "starting")
        self.task = self.session.render(
            on_done=self._done,
            on_error=self._failed,
            on_progress=self._progressed,
            on_piece=self._piece if live else None,
            **plain_arguments(arguments),
        )
        self._show_state()
        return self.task

    def cancel(self) -> None:
        """Give the run up."""
        if self.task is not None and not self.task.over:
            self.task.cancel()
            self._say("working", "Cancelling: the step in progress ends first.")

    def preset(self) -> dict[str, Any]:
        """Voice, emotion and settings, JSON-safe. Errors: ``ValueError`` if a clip is missing."""
        return {"voice": self.voice.voice.preset, "emotion": self.emotion.to_preset(), "settings": self.settings.arguments()}

    def use_preset(self, preset: Mapping[str, Any]) -> None:
        """Put a preset in force, all of it or, if anything is wrong (``ValueError``, ``FileNotFoundError``), nothing."""
        voice = voice_of_preset(self.session.tts, preset.get("voice"))
        apply_emotion = self.emotion.check_preset(preset.get("emotion"))
        settings = self.settings.check(preset.get("settings"))
        self.voice.set_voice(voice)
        apply_emotion()
        self.settings.set(settings)

    def save_preset(self, path: str | Path) -> None:
        """Write the preset in force as JSON."""
        Path(path).write_text(preset_to_json({"name": Path(path).stem, **self.preset()}), encoding="utf-8")

    def load_preset(self, path: str | Path) -> None:
        """Read a preset and put it in force. Errors: those of :meth:`use_preset`; ``OSError``."""
        self.use_preset(preset_from_json(Path(path).read_bytes()))

    def close(self) -> None:
        """Cancel what this panel started, then close."""
        if not self.closed:
            self.cancel()
            self.batch.stop()
        super().close()

    # ------------------------------------------------------------------------------------------------------------- while it runs

    def _progressed(self, fraction: float, message: str) -> None:
        if not self.closed and self.task is not None and not self.task.cancelled:
            self.bars.show(fraction, message)
            self._say("working", f"Working: {message}.")

    def _piece(self, samples: Any) -> None:
        if not self.closed:
            self.stream.feed(samples)

    def _done(self, record: RunRecord) -> None:
        if self.closed:
            return
        self.stream.end()
        notices = tuple(self.task.notices) if self.task else ()
        self.result.show(record, autoplay=not self.streaming.value, notices=notices)
        self.bars.clear()
        self._say("done", f"Done: {record.audio_s:.1f} s of sound in {record.total_s:.1f} s.")
        self.keep_seed.disabled = False
        self._show_state()

    def _failed(self, error: BaseException) -> None:
        if self.closed:
            return
        self.stream.stop()
        self.bars.clear()
        if isinstance(error, Cancelled):
            self._say("idle", "Cancelled. Nothing was kept.")
        else:
            self._fail(error)
        self._show_state()

    def _fail(self, error: BaseException) -> None:
        self.show_error(error)
        self._say("error", f"Not done: {words(error)}")

    # ------------------------------------------------------------------------------------------------------------- how it looks

    def _say(self, kind: str, text: str) -> None:
        self.state = kind
        self.status.value = f'<div class="itl-status itl-{kind}" role="status">{html.escape(text)}</div>'

    def _show_state(self) -> None:
        working = self.task is not None and not self.task.over
        self.generate_button.disabled = working
        self.cancel_button.disabled = not working

    def _show_stream(self) -> None:
        self.stream.layout.display = "" if self.streaming.value else "none"

    def _segment_limits(self) -> tuple[int, int]:
        fields = self.settings.fields
        return fields["max_text_tokens_per_segment"].value, fields["quick_streaming_tokens"].value

    def _changed(self) -> None:
        if not self._built:
            return
        if self._segment_limits() != self._last_limits:
            self._last_limits = self._segment_limits()
            self.text.refresh()  # which comes back here
            return
        try:
            self.code.code = python_call(self.arguments())
        except ValueError as error:
            self.code.code = f"# {words(error)}"

    def _keep_seed(self) -> None:
        if self.result.record is not None:
            self.settings.keep_seed(self.result.record.request["seed"])

    def _batch_defaults(self) -> dict[str, Any]:
        arguments = plain_arguments(self.arguments())
        arguments.pop("text")
        return arguments

    def _arrange(self) -> None:
        columns = W.GridBox([group("Voice", self.voice), group("Emotion", self.emotion)])
        columns.add_class("itl-columns")
        buttons = W.HBox([self.generate_button, self.cancel_button, self.streaming, self.status])
        buttons.add_class("itl-actions")
        result = group("Result", self.stream, self.result, self.keep_seed)
        names = ("Sampling, steps, lengths, seed", "Glossary", "Presets", "Batch: many texts from a file", "The same in Python")
        folded = W.Accordion([self.settings, self.glossary, self.presets, self.batch, self.code], selected_index=None)
        for index, name in enumerate(names):
            folded.set_title(index, name)
        self.set_content(group("Text", self.text), columns, buttons, self.bars, result, folded)
