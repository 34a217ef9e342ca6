"""Fused kernels as a switch: which stages use them, and whether the device has shown that it computes them right.

The kernels are in :mod:`indextts.engine.kernels`, written in Triton, which need not be installed, and one in CUDA C++. Each equals some
lines of torch that stay the oracle: before a stage uses its kernels they are compared with those lines on random data on the very device,
once per number format. If Triton is missing, the device is none of CUDA's, or the comparison fails, the stage runs in torch and a log line
says why.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

logger = logging.getLogger(__name__)
Wish = bool | str  # True, False or "auto"


@dataclass(frozen=True)
class Fusion:
    """Which stages use fused kernels: ``"auto"`` and True where the device passes the check, False never.

    ``decode``: norm, product, GELU and residual, and attention over the static cache, of the accelerated decoder. ``one_kernel``: all of
    that, for a few sequences in 16 bits, in one kernel from the first layer to the logits, where ``decode`` is on too. ``solver``: norms,
    rotary positions and gates of the accelerated mel solver. ``vocoder``: the anti-aliased activation. ``sampler``: the choice of the next
    code, with beams and without. With True a stage that cannot is reported as a warning instead of in passing.
    """

    decode: Wish = "auto"
    one_kernel: Wish = "auto"
    sampler: Wish = "auto"
    solver: Wish = "auto"
    vocoder: Wish = "auto"

    def __post_init__(self) -> None:
        for name, wish in asdict(self).items():
            if wish not in (True, False, "auto"):
                raise ValueError(f"fusion of {name} is {wish!r}; choose True, False or 'auto'")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The stages that have kernels."""
        return tuple(field.name for field in fields(cls))

    def usable(self, stage: str, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether ``stage`` runs on its kernels, in ``dtype`` on ``device``."""
        wish = getattr(self, stage)
        if wish is False:
            return False
        problem = check(stage, device, dtype)
        if problem and (wish is True or device.type == "cuda"):
            logger.log(logging.WARNING if wish is True else logging.INFO, "%s runs without fused kernels: %s", stage, problem)
        return not problem

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


@functools.cache
def check(stage: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernels of ``stage`` cannot be used on ``device`` in ``dtype``; empty if they can."""
    if device.type != "cuda":
        return f"they need a CUDA device, and this is {device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from indextts.engine.kernels import checks

    try:
        with torch.inference_mode(), torch.cuda.device(device):
            worst = getattr(checks, stage)(device, dtype)
    except Exception as error:  # a compiler fails in many ways: no such instruction, no shared memory, no C compiler
        return f"{type(error).__name__}: {error}".splitlines()[0]
    bound = checks.BOUNDS[dtype]
    return "" if worst <= bound else f"their results differ from torch's by {worst:.1e}, more than {bound:.0e}"
