"""Reading dataclasses from configuration files: types checked, unknown fields noticed, contradictions refused."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
from typing import Any, TypeVar, get_type_hints

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field, what is wrong and what would be right."""


def build_section(cls: type[T], raw: Any, where: str, base: T | None = None) -> T:
    """Build dataclass ``cls`` from a mapping; ``where`` names the section in messages.

    Fields that ``raw`` leaves out come from ``base`` if given (the emotion encoder's defaults are not the speaker encoder's), else from
    the class. A class's ``IGNORED`` names fields that a file may hold and that mean nothing here; any other unknown field is warned of,
    or an error if it looks like a misspelling. Errors: :class:`ConfigError`.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"section {where or 'top level'} must be a mapping, found {type(raw).__name__}")
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {} if base is None else {name: getattr(base, name) for name in fields}
    for key, value in raw.items():
        place = f"{where}.{key}" if where else str(key)
        if key in fields:
            default = values.get(key, _default_of(fields[key]))
            values[key] = _convert(value, hints[key], place, default)
        elif key not in getattr(cls, "IGNORED", ()):
            close = difflib.get_close_matches(str(key), [name for name in fields if name not in raw], n=1, cutoff=0.8)
            if close:
                raise ConfigError(f"unknown field {place!r}; did you mean {close[0]!r}?")
            logger.warning("configuration field %s is unknown and ignored", place)
    return cls(**values)


def to_plain(value: Any) -> Any:
    """Dataclasses and tuples to dicts and lists, for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def within(name: str, value: float, low: float, high: float) -> None:
    """Check that ``value`` is a size that a model can have."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be between {low:g} and {high:g}")


def divides(name: str, value: int, by_name: str, by: int) -> None:
    """Check that ``value`` is a positive multiple of ``by``."""
    if by < 1 or value < 1 or value % by:
        raise ConfigError(f"{name} ({value}) must be a multiple of {by_name} ({by})")


def must_be(where: str, section: Any, **expected: Any) -> None:
    """Check switches of which only the release's setting is implemented."""
    for name, value in expected.items():
        if getattr(section, name) != value:
            raise ConfigError(f"{where}.{name} is {getattr(section, name)!r}; only {value!r} (the release's value) is supported")


def all_equal(**named: int) -> None:
    """Check that widths which meet are equal; ``__`` in a name stands for a dot."""
    if len(set(named.values())) > 1:
        listing = ", ".join(f"{name.replace('__', '.')} = {value}" for name, value in named.items())
        raise ConfigError(f"these widths must be equal: {listing}")


def _default_of(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _convert(value: Any, hint: Any, where: str, default: Any) -> Any:
    kind = str(hint)
    if dataclasses.is_dataclass(hint):
        return build_section(hint, value, where, default)  # type: ignore[arg-type]
    if "tuple[tuple" in kind:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list of lists of whole numbers, got {value!r}")
        return tuple(_whole_numbers(row, where) for row in value)
    if "tuple" in kind:
        return _whole_numbers(value, where)
    if hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, got {value!r}")
        return value
    if value is None and "None" in kind:
        return None
    if kind in ("<class 'str'>", "str | None"):
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ConfigError(f"{where} must be text, got {value!r}")
        return str(value).strip()
    if kind in ("<class 'int'>", "int | None"):
        return _whole_number(value, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    return value


def _whole_number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{where} must be a whole number >= 0, got {value!r}")
    return value


def _whole_numbers(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} must be a list of whole numbers, got {value!r}")
    return tuple(_whole_number(item, where) for item in value)
