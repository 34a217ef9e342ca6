"""Sampling, steps and lengths, with the engine's own defaults; only what differs from them is passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as W

MOST_SEED = 2**53 - 1  # what a browser's numbers hold exactly


@dataclass(frozen=True)
class Setting:
    """One argument of ``infer``: its range, step (0 for whole numbers, None for yes or no), and what it does."""

    name: str
    label: str
    low: float
    high: float
    step: float | None
    help: str


SAMPLING = (
    Setting("do_sample", "Sample", 0, 1, None, "Draw each code by chance; off: always the likeliest (with beams, the likeliest sequence)"),
    Setting("temperature", "Temperature", 0.1, 2.0, 0.05, "Below 1 plainer, above 1 more varied"),
    Setting("top_p", "Top p", 0.05, 1.0, 0.05, "Draw among the likeliest codes that together hold this probability"),
    Setting("top_k", "Top k", 0, 200, 0, "Draw among this many codes; 0 for no limit"),
    Setting("num_beams", "Beams", 1, 10, 0, "Sequences kept side by side; 1 is the fastest"),
    Setting("repetition_penalty", "Repetition penalty", 1.0, 20.0, 0.5, "Makes codes that occurred already less likely"),
    Setting("length_penalty", "Length penalty", -2.0, 2.0, 0.1, "Above 0 favours longer sequences; works with beams only"),
    Setting("max_mel_tokens", "Most codes", 10, 1815, 0, "A segment's speech ends here at the latest; 50 codes are a second"),
)
SOUND = (
    Setting("diffusion_steps", "Steps", 1, 100, 0, "Flow-matching steps from noise to mel; fewer are faster and coarser"),
    Setting("inference_cfg_rate", "Guidance", 0.0, 3.0, 0.1, "How much the reference voice is stressed; 0 saves half the work of the mel"),
    Setting("duration_factor", "Duration", 0.5, 2.0, 0.05, "Above 1 slower speech, below 1 faster"),
    Setting("interval_silence", "Pause (ms)", 0, 2000, 0, "Silence between segments"),
    Setting("max_text_tokens_per_segment", "Segment length", 20, 600, 0, "Most text tokens that are spoken in one go"),
    Setting(
        "quick_streaming_tokens", "First segment", 0, 120, 0, "Keeps segments apart until this many tokens, so that sound starts early"
    ),
)
_FIXED = {"duration_factor": 1.0, "interval_silence": 200, "max_text_tokens_per_segment": 120, "quick_streaming_tokens": 0}


class SettingsBox(W.VBox):
    """All settings in two columns. :meth:`arguments` are those that differ from the defaults; ``on_change()`` follows every change."""

    def __init__(self, tts: Any, on_change: Callable[[], object] = lambda: None) -> None:
        self._on_change, self._quiet = on_change, False
        self.defaults = engine_defaults(tts)
        gpt = tts.cfg.gpt
        limits = {"max_mel_tokens": gpt.max_mel_tokens, "max_text_tokens_per_segment": gpt.max_text_tokens}
        self.settings = {setting.name: setting for setting in (*SAMPLING, *SOUND)}
        self.fields = {name: _field(setting, self.defaults[name], limits.get(name)) for name, setting in self.settings.items()}
        self.random_seed = W.Checkbox(value=True, description="New seed every time", indent=False, layout={"width": "auto"})
        self.seed = W.BoundedIntText(value=0, min=0, max=MOST_SEED, description="Seed", disabled=True, style={"description_width": "124px"})
        reset = W.Button(description="Defaults", tooltip="Back to this engine's own values")
        reset.on_click(lambda _: self.set({}))
        columns = [
            W.VBox([W.HTML(f'<div class="itl-heading">{title}</div>'), *(self.fields[setting.name] for setting in settings)])
            for title, settings in (("Codes", SAMPLING), ("Sound and segments", SOUND))
        ]
        columns[1].children = (*columns[1].children, W.HBox([self.seed, self.random_seed]))
        for column in columns:
            column.add_class("itl-column")
        pair = W.HBox(columns, layout={"flex_flow": "row wrap"})
        pair.add_class("itl-top")
        super().__init__((pair, reset))
        for field in (*self.fields.values(), self.random_seed, self.seed):
            field.observe(lambda _: self._changed(), "value")

    def arguments(self) -> dict[str, Any]:
        """What differs from the engine's defaults, and the seed if it is fixed."""
        given = {name: field.value for name, field in self.fields.items() if field.value != self.defaults[name]}
        return given if self.random_seed.value else {**given, "seed": self.seed.value}

    def keep_seed(self, seed: int) -> None:
        """Use this seed from now on."""
        self.random_seed.value = False
        self.seed.value = seed

    def set(self, values: Mapping[str, Any]) -> None:
        """Put values in force; what is not named goes back to its default, the seed to a new one every time."""
        self._quiet = True
        for name, field in self.fields.items():
            field.value = values.get(name, self.defaults[name])
        self.random_seed.value = values.get("seed") is None
        self.seed.value = values.get("seed") or 0
        self._quiet = False
        self._changed()

    def check(self, values: Any) -> dict[str, Any]:
        """Settings of a preset or a batch row, checked against names, types and ranges. Errors: ``ValueError``."""
        if not isinstance(values, Mapping):
            raise ValueError("settings must be a mapping of names to values")
        checked = {}
        for name, value in values.items():
            field = self.fields.get(name)
            if name == "seed":
                checked[name] = _number("seed", value, 0, MOST_SEED, whole=True)
            elif field is None:
                raise ValueError(f"there is no setting {name!r}; there are: {', '.join([*self.fields, 'seed'])}")
            elif self.settings[name].step is None:
                if not isinstance(value, bool):
                    raise ValueError(f"{name} must be true or false, got {value!r}")
                checked[name] = value
            else:
                checked[name] = _number(name, value, field.min, field.max, whole=self.settings[name].step == 0)
        return checked

    def _changed(self) -> None:
        self.seed.disabled = self.random_seed.value
        if not self._quiet:
            self._on_change()


def engine_defaults(tts: Any) -> dict[str, Any]:
    """The engine's own value of every setting: its config's, or what ``infer`` fixes."""
    inference = tts.cfg.inference
    return {setting.name: getattr(inference, setting.name, _FIXED.get(setting.name)) for setting in (*SAMPLING, *SOUND)}


def _field(setting: Setting, value: Any, limit: int | None) -> Any:
    look = {"description": setting.label, "tooltip": setting.help, "layout": {"width": "100%"}, "style": {"description_width": "124px"}}
    if setting.step is None:
        return W.Checkbox(value=bool(value), **{**look, "layout": {"width": "auto"}})
    high = max(limit or setting.high, value)
    low = min(setting.low, value, high)
    if setting.step == 0:
        return W.IntSlider(value=int(value), min=int(low), max=int(high), continuous_update=False, **look)
    return W.FloatSlider(value=value, min=low, max=high, step=setting.step, readout_format=".2f", continuous_update=False, **look)


def _number(name: str, value: Any, low: float, high: float, whole: bool) -> Any:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number between {low} and {high}, got {value!r}")
    return value if whole else float(value)
