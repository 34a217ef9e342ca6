"""What a listening test compares: two runs of the history, or one text in two settings."""

from __future__ import annotations

from typing import Any

import ipywidgets as W

from indextts.switches import available_switches
from widgets.choice import Choice
from widgets.session import Session
from widgets.synthesis_voice import VoicePicker

__all__ = ["PairForm"]

TEXT = "The ferry came in at seven, and nobody was waiting on the pier."
COMPARED = ("precision", "use_accel", "num_beams", "diffusion_steps", "torch_compile", "attention", "fusion", "gpt_weights")
SHORT = {"use_accel": "Fast paths", "torch_compile": "torch.compile", "gpt_weights": "GPT weights"}
WIDE = {"description_width": "100px"}


class Side(W.VBox):
    """The settings of one side, those of the engine to begin with; ``other``: in another precision, so that there is something to hear.

    What this machine cannot do is not offered.
    """

    def __init__(self, session: Session, letter: str, other: bool = False) -> None:
        self.menus: dict[str, Any] = {}
        for switch in available_switches(session.tts):
            if switch.name not in COMPARED or not switch.usable:
                continue
            if switch.choices:
                options = [(choice.label, choice.value) for choice in switch.choices if choice.usable]
                menu = W.Dropdown(description=switch.label, options=options, value=switch.value, tooltip=switch.what, style=WIDE)
            else:
                menu = W.BoundedIntText(switch.value, min=switch.low, max=switch.high, description=switch.label, style=WIDE)
            menu.description = SHORT.get(switch.name, switch.label)
            menu.layout.width = "100%"
            self.menus[switch.name] = menu
        if other:
            menu = self.menus["precision"]
            menu.value = next((value for _, value in menu.options if value != menu.value), menu.value)
        super().__init__([W.HTML(f"<b>Setting {letter}</b>"), *self.menus.values()])
        self.add_class("itl-column")

    @property
    def settings(self) -> dict[str, Any]:
        """Names of switches to values."""
        return {name: menu.value for name, menu in self.menus.items()}


class PairForm(W.VBox):
    """The form; the buttons come from the panel through :meth:`place`."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.source = Choice([("Two runs", "runs", None), ("Two settings", "settings", None)])
        self.first = W.Dropdown(description="First", layout={"width": "100%"})
        self.second = W.Dropdown(description="Second", layout={"width": "100%"})
        self.text = W.Textarea(TEXT, rows=2, layout={"width": "100%"}, placeholder="The text to speak in both settings")
        self.voice = VoicePicker(session.tts)
        self.seed = W.BoundedIntText(1, min=0, max=2**32 - 1, description="Seed", tooltip="The same for both")
        self.sides = (Side(session, "A"), Side(session, "B", other=True))
        self._offered: dict[int, int | None] = {}
        super().__init__()
        self.source.observe(lambda _: self._show(), "value")
        self.refresh()

    def place(self, start: W.Widget, render: W.Widget, cancel: W.Widget) -> None:
        """Put the panel's buttons where they belong."""
        pair = W.Box([self.first, self.second])
        sides = W.Box([W.VBox([self.text, self.seed, self.voice]), *self.sides])
        actions = W.HBox([render, cancel])
        for box, name in ((pair, "itl-columns"), (sides, "itl-thirds"), (actions, "itl-actions")):
            box.add_class(name)
        begin = W.HBox([start])
        begin.add_class("itl-actions")
        for button in (start, render):
            button.add_class("itl-wide")
        self._runs, self._settings = W.VBox([pair, begin]), W.VBox([sides, actions])
        self.children = (self.source, self._runs, self._settings)
        self._show()

    @property
    def chosen_runs(self) -> tuple[int, int]:
        """Ids of the two runs. Errors: ``ValueError`` if there are no two."""
        if self.first.value is None or self.second.value is None:
            raise ValueError("there are no two runs yet: generate speech twice, or render two settings")
        return self.first.value, self.second.value

    def pair(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The settings of either side, and ``infer``'s arguments for both. Errors: ``ValueError``, ``OSError``."""
        first, second = (side.settings for side in self.sides)
        if first == second:
            raise ValueError("the two settings are the same: change at least one of them")
        if not self.text.value.strip():
            raise ValueError("the text is empty: nothing to say")
        arguments = {"spk_audio_prompt": self.voice.voice.source, "text": self.text.value, "seed": self.seed.value}
        return first, second, arguments

    def refresh(self) -> None:
        """Offer the history's runs, newest first, and suggest the last two until others are chosen."""
        options = [(f"{record.id} · {record.label}", record.id) for record in reversed(list(self.session.history))]
        ids = [number for _, number in options]
        for menu, place in ((self.first, 1), (self.second, 0)):
            chosen = menu.value if menu.value in ids and menu.value != self._offered.get(place) else None
            self._offered[place] = ids[place] if len(ids) > place else None
            menu.options = options
            menu.value = self._offered[place] if chosen is None else chosen

    def _show(self) -> None:
        runs = self.source.value == "runs"
        self._runs.layout.display, self._settings.layout.display = (None, "none") if runs else ("none", None)
