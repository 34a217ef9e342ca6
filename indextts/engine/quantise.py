"""Weight-only quantisation of the GPT's linear layers: 8 bits a weight and one scale an output.

A decode step with few sequences takes as long as reading its weights does, so half the bytes could be half the time. That holds at best
for the fused decode kernels, which scale the weights on their way in; in torch the weights are widened before every product, which saves
memory and costs time. On an H200 (``python -m tests.gpu_trial --sections decode``, release size, 250 codes) a step of those kernels takes
1.15 ms with one beam, 1.09 with int8 and 1.15 with fp8; 1.91, 1.70 and 1.76 with three; 1.52, 1.65 and 1.74 for 16 rows of three. The
kernel of a whole step takes weights of 16 bits and needs 0.4 and 0.6 ms: beside it, 8 bits save memory alone.

Rounding is to the nearest value of a symmetric grid whose end is the output's largest weight. The outputs differ: of a layer of 1280 x 1280
random normal weights by 8e-3 (int8) and 2.6e-2 (fp8), where bfloat16 costs 2.8e-3, |a - b| / |b|; so it is never on by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.models.gpt2 import Conv1D

KINDS = {"full": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}


def check_weights(kind: str, device: torch.device) -> str:
    """``kind`` if ``device`` can take it, else ``ValueError`` with the choices. ``fp8`` needs sm_89 where there is CUDA."""
    if kind not in KINDS:
        raise ValueError(f"weights are {kind!r}; choose one of {', '.join(KINDS)}")
    if kind == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(f"weights 'fp8' need a GPU of compute capability 8.9 or newer, not {device}; use 'int8'")
    return kind


class QuantisedConv1D(Conv1D):
    """A ``Conv1D`` with weights (in, out) of 8 bits and ``scale`` (out,) float32; products in the format of the layer it replaces."""

    def __init__(self, layer: Conv1D, kind: str) -> None:
        nn.Module.__init__(self)
        stored = KINDS[kind]
        assert stored is not None
        largest = 127.0 if stored == torch.int8 else torch.finfo(stored).max
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=0).clamp(min=1e-12) / largest
        grid = weight / scale
        self.product = layer.weight.dtype
        self.weight = nn.Parameter((grid.round() if stored == torch.int8 else grid).to(stored), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        # Scaling the result instead of the weights is one pass over far fewer values.
        y = F.linear(x.to(self.product), self.weight.to(self.product).t()) * self.scale.to(self.product) + self.bias
        return y.clamp(-65504, 65504) if y.dtype == torch.float16 else y


def quantise(stack: nn.Module, kind: str) -> None:
    """Replace every ``Conv1D`` in ``stack``, in place. Embeddings, norms and the code head stay as they are."""
    for parent in list(stack.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Conv1D):
                setattr(parent, name, QuantisedConv1D(layer, kind))
