"""Progress of a run, stage by stage, read from what the engine reports."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import ipywidgets as W

from widgets.base import PALETTE

STAGES = (("prompt", "Voice"), ("gpt", "Codes"), ("s2mel", "Mel"), ("bigvgan", "Wave"))
_COLOURS = {"prompt": PALETTE["other"], "gpt": PALETTE["gpt"], "s2mel": PALETTE["s2mel"], "bigvgan": PALETTE["bigvgan"]}
_PART = re.compile(r"(?:segment|batch) \d+ of \d+")
_STEP = re.compile(r"step (\d+) of (\d+)")
_CODES = re.compile(r"(\d+) codes")
_USUAL_CODES = 250  # 5 s of speech: the number of codes to come is not known, so the bar only says that they are coming


@dataclass(frozen=True)
class StageProgress:
    """Where a run is: the stage, how much of it is done (0 to 1), what is said of it, and which segment or batch of segments it is."""

    stage: str
    fraction: float
    detail: str
    part: str = ""


def read_progress(message: str) -> StageProgress:
    """The stage that a message of the engine speaks of; an unknown message belongs to the first stage, as it is."""
    found = _PART.search(message)
    part = found.group(0) if found else ""
    if message == "done":
        return StageProgress("done", 1.0, "done", part)
    step, codes = _STEP.search(message), _CODES.search(message)
    if "mel" in message and step:
        return StageProgress("s2mel", int(step[1]) / max(1, int(step[2])), f"step {step[1]} of {step[2]}", part)
    if codes or message.endswith("codes"):
        count = int(codes[1]) if codes else 0
        return StageProgress("gpt", count / (count + _USUAL_CODES), f"{count} codes" if codes else "reading the text", part)
    if "wave" in message:
        return StageProgress("bigvgan", 0.5, "vocoder", part)
    return StageProgress("prompt", 0.5, message, part)


class StageBars(W.HTML):
    """Four bars with names and figures beside them, and one for the whole run. :meth:`show` redraws, :meth:`clear` empties."""

    def __init__(self) -> None:
        super().__init__("")
        self.add_class("itl-stages")

    def show(self, fraction: float, message: str) -> None:
        """Draw what a progress report says."""
        now = read_progress(message)
        names = [name for name, _ in STAGES]
        at = len(names) if now.stage == "done" else names.index(now.stage)
        cells = []
        for index, (name, title) in enumerate(STAGES):
            share, detail = (1.0, "done") if index < at else (now.fraction, now.detail) if index == at else (0.0, "waiting")
            cells.append(_bar(title, share, detail, _COLOURS[name]))
        whole = _bar("Whole run", fraction, f"{fraction:.0%}" + (f", {now.part}" if now.part else ""), PALETTE["accent"])
        self.value = f'<div class="itl-bars">{"".join(cells)}{whole}</div>'

    def clear(self) -> None:
        """Show nothing."""
        self.value = ""


def _bar(title: str, share: float, detail: str, colour: str) -> str:
    percent = round(100 * min(1.0, max(0.0, share)))
    return (
        f'<div class="itl-bar"><span><b>{html.escape(title)}</b> {html.escape(detail)}</span>'
        f'<div role="progressbar" aria-label="{html.escape(title)}" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<i style="width:{percent}%;background:{colour}"></i></div></div>'
    )
