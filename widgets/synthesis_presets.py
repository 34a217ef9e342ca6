"""Presets: a voice and the settings to use it with, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ipywidgets as W

from widgets.files import Download, FileDrop

FORMAT, VERSION = "indextts-preset", 1
MOST_MB = 30.0


def preset_to_json(preset: dict[str, Any]) -> str:
    """A preset as text, ready for a file."""
    return json.dumps({"format": FORMAT, "version": VERSION, **preset}, indent=1, ensure_ascii=False) + "\n"


def preset_from_json(text: str | bytes) -> dict[str, Any]:
    """The inverse. Errors: ``ValueError`` that says what is wrong with the file."""
    try:
        stored = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"this is no JSON: {error}") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f'this JSON is no preset: it must hold "format": "{FORMAT}"')
    if stored.get("version") != VERSION:
        raise ValueError(f"this preset has version {stored.get('version')!r}; this program reads version {VERSION}")
    missing = [name for name in ("voice", "emotion", "settings") if name not in stored]
    if missing:
        raise ValueError(f"this preset lacks {', '.join(missing)}")
    return {name: value for name, value in stored.items() if name not in ("format", "version")}


class PresetBox(W.VBox):
    """Saving and loading: ``get()`` gives the preset in force, ``use(preset)`` puts one in force or raises ``ValueError``."""

    def __init__(
        self, get: Callable[[], dict[str, Any]], use: Callable[[dict[str, Any]], object], on_error: Callable[[Exception], object]
    ) -> None:
        self._get, self._use = get, use
        self.name = W.Text(value="my voice", placeholder="name", layout={"width": "200px"})
        self.save = Download("Save preset", self._saved, on_error)
        self.load = FileDrop(self._loaded, (".json",), most_mb=MOST_MB, label="Load preset", hint="a JSON file saved here before")
        hint = W.HTML('<div class="itl-hint">Voice, emotion and settings. Uploaded and recorded voices travel inside the file.</div>')
        super().__init__((hint, W.HBox([self.name, self.save]), self.load))

    def _saved(self) -> tuple[str, bytes]:
        name = self.name.value.strip() or "preset"
        file = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        return f"{file}.json", preset_to_json({"name": name, **self._get()}).encode("utf-8")

    def _loaded(self, _: str, data: bytes) -> str:
        preset = preset_from_json(data)
        self._use(preset)
        self.name.value = str(preset.get("name", "preset"))
        return f"Preset {self.name.value!r} is in force."
