"""Steps in centred coordinates are those of a layer that is given centred inputs; the layer itself stays as releases have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from indextts.training.centring import Centring

MEAN = torch.tensor([-6.0, -4.0, 2.0])


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return MEAN[:, None] + torch.randn(4, 3, 20), torch.randn(4, 5, 20)


def _layer() -> nn.Conv1d:
    torch.manual_seed(0)
    return nn.Conv1d(3, 5, 7, padding=3)


def _steps(layer: nn.Conv1d, centred: bool, rate: float = 1e-2) -> list[float]:
    x, wanted = _data()
    optimiser = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=0.0)
    centring = Centring(layer, MEAN)
    losses = []
    for _ in range(12):
        loss = (layer(x) - wanted).square().mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        if centred:
            centring.before()
        optimiser.step()
        if centred:
            centring.after()
    return losses


class _GivenCentred(nn.Module):
    """The oracle: W and c, and inputs without their mean; what lies beyond the ends is no input, but a zero as before."""

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        assert layer.bias is not None
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.c = nn.Parameter(layer.bias.detach() + (self.weight.detach() * MEAN[:, None]).sum((1, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(F.pad(x, (3, 3)) - MEAN[:, None], self.weight, self.c)


def test_steps_are_those_of_a_layer_with_centred_inputs() -> None:
    layer, oracle = _layer(), _GivenCentred(_layer())
    x, wanted = _data()
    optimiser = torch.optim.AdamW(oracle.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(12):
        optimiser.zero_grad()
        (oracle(x) - wanted).square().mean().backward()
        optimiser.step()
    _steps(layer, centred=True)
    torch.testing.assert_close(layer.weight, oracle.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x), oracle(x), rtol=1e-4, atol=1e-4)


def test_a_mean_far_from_zero_makes_steps_too_long() -> None:
    losses = []
    for centred in (False, True):
        layer = _layer()
        Centring(layer, MEAN).start()
        losses.append(_steps(layer, centred, rate=0.05))
    plain, steady = losses
    assert plain[0] == steady[0]
    assert max(plain[1:]) > 3 * plain[0]
    assert max(steady[1:]) < 1.5 * steady[0]


def test_a_fresh_layer_answers_the_mean_with_its_bias() -> None:
    layer = _layer()
    bias = layer.bias
    assert bias is not None
    before = bias.detach().clone()
    Centring(layer, MEAN).start()
    there = layer(MEAN[None, :, None].expand(1, 3, 20))[..., 3:-3]
    torch.testing.assert_close(there, before[None, :, None].expand_as(there))
