"""The Python call that does what a panel is set to."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from widgets.clips import Voice

LINE = 88


def python_call(arguments: Mapping[str, Any]) -> str:
    """``tts.infer(...)`` as code: run where ``tts`` is the engine, it gives ``rate`` and ``samples`` (int16, (n, 1)).

    Values are plain Python or :class:`Voice`, which is written as the expression that stands for it.
    """
    written = {name: value.code if isinstance(value, Voice) else _literal(name, value) for name, value in arguments.items()}
    one_line = f"rate, samples = tts.infer({', '.join(f'{name}={value}' for name, value in written.items())})"
    if len(one_line) <= LINE:
        return one_line
    return "rate, samples = tts.infer(\n" + "".join(f"    {name}={value},\n" for name, value in written.items()) + ")"


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments as ``infer`` takes them: a voice becomes its source."""
    return {name: value.source if isinstance(value, Voice) else value for name, value in arguments.items()}


def _literal(name: str, value: Any) -> str:
    text = repr(value)
    if not isinstance(value, str) or len(text) + len(name) <= LINE:
        return text
    lines = textwrap.wrap(value, LINE - 12, drop_whitespace=False, replace_whitespace=False, expand_tabs=False, break_long_words=True)
    return "(\n" + "".join(f"        {line!r}\n" for line in lines) + "    )"
