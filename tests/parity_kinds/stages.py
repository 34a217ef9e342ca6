"""Recording intermediate stages of a module by hooks, and comparing all that a golden holds."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tests.parity_kinds.common import Check, Golden


@contextlib.contextmanager
def recorded(outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module] | None = None) -> Iterator[dict[str, Tensor]]:
    """Within the block, the first output (or the first argument) of every named module is put into the yielded dict."""
    seen: dict[str, Tensor] = {}

    def keep_output(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
            seen.setdefault(name, output)

        return hook

    def keep_input(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, arguments: Any) -> None:
            seen.setdefault(name, arguments[0])

        return hook

    handles = [module.register_forward_hook(keep_output(name)) for name, module in outputs.items()]
    handles += [module.register_forward_pre_hook(keep_input(name)) for name, module in (inputs or {}).items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def suffixes(golden: Golden, tensor: str) -> list[str]:
    """Case suffixes ("", or "_a", "_b", ...): those of ``config.run.cases``, else of the inputs called ``tensor``."""
    if "cases" in golden.run:
        return [f"_{case}" for case in golden.run["cases"]]
    names = (re.fullmatch(rf"in\.{tensor}(_\w+)?", name) for name in golden.tensors)
    return sorted(match[1] or "" for match in names if match)


def compare_all(golden: Golden, actual: Mapping[str, Tensor]) -> Iterator[Check]:
    """One check for every recorded ``out.*``; a recorded tensor without a counterpart in ``actual`` (names without "out.") fails."""
    for name in sorted(name for name in golden.tensors if name.startswith("out.")):
        if name.removeprefix("out.") in actual:
            yield golden.compare(name, actual[name.removeprefix("out.")])
        else:
            yield Check(name, math.inf, 0.0, False, "recorded, but the runner does not know it")
