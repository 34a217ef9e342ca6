"""What every parity runner shares: reading a golden, seeding weights, comparing tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.seeded import seeded_state

TOLERANCE = 1e-4  # of max(1, |expected|), element by element


@dataclass(frozen=True)
class Check:
    """One compared tensor or value: largest absolute error, and the tolerance it had to meet."""

    name: str
    error: float
    tolerance: float
    passed: bool
    detail: str = ""


class Golden:
    """A golden file: ``spec`` (its JSON), ``tensors`` (the safetensors file of the same stem, if there is one)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.spec: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Recorded inputs (``in.*``) and outputs (``out.*``)."""
        file = self.path.with_suffix(".safetensors")
        return load_file(file) if file.is_file() else {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def run(self) -> dict[str, Any]:
        """The ``run`` arguments of the numeric goldens."""
        return self.spec.get("config", {}).get("run", {})

    def model_config(self, name: str) -> dict[str, Any]:
        """Raw configuration of model ``name``."""
        return self.spec["config"]["models"][name]

    def resolve(self, relative: str) -> Path:
        """A path inside the golden: relative to its folder or to that folder's parent."""
        for base in (self.path.parent, self.path.parent.parent):
            if (base / relative).is_file():
                return base / relative
        raise FileNotFoundError(f"{self.path.name} names {relative}, which is neither in {self.path.parent} nor in its parent")

    def manifest(self, name: str | None = None) -> dict[str, dict[str, Any]]:
        """Manifest of model ``name`` (or the only one): {key: {"shape", "dtype"[, "constant"]}}."""
        relative = self.spec["manifests"][name] if name else self.spec["manifest"]
        return json.loads(self.resolve(relative).read_text(encoding="utf-8"))

    def state(self, name: str | None = None) -> dict[str, torch.Tensor]:
        """Seeded weights, with the key names of the release's files."""
        return seeded_state(self.manifest(name), self.spec["salt"])

    def compare(self, name: str, actual: torch.Tensor, *, expected: torch.Tensor | None = None, tolerance: float = TOLERANCE) -> Check:
        """Compare with the recorded tensor ``name`` (or ``expected``)."""
        return compare(name, actual, self.tensors[name] if expected is None else expected, tolerance)


def compare(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> Check:
    """Floats: |actual - expected| <= tolerance * max(1, |expected|), infinities at the same places. Integers: equal."""
    actual = actual.detach().cpu()
    if tuple(actual.shape) != tuple(expected.shape):
        return Check(name, math.inf, tolerance, False, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if not expected.dtype.is_floating_point:
        wrong = int((actual.to(torch.int64) != expected.to(torch.int64)).sum())
        return Check(name, float(wrong), 0.0, wrong == 0, f"{wrong} of {expected.numel()} differ" if wrong else "")
    a, e = actual.double(), expected.double()
    finite = torch.isfinite(e)
    if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(a[~finite], e[~finite]):
        return Check(name, math.inf, tolerance, False, "not finite at the same places")
    if not finite.any():
        return Check(name, 0.0, tolerance, True)
    difference = (a[finite] - e[finite]).abs()
    passed = bool((difference <= tolerance * e[finite].abs().clamp(min=1.0)).all())
    return Check(name, float(difference.max()), tolerance, passed)


def compare_values(name: str, actual: Any, expected: Any) -> Check:
    """Plain Python values: equal, floats to within ``TOLERANCE``."""
    passed = _same(actual, expected)
    return Check(name, 0.0 if passed else math.inf, 0.0, passed, "" if passed else f"got {_short(actual)}, expected {_short(expected)}")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) or isinstance(b, float):
        try:
            return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        except TypeError:
            return False
    return bool(a == b)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


Runner = Callable[[Golden], Iterator[Check]]
RUNNERS: dict[str, Runner] = {}


def runner(kind: str) -> Callable[[Runner], Runner]:
    """Register the runner of one kind of golden."""

    def register(function: Runner) -> Runner:
        RUNNERS[kind] = function
        return function

    return register
