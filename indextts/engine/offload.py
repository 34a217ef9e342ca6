"""Weights that are kept on the CPU and visit the device for as long as their layer runs.

For networks that run once per voice: their weights, on the device for good, would take more room than all the rest together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Offloaded:
    """Keeps the parameters of ``module`` on the CPU until :meth:`restore`; each layer's are on ``device`` while its ``forward`` runs.

    Buffers stay on the device. Nothing but ``forward`` may look at the parameters. ``load`` makes the device's copy of one.
    """

    def __init__(self, module: nn.Module, device: torch.device, load: Callable[[Tensor], Tensor] | None = None) -> None:
        self._device = device
        self._load = load or (lambda kept: kept.to(device, non_blocking=True))
        self._module = module
        self._kept: dict[nn.Module, dict[str, nn.Parameter]] = {}
        self._hooks: list[Any] = []
        for layer in module.modules():
            own = {name: value for name, value in layer._parameters.items() if value is not None}
            if own:
                self._kept[layer] = {name: nn.Parameter(self._to_cpu(value.detach()), requires_grad=False) for name, value in own.items()}
                self._hooks.append(layer.register_forward_pre_hook(self._fetch))
                self._hooks.append(layer.register_forward_hook(self._drop, always_call=True))
                layer._parameters.update(self._kept[layer])

    def restore(self) -> None:
        """Put everything on the device for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        with torch.inference_mode(False):  # so that the parameters are of the usual kind, whoever asked for them
            for layer, kept in self._kept.items():
                layer._parameters.update({name: nn.Parameter(value.to(self._device), requires_grad=False) for name, value in kept.items()})
        self._kept.clear()

    def _fetch(self, layer: nn.Module, _: object) -> None:
        kept = self._kept[layer]
        layer._parameters.update({name: nn.Parameter(self._load(value.detach()), requires_grad=False) for name, value in kept.items()})

    def _drop(self, layer: nn.Module, *_: object) -> None:
        layer._parameters.update(self._kept[layer])

    def _to_cpu(self, value: Tensor) -> Tensor:
        with torch.inference_mode(False):
            kept = value.to("cpu")
            return kept.pin_memory() if self._device.type == "cuda" else kept
