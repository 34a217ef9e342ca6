"""Keeps attention from becoming too sharp, which ends in gradients beyond all bounds.

Nothing in the estimator's attention limits queries and keys, and its norms' gains come from the time embedding without a bound. In a run
that ran away, the logits of one layer grew from 18 over 4,100 to 37 millions. With gradients of 1e13 and more in that layer, clipping left
nothing of all others, and the loss rose whatever the learning rate (``notebooks/data/attention_growth.json``). Norms of queries and keys
(ViT-22B, arXiv 2302.05442) would prevent it, but the released architecture has none, so the size itself is what training pays for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LIMIT = 40.0  # few healthy layers reach it
_WEIGHT = 0.02


class Sharpness:
    """Watches ``projections``: layers that give queries, keys and values side by side, each with its number of heads."""

    def __init__(self, projections: Sequence[tuple[nn.Linear, int]]) -> None:
        self._seen: list[Tensor] = []
        self._heads = [heads for _, heads in projections]
        self._handles = [layer.register_forward_hook(self._keep) for layer, _ in projections]

    def _keep(self, module: object, inputs: object, output: Tensor) -> None:
        self._seen.append(output)

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def penalty(self) -> tuple[Tensor, Tensor]:
        """What to add to the loss of the pass just made, and the sharpest head's size of logits.

        That size is the product of the usual lengths of queries and keys over the square root of their width: what a logit is when they
        point the same way. The penalty is the square of its logarithm above :data:`LIMIT`, so that its own gradient stays small.
        """
        sizes = torch.stack([logit_sizes(qkv, heads) for qkv, heads in zip(self._seen, self._heads, strict=True)])
        self._seen.clear()
        return _WEIGHT * (sizes / LIMIT).log().relu().square().sum(), sizes.detach().amax()


def logit_sizes(qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values (B, T, 3 heads width) to how large each head's logits can get (heads,)."""
    q, k, _ = qkv.float().unflatten(-1, (3, heads, -1)).unbind(-3)
    q, k = (x.square().sum(-1).mean((0, 1)) for x in (q, k))
    return (q * k / (qkv.shape[-1] // (3 * heads))).add(1e-12).sqrt()
