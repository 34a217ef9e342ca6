"""What a lesson puts on its page: notes, tables, predictions. Each shows in a live notebook, in a saved one and in plain text."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Option = str | float

_serial = itertools.count(1)

_STYLE = """
<style>
.lesson-guess label { display: inline-block; margin: 2px 6px 2px 2px; padding: 3px 12px; border: 1px solid rgba(128,128,128,.6);
  border-radius: 4px; cursor: pointer; }
.lesson-guess input:checked + label { border-color: #0072b2; box-shadow: inset 0 0 0 1px #0072b2; font-weight: 600; }
.lesson-guess .kept { display: none; margin-top: 4px; }
.lesson-guess input:checked ~ .kept { display: block; }
</style>
"""


class Shown:
    """Something with an HTML and a plain-text form; the last expression of a cell, or :meth:`show` it."""

    def __init__(self, markup: str, text: str) -> None:
        self.markup = markup
        self.text = text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/html": self.markup, "text/plain": self.text}

    def __str__(self) -> str:
        return self.text

    def show(self) -> None:
        """Put it on the page now."""
        publish(self._repr_mimebundle_())


def publish(bundle: dict[str, Any]) -> None:
    """Display a bundle of MIME types; outside a notebook its plain text."""
    from IPython.display import display

    display(bundle, raw=True)


def note(text: str) -> Shown:
    """A sentence or two in plain words; ``**bold**`` and ```code``` are understood."""
    marked = _inline(html.escape(text))
    return Shown(f"<p>{marked}</p>", text.replace("**", "").replace("`", ""))


def _inline(text: str) -> str:
    for mark, tag in (("**", "b"), ("`", "code")):
        pieces = text.split(mark)
        if len(pieces) % 2 == 0:
            continue  # an unpaired mark is text
        text = "".join(f"<{tag}>{piece}</{tag}>" if index % 2 else piece for index, piece in enumerate(pieces))
    return text


def cell_text(value: Any) -> str:
    """A value as a table shows it: numbers to three digits, booleans as words, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return str(value)


def number(value: float) -> str:
    """Three significant digits, no zeros at the end, no exponent where it reads well without."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2e}"


def table(rows: Iterable[Mapping[str, Any]], caption: str = "", columns: Sequence[str] | None = None) -> Shown:
    """Rows as a table; ``columns`` chooses and orders them (default: those of the first row)."""
    listed = list(rows)
    names = list(columns or (listed[0] if listed else ()))
    cells = [[cell_text(row.get(name)) for name in names] for row in listed]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells)
    # Below the table and not inside, where it would be as narrow as the table.
    below = f"<p style='font-size: 90%; max-width: 60em'>{_inline(html.escape(caption))}</p>" if caption else ""
    widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)] if names else []
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in [names, *cells]]
    return Shown(
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}", "\n".join([*lines, caption] if caption else lines)
    )


class Prediction:
    """A question with a few answers that the reader commits to before the measurement, and the verdict after it.

    In a live notebook the answers are buttons and the commitment counts in :meth:`measured`. In a saved page the same buttons work
    without a kernel: they only mark the choice. ``options`` are numbers (with ``unit``) or words.
    """

    def __init__(self, question: str, options: Sequence[Option], unit: str = "") -> None:
        if len(options) < 2:
            raise ValueError(f"a prediction needs at least two answers to choose from, got {list(options)!r}")
        self.question = question
        self.options = list(options)
        self.unit = unit
        self.choice: Option | None = None
        self._box: Any = None

    def commit(self, choice: Option) -> None:
        """Decide for one of the options; ``ValueError`` for anything else. The first decision counts."""
        if choice not in self.options:
            raise ValueError(f"choose one of {', '.join(self.label(option) for option in self.options)}; got {choice!r}")
        if self.choice is None:
            self.choice = choice

    def label(self, option: Option) -> str:
        """An option in words, unit included."""
        words = option if isinstance(option, str) else f"{option:g}"
        return f"{words} {self.unit}".strip() if self.unit and not isinstance(option, str) else words

    def nearest(self, value: Option) -> Option:
        """The option closest to ``value``: by ratio where all are positive numbers, else by difference; words must match."""
        if isinstance(value, str):
            if value not in self.options:
                raise ValueError(f"{value!r} is none of the answers {self.options}")
            return value
        numbers = [float(option) for option in self.options if not isinstance(option, str)]
        if not numbers:
            raise ValueError(f"{value!r} is a number, but the answers are words: {self.options}")
        if value > 0 and min(numbers) > 0:
            return min(numbers, key=lambda option: abs(math.log(option / value)))
        return min(numbers, key=lambda option: abs(option - value))

    def measured(self, value: Option, where: str = "on this machine") -> Shown:
        """The measurement beside what the reader had committed to."""
        right = self.nearest(value)
        said = value if isinstance(value, str) else f"{number(value)} {self.unit}".strip()
        verdict = f"**Measured {where}: {said}.** The closest answer was {self.label(right)}"
        if self.choice is None:
            verdict += "; no prediction was made."
        elif self.choice == right:
            verdict += ", and that was your prediction."
        else:
            verdict += f"; your prediction was {self.label(self.choice)}."
        return note(verdict)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        names = [self.label(option) for option in self.options]
        bundle: dict[str, Any] = {
            "text/html": self._markup(names),
            "text/plain": f"Predict: {self.question}\n" + "\n".join(f"( ) {name}" for name in names),
        }
        live = self._live()
        if live is not None:
            bundle["application/vnd.jupyter.widget-view+json"] = {"version_major": 2, "version_minor": 0, "model_id": live.model_id}
        return bundle

    def _markup(self, names: Sequence[str]) -> str:
        group = f"guess{next(_serial)}"
        buttons = "".join(
            f"<input type='radio' name='{group}' id='{group}-{i}'><label for='{group}-{i}'>{html.escape(name)}</label>"
            for i, name in enumerate(names)
        )
        kept = "<div class='kept'>Keep that in mind, and read on.</div>"
        return f"{_STYLE}<div class='lesson-guess'><p><b>Predict.</b> {_inline(html.escape(self.question))}</p>{buttons}{kept}</div>"

    def _live(self) -> Any:
        """The buttons with a kernel behind them, or None where ipywidgets is missing."""
        try:
            import ipywidgets
        except ImportError:
            return None
        if self._box is not None:
            return self._box
        question = ipywidgets.HTML(f"<b>Predict.</b> {_inline(html.escape(self.question))}")
        # No answer is chosen beforehand: a default would be an anchor.
        answers = ipywidgets.ToggleButtons(options=[(self.label(o), o) for o in self.options], value=None, style={"button_width": "auto"})
        decide = ipywidgets.Button(description="Commit", disabled=True, tooltip="Decide before you measure")
        said = ipywidgets.HTML()

        def chosen(change: Any) -> None:
            decide.disabled = change["new"] is None

        def committed(_: Any) -> None:
            self.commit(answers.value)
            answers.disabled = decide.disabled = True
            said.value = f"Your prediction: <b>{html.escape(self.label(answers.value))}</b>. Now measure."

        answers.observe(chosen, "value")
        decide.on_click(committed)
        self._box = ipywidgets.VBox([question, answers, ipywidgets.HBox([decide, said])])
        return self._box


def predict(question: str, options: Sequence[Option], unit: str = "") -> Prediction:
    """Ask the reader to commit to one of ``options``; the last expression of a cell."""
    return Prediction(question, options, unit)
