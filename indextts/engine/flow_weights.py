"""The flow-matching solver's weights: the plain solver in the format of the precision, and where the float32 ones are meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from indextts.engine.offload import Offloaded
from indextts.engine.originals import Originals
from indextts.engine.precision import solver_products, solver_products_in
from indextts.engine.solver_times import only_for_tables

if TYPE_CHECKING:
    from indextts.models.flow_matching import FlowMatching


class FlowWeights:
    """Of ``flow``, which is on ``device``. What 16-bit products leave alone stays there, with one exception.

    The layers of which only time tables need anything (75 MB at the release's sizes) run once per number of steps where the fast solver is
    all that runs: then they visit the device for as long.
    """

    def __init__(self, flow: FlowMatching, device: torch.device) -> None:
        self._flow, self._device = flow, device
        self.originals = Originals(solver_products(flow), device)
        self._visiting: Offloaded | None = None
        self._halved: FlowMatching | None = None

    def plain(self, dtype: torch.dtype | None) -> FlowMatching:
        """The plain solver, its products in ``dtype`` (None: float32); the same one until :meth:`forget`, whatever is asked for then."""
        if dtype is None:
            return self._flow
        if self._halved is None:
            self.visit(False)
            self._halved = solver_products_in(self._flow, dtype, self._device)
        return self._halved

    def forget(self) -> None:
        """Drop the copy that :meth:`plain` made."""
        self._halved = None

    def visit(self, on: bool) -> None:
        """Let the layers that only tables need visit the device when they run, or keep them there, as the plain solver needs them."""
        if on and self._visiting is None:
            self.forget()  # it shares them
            self._visiting = Offloaded(nn.ModuleList(only_for_tables(self._flow.estimator)), self._device)
        elif self._visiting is not None and not on:
            self._visiting.restore()
            self._visiting = None

    @property
    def visiting(self) -> bool:
        """Whether :meth:`visit` is on."""
        return self._visiting is not None
