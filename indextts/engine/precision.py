"""Which number format runs where.

| precision | GPT and its conditioners | S2Mel: products of the solver | vocoder: convolutions | encoders | products in float32 |
|---|---|---|---|---|---|
| ``fp32``  | float32  | float32  | float32 | float32 | true float32, convolutions too |
| ``tf32``  | float32  | float32  | float32 | float32 | TF32 tensor cores (sm_80 and newer) |
| ``bf16``  | bfloat16 | bfloat16 | float16 on CUDA, else float32 | float32 | true float32 |
| ``fp16``  | float16  | float16  | float16 on CUDA, else float32 | float32 | true float32 |

In the 16-bit modes weights, matrix products and attention are 16-bit; residual streams, norms, softmax, activations of the vocoder, the
Euler state, logits and latents stay in float32, on the plain path and on the fast one. No autocast decides: every cast is written down.

The vocoder takes float16 in both modes, since its error is a tenth of bfloat16's, and a wave shows what a spectrogram hides. Relative
errors |a - b| / |b| against float32, small random networks on a CPU (``tests/engine/test_precision.py`` holds them to bounds):
GPT latents 1.5e-3 bf16, 1.8e-4 fp16; mel after 25 steps 1.7e-3 bf16, 1.9e-4 fp16; wave 8.7e-3 bf16, 1.1e-3 fp16.

float16 ends at 65504. In the GPT products saturate there instead of becoming infinite; solver and vocoder look at their result, and one
that is not finite is computed again in bfloat16 (solver) or float32 (vocoder), which then stay in use.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.models.gpt2 import Conv1D

M = TypeVar("M", bound=nn.Module)

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_16_bit(device: torch.device) -> str:
    """The best 16-bit precision of a device: bf16 from sm_80 on, fp16 on sm_70 and sm_75, otherwise none (``fp32``)."""
    if device.type == "xpu":
        return "bf16"
    if device.type != "cuda":
        return "fp32"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return "bf16"
    return "fp16" if capability >= (7, 0) else "fp32"


def resolve_precision(precision: str, use_fp16: bool, device: torch.device) -> str:
    """The precision in force: ``precision`` unless it is ``"auto"``, which follows ``use_fp16``.

    Errors: ``ValueError`` for a name that does not exist or that ``device`` cannot run.
    """
    if precision == "auto":
        return best_16_bit(device) if use_fp16 else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose 'auto' or one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise ValueError(f"precision 'tf32' needs a GPU of compute capability 8.0 or newer, not {device}; use 'fp32'")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision 'fp16' is not supported on the CPU; use 'bf16' or 'fp32'")
    return precision


def dtype_of(precision: str) -> torch.dtype | None:
    """``torch.float16``, ``torch.bfloat16``, or None for the float32 modes."""
    return _DTYPES[precision]


def vocoder_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Format of the vocoder's convolutions."""
    return torch.float16 if _DTYPES[precision] is not None and device.type == "cuda" else torch.float32


def copy_to(module: M, device: torch.device, matrices: torch.dtype, left: Collection[nn.Module] = ()) -> M:
    """A copy of ``module`` on ``device`` with the weights of linear layers and convolutions in ``matrices``.

    Embeddings, norms and tables stay in float32, so that the residual stream they feed does too. Shares storage where nothing changes, and
    with the parts ``left`` where and as they are.
    """
    dtypes: dict[int, torch.dtype] = {}
    shared = {id(parameter) for part in left for parameter in part.parameters()}
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)):
            dtypes.update({id(parameter): matrices for parameter in layer.parameters(recurse=False)})
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        if id(tensor) in shared:
            memo[id(tensor)] = tensor
            continue
        moved = tensor.detach().to(device, dtypes.get(id(tensor), tensor.dtype))
        memo[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(module, memo)


def inputs_inside(stack: nn.Module) -> None:
    """Store the weights of every ``Conv1D`` with the inputs innermost, which products of few rows read best; shapes stay."""
    for layer in stack.modules():
        if isinstance(layer, Conv1D):
            layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t(), requires_grad=False)


# What the fast solver multiplies in its own format, too: products of the blocks and of the head, not of what enters or leaves the state.
_SOLVER_PRODUCTS = {"attention", "feed_forward", "skip_in_linear", "skip_linear", "conv1", "res_projection", "in_layers", "res_skip_layers"}
# Of these, results that go on as they are, into attention or a gate; all others lead back into a float32 stream.
_STAYS_16_BIT = {"wqkv", "w1", "w3"}


def solver_products(flow: nn.Module) -> dict[nn.Linear | nn.Conv1d, bool]:
    """The layers of a ``FlowMatching`` that are multiplied in 16 bits, and whether the result of each is float32 again."""
    named = [(layer, set(name.split("."))) for name, layer in flow.named_modules() if isinstance(layer, (nn.Linear, nn.Conv1d))]
    return {layer: not parts & _STAYS_16_BIT for layer, parts in named if parts & _SOLVER_PRODUCTS}


def solver_products_in(flow: M, dtype: torch.dtype, device: torch.device) -> M:
    """A copy of a ``FlowMatching`` whose large products are in ``dtype``; everything else is float32, and shared with ``flow``.

    ``flow`` is on ``device``, but for the weights of :func:`solver_products`, which may be elsewhere.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*flow.parameters(), *flow.buffers()]}
    for layer, widens in solver_products(flow).items():
        memo[id(layer)] = _Products(layer, dtype, device, widens=widens)
    return copy.deepcopy(flow, memo)


class _Products(nn.Module):
    """A linear layer, or a convolution without padding, in ``dtype``; ``widens``: its result is float32 again."""

    def __init__(self, layer: nn.Linear | nn.Conv1d, dtype: torch.dtype, device: torch.device, *, widens: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().to(device, dtype), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(device, dtype), requires_grad=False)
        self.product = F.conv1d if isinstance(layer, nn.Conv1d) else F.linear
        self.widens = widens

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        y = self.product(x.to(self.weight.dtype), self.weight, self.bias)
        return y.float() if self.widens else y


@contextlib.contextmanager
def matmul_mode(precision: str, device: torch.device) -> Iterator[None]:
    """Set what float32 products may use on a CUDA device while the body runs; other devices have no such switch."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
