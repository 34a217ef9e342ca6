"""Checkpoints to modules: weight norm folded, every key accounted for.

The released files store many convolutions as weight norm (``w = g v / ||v||``, arXiv 1602.07868). At inference the product is a
constant, so modules here hold the plain ``weight`` and the factors are multiplied once, when a file is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

State = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)

_GAIN = re.compile(r"^(?P<name>.*)(?:weight_g|parametrizations\.weight\.original0)$")


class CheckpointError(RuntimeError):
    """A checkpoint that does not hold what the model needs; the message names the file and the keys."""


def fold_weight_norm(state: Mapping[str, Tensor]) -> State:
    """Replace every pair ``weight_g``, ``weight_v`` by ``weight``; the norm runs over all dimensions but the first."""
    folded = dict(state)
    for gain_key in state:
        match = _GAIN.match(gain_key)
        if match is None:
            continue
        name = match["name"]
        direction_key = name + ("weight_v" if gain_key.endswith("weight_g") else "parametrizations.weight.original1")
        if direction_key not in state:
            continue
        gain, direction = folded.pop(gain_key).float(), folded.pop(direction_key).float()
        # The operator behind torch.nn.utils.weight_norm: another order of operations differs in the last bits, and a deep
        # vocoder magnifies those to more than 1e-4.
        folded[f"{name}weight"] = torch._weight_norm(direction, gain, 0)
    return folded


def unfold_weight_norm(state: Mapping[str, Tensor], names: Iterable[str]) -> State:
    """The inverse, for writing files in the release's layout: ``names`` are modules whose ``weight`` becomes g and v."""
    unfolded = dict(state)
    for name in names:
        weight = unfolded.pop(f"{name}.weight")
        norm = weight.float().flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1))
        unfolded[f"{name}.weight_g"] = norm.to(weight.dtype)
        unfolded[f"{name}.weight_v"] = weight
    return unfolded


def build(make: Callable[[], M]) -> M:
    """Call ``make`` without allocating or initialising parameters; :func:`load_weights` must follow.

    Constant buffers must name their device (``device="cpu"``), so that they are real all the same. ``make`` should do no
    arithmetic without memory: for some operations torch first imports its compiler, which takes seconds.
    """
    with torch.device("meta"), _Undrawn():
        return make()


class _Undrawn(TorchFunctionMode):
    """Leaves out normally distributed start values, which are among those operations."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    unused: Iterable[str] = (),
    source: str = "checkpoint",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Put ``state`` into ``module`` (eval mode, ``dtype``), folding weight norm first; tensors are taken over, not copied.

    ``unused`` holds regular expressions of the keys that a complete file has and the module does not need. Errors:
    :class:`CheckpointError` that lists the keys which are missing, unexpected, or of another shape.
    """
    skip = re.compile("|".join(f"(?:{pattern})" for pattern in unused)) if unused else None
    wanted = module.state_dict()
    given = {key: value for key, value in fold_weight_norm(state).items() if key in wanted or not (skip and skip.fullmatch(key))}
    misshapen = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    shapes = [f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}" for key in misshapen]
    problems = [
        _listing("missing", [key for key in wanted if key not in given]),
        _listing("unexpected", [key for key in given if key not in wanted]),
        _listing("of another shape", shapes),
    ]
    if any(problems):
        raise CheckpointError(f"{source} does not fit the model: " + "; ".join(filter(None, problems)))
    ready = {key: value.detach().to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    module.load_state_dict(ready, assign=True)
    module.requires_grad_(False).eval()


def _listing(what: str, keys: list[str], most: int = 8) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {what} ({', '.join(keys[:most])}{more})"
