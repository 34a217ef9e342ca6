"""The emotion of the speech: the voice's own, eight sliders, a second clip, or words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as W

from indextts.models.emotion import EMOTIONS, normalize_emo_vec
from widgets.choice import Choice
from widgets.clips import voice_of_preset
from widgets.synthesis_voice import VoicePicker

NO_CLASSIFIER = "Words need the text emotion model, which is not loaded: fetch it with `indextts download --emotion-text`."
PRESETS: dict[str, dict[str, float]] = {
    "Calm": {"calm": 0.8},
    "Cheerful": {"happy": 0.7, "surprised": 0.1},
    "Angry": {"angry": 0.8},
    "Sad": {"sad": 0.7, "melancholic": 0.1},
    "Frightened": {"afraid": 0.7, "surprised": 0.1},
    "Disgusted": {"disgusted": 0.8},
    "Wistful": {"melancholic": 0.6, "calm": 0.2},
    "Astonished": {"surprised": 0.6, "happy": 0.2},
}
OWN = "Preset …"


class EmotionBox(W.VBox):
    """What to feel. :meth:`arguments` are ``infer``'s; ``on_change()`` is called after every change."""

    def __init__(self, tts: Any, on_change: Callable[[], object] = lambda: None) -> None:
        self.tts, self._on_change = tts, on_change
        self._quiet = False
        no_words = None if getattr(tts, "emotion_classifier", None) is not None else NO_CLASSIFIER
        self.mode = Choice(
            [("As the voice", "voice", None), ("Sliders", "sliders", None), ("Second clip", "clip", None), ("Words", "words", no_words)]
        )
        self.preset = W.Dropdown(options=[OWN, *PRESETS], layout={"width": "160px"})
        self.sliders = {name: _slider(name, 0.0) for name in EMOTIONS}
        self.balance = W.Checkbox(
            value=True,
            description="Balance",
            indent=False,
            layout={"width": "auto"},
            tooltip="Hold strong emotions back; cap their sum at 0.8",
        )
        self.clip = VoicePicker(tts, self._changed, "emotion clip")
        self.words = W.Textarea(placeholder="tired, a little sad (empty: the emotion of the text itself)", rows=2, layout={"width": "100%"})
        self.strength = _slider("strength", 1.0)
        self.random = W.Checkbox(value=False, description="Random example voices", indent=False, layout={"width": "auto"})
        grid = W.GridBox(list(self.sliders.values()))
        grid.add_class("itl-sliders")
        self._parts = {
            "voice": (W.HTML('<div class="itl-hint">The emotion is the one of the reference voice.</div>'),),
            "sliders": (W.HBox([self.preset, self.balance, self.random]), grid, self.strength),
            "clip": (self.clip, self.strength),
            "words": (self.words, self.strength),
        }
        self._place = W.VBox()
        reason = (W.HTML(f'<div class="itl-hint">{NO_CLASSIFIER}</div>'),) if no_words else ()
        super().__init__((self.mode, self._place, *reason))
        self.mode.observe(lambda _: self._show(), "value")
        self.preset.observe(lambda _: self._use_preset(), "value")
        for widget in (*self.sliders.values(), self.strength, self.words, self.balance, self.random):
            widget.observe(lambda _: self._changed(), "value")
        self._show()

    def vector(self) -> list[float]:
        """The eight values that are sent: the sliders', balanced if that is asked for, four decimals."""
        values = [slider.value for slider in self.sliders.values()]
        return [round(value, 4) for value in (normalize_emo_vec(values) if self.balance.value else values)]

    def arguments(self) -> dict[str, Any]:
        """``infer``'s emotion arguments. Errors: ``ValueError`` if the second clip is missing."""
        mode = self.mode.value
        if mode == "voice":
            return {}
        strength = {} if self.strength.value == 1.0 else {"emo_alpha": self.strength.value}
        if mode == "sliders":
            return {"emo_vector": self.vector(), **strength, **({"use_random": True} if self.random.value else {})}
        if mode == "clip":
            return {"emo_audio_prompt": self.clip.voice, **strength}
        return {"use_emo_text": True, **({"emo_text": self.words.value} if self.words.value.strip() else {}), **strength}

    def to_preset(self) -> dict[str, Any]:
        """What a preset stores of the emotion."""
        mode = self.mode.value
        stored: dict[str, Any] = {"mode": mode}
        if mode != "voice":
            stored["strength"] = self.strength.value
        if mode == "sliders":
            values = {name: slider.value for name, slider in self.sliders.items()}
            stored.update(values=values, balance=self.balance.value, random=self.random.value)
        elif mode == "clip":
            stored["clip"] = self.clip.voice.preset
        elif mode == "words":
            stored["words"] = self.words.value
        return stored

    def check_preset(self, stored: Any) -> Callable[[], None]:
        """Check a preset's emotion; returns the function that puts it in force. Errors: ``ValueError``."""
        if not isinstance(stored, dict) or stored.get("mode") not in self._parts:
            raise ValueError(f"the preset's emotion must be a mapping with a mode, one of {', '.join(self._parts)}")
        mode = stored["mode"]
        if mode in self.mode.reasons:
            raise ValueError(self.mode.reasons[mode])
        values = stored.get("values", {}) if mode == "sliders" else {}
        if not isinstance(values, dict) or set(values) - set(EMOTIONS):
            raise ValueError(f"the preset's emotion values must be named {', '.join(EMOTIONS)}")
        strength = _unit("strength", stored.get("strength", 1.0))
        numbers = {name: _unit(name, values.get(name, 0.0)) for name in EMOTIONS}
        clip = voice_of_preset(self.tts, stored.get("clip")) if mode == "clip" else None

        def apply() -> None:
            self.mode.value, self.strength.value = mode, strength
            if mode == "sliders":
                self._set(numbers)
                self.balance.value, self.random.value = bool(stored.get("balance", True)), bool(stored.get("random", False))
            elif clip is not None:
                self.clip.set_voice(clip)
            elif mode == "words":
                self.words.value = str(stored.get("words", ""))

        return apply

    def _set(self, values: dict[str, float]) -> None:
        self._quiet = True
        for name, slider in self.sliders.items():
            slider.value = values.get(name, 0.0)
        self._quiet = False
        self._changed()

    def _use_preset(self) -> None:
        if self.preset.value != OWN:
            self._set(PRESETS[self.preset.value])

    def _show(self) -> None:
        self._place.children = self._parts[self.mode.value]
        self._changed()

    def _changed(self) -> None:
        if not self._quiet:
            self._on_change()


def _slider(name: str, value: float) -> W.FloatSlider:
    return W.FloatSlider(
        value=value, min=0.0, max=1.0, step=0.05, description=name, readout_format=".2f",
        style={"description_width": "84px"}, layout={"width": "100%", "min_width": "180px"},
    )  # fmt: skip


def _unit(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"the preset's {name} must be a number between 0 and 1, got {value!r}")
    return float(value)
