"""The steps between the matrix products of the mel solver, in torch: what fused kernels must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.solver_attention import attend, rotate


class SolverOps:
    """Norms, rotary positions and gates; streams are float32, what goes into products or comes out of them is in ``dtype``."""

    def __init__(self, dtype: torch.dtype, norm_eps: float) -> None:
        self.dtype, self.norm_eps = dtype, norm_eps

    def enter(self, static: Tensor, x: Tensor, gain: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """``static`` (R, S, C) with ``x`` (B, W, C) added to every branch's last slots, and its :meth:`norm`; all in float32."""
        h = static.clone()
        add_to_branches(h[:, -x.shape[1] :], x)
        return h, self.norm(h, gain, offset)

    def norm(self, h: Tensor, gain: Tensor, offset: Tensor | None) -> Tensor:
        """Adaptive root-mean-square norm of ``h`` (R, S, C); the offset is left out where the next product adds it."""
        n = rms_norm(h.float(), gain, self.norm_eps)
        return (n if offset is None else n + offset).to(self.dtype)

    def add_norm(self, h: Tensor, y: Tensor, gain: Tensor, offset: Tensor | None, copy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``h + y`` in float32 and its :meth:`norm`; ``h`` may be the last slots of a longer tensor, and ``copy`` gets the sum too."""
        h = h.float() + y
        if copy is not None:
            copy.copy_(h)
        return h, self.norm(h, gain, offset)

    def add_into(self, h: Tensor, y: Tensor, out: Tensor) -> None:
        """``h + y`` into ``out``, which may be a part of something wider."""
        out.copy_(h.float() + y)

    def attention(self, qkv: Tensor, rotation: Tensor, queries: int, mask: Tensor | None, spans: Tensor | None) -> Tensor:
        """Answers (R, queries, heads, head_dim) to the last slots of products (R, S, 3, heads, head_dim), turned by their positions."""
        q, k, v = self.rotated(qkv, rotation)
        return self.attend(q[:, -queries:], k, v, mask, spans)

    def rotated(self, qkv: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys turned by their positions, and values, each (R, S, heads, head_dim), of products (R, S, 3, heads, head_dim)."""
        q, k = rotate(qkv[:, :, :2], rotation).unbind(2)
        return q, k, qkv[:, :, 2]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spans: Tensor | None) -> Tensor:
        """See :func:`indextts.engine.solver_attention.attend`."""
        return attend(q, k, v, mask, spans)

    def silu_gate(self, x: Tensor) -> Tensor:
        """``silu(a) b`` of ``[a, b]`` side by side, (R, S, 2 H) to (R, S, H)."""
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    def wave_gate(self, a: Tensor, out: Tensor | None = None) -> Tensor:
        """``tanh(a) sigmoid(b)`` of ``[a, b]`` side by side, (R, W, 2 C) to (R, W, C): into ``out``, perhaps a part of something wider."""
        signal, gate = a.chunk(2, dim=-1)
        return torch.mul(torch.tanh(signal), torch.sigmoid(gate), out=out)

    def take(self, z: Tensor, y: Tensor | None, taps: Tensor) -> tuple[Tensor, Tensor]:
        """``z + y`` (R, W, C) in float32, and in ``dtype`` those of its frames, counted through all rows, that ``taps`` (n,) name: (n, C).

        ``y`` may have the rows of one branch, and be added to every branch.
        """
        total = z.float() if y is None else (z.float().unflatten(0, (-1, len(y))) + y).flatten(0, 1)
        return total, total.to(self.dtype).flatten(0, 1).index_select(0, taps)

    def last_norm(self, h: Tensor, shortcut: Tensor, x: Tensor | None, guidance: Tensor | None, eps: float) -> Tensor:
        """Norm of ``h`` and the shortcut around it, each (R, W, C), in float32; with ``guidance`` its branches combined, (B, W, C).

        ``x`` (B, W, C) is the shortcut's part that all branches share.
        """
        shortcut = shortcut.float()
        if x is not None:
            shortcut = (shortcut.unflatten(0, (-1, len(x))) + x).flatten(0, 1)
        n = F.layer_norm(h.float() + shortcut, h.shape[-1:], eps=eps)
        return n if guidance is None else combine(n, guidance)

    def advance(self, x: Tensor, v: Tensor, dt: Tensor, held: Tensor, guidance: Tensor | None) -> None:
        """Move the state ``x`` (B, W, mel) by ``dt`` along ``v``, with ``guidance`` that of two branches; zero where ``held``."""
        x.add_((v if guidance is None else combine(v, guidance)) * dt).masked_fill_(held, 0)


def rms_norm(h: Tensor, gain: Tensor, eps: float) -> Tensor:
    """``F.rms_norm`` over the channels, which on a CPU reads and writes ``h`` twice as often as this."""
    if h.device.type != "cpu":
        return F.rms_norm(h, h.shape[-1:], gain, eps)
    mean = torch.linalg.vector_norm(h, dim=-1, keepdim=True).square_().div_(h.shape[-1])
    return (h * mean.add_(eps).rsqrt_()).mul_(gain)


def combine(branches: Tensor, guidance: Tensor) -> Tensor:
    """Classifier-free guidance, ``(1 + g) v - g null``, of rows (2 B, ...) to (B, ...)."""
    v, null = branches.chunk(2)
    return torch.lerp(null, v, 1 + guidance)


def add_to_branches(h: Tensor, x: Tensor) -> None:
    """Add ``x`` (B, W, C) to every branch of ``h`` (branches B, W, C), in place."""
    h.unflatten(0, (-1, x.shape[0])).add_(x)
