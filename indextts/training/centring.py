"""Steps of a layer whose inputs have a mean far from zero, as if they had none.

Log-mels are about -6, in all 80 bands at once. Seven frames of them are 560 inputs that say the same; a step that moves all their
weights by one learning rate moves the layer's output by 560 * 6 of them: more than an activation's sine has room for. In a vocoder that
was nearly done one ordinary step of the first layer alone took the mel's error from 0.39 to 0.51 (0.71 at worst), as much as all other
layers together; centred, to 0.39 (0.40). One run that lost
within fifty steps what it had learnt may have lost it by this (lesson 15).

With weights W and bias b, W x + b = W (x - m) + c for c = b + W m. Steps are made in W and c; what is kept is W and b, as every release has
them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Centring:
    """The steps of one convolution along time; :meth:`before` and :meth:`after` go around the optimiser's."""

    def __init__(self, layer: nn.Conv1d, mean: Tensor) -> None:
        """``mean`` (C,) of each input channel; any will do, the true one best."""
        assert layer.bias is not None
        self._layer, self._mean = layer, mean.detach().to(layer.weight)[None, :, None]
        self._held: Tensor | None = None

    @torch.no_grad()
    def start(self) -> None:
        """Let a fresh layer answer the mean with nothing."""
        self._shift(self._layer.weight)

    @torch.no_grad()
    def before(self) -> None:
        """Turn the gradient with respect to W at a fixed b into that at a fixed c."""
        weight, bias = self._layer.weight, self._layer.bias
        assert weight.grad is not None
        assert bias is not None
        assert bias.grad is not None
        weight.grad.sub_(bias.grad[:, None, None] * self._mean)
        self._held = weight.clone()

    @torch.no_grad()
    def after(self) -> None:
        """Let b follow W, so that c has moved as the optimiser wanted."""
        assert self._held is not None
        self._shift(self._layer.weight - self._held)
        self._held = None

    def _shift(self, moved: Tensor) -> None:
        assert self._layer.bias is not None
        self._layer.bias.sub_((moved * self._mean).sum((1, 2)))
