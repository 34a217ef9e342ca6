"""Float32 weights that nothing on the device reads: they wait on the CPU for as long as 16-bit copies of them are what runs.

A change of precision starts from the float32 weights, so that rounding never compounds, and a float16 result that overflowed is computed
again from them. Neither happens while a voice speaks, and on the device the originals of vocoder and solver take as much room as their
copies twice over (0.74 GB at the release's sizes). What is small, or read in float32 all the same (norms, biases, first and last maps,
the activations' parameters), stays.

Copies in another format can be made from where the originals wait, with the same bits, so that originals and copies need not be on the
device together at any time: originals leave first, and come back before anything is to run on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Originals:
    """The ``weight`` of each of ``layers``, which belongs on ``device`` and can wait on ``host``; away, nothing may run on them.

    A weight that moves is a new parameter, so that no other holder of a layer keeps memory; who looked a weight up before has the old one.
    A move that fails half-way (for want of memory) leaves every weight in one place or the other, and can be tried again.
    """

    def __init__(self, layers: Iterable[nn.Module], device: torch.device, host: torch.device | None = None) -> None:
        self.device, self.host = device, host or torch.device("cpu")
        self._layers = list(layers)
        self._away: set[nn.Module] = set()

    @property
    def away(self) -> bool:
        """Whether any weight waits on the host."""
        return bool(self._away)

    @property
    def bytes(self) -> int:
        """Of all weights, wherever they are."""
        return sum(weight.numel() * weight.element_size() for weight in map(_weight, self._layers))

    def settle(self, away: bool) -> None:
        """:meth:`send_away`, or else :meth:`bring_back`."""
        if away:
            self.send_away()
        else:
            self.bring_back()

    def send_away(self) -> None:
        """To the host; nothing happens to weights that are there."""
        for layer in self._layers:
            if layer not in self._away:
                self._replace(layer, self._sent)
                self._away.add(layer)

    def bring_back(self) -> None:
        """To the device, with the bits that they left with; nothing happens to weights that are there."""
        for layer in self._layers:
            if layer in self._away:
                self._replace(layer, self._brought)
                self._away.remove(layer)

    def _sent(self, weight: Tensor) -> Tensor:
        return weight.to(self.host)

    def _brought(self, weight: Tensor) -> Tensor:
        return weight.to(self.device)

    @staticmethod
    def _replace(layer: nn.Module, move: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode(False):  # so that the parameter is one of the usual kind, whoever asked for it
            layer._parameters["weight"] = nn.Parameter(move(_weight(layer)), requires_grad=False)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.detach()
