"""Attention that becomes too sharp is paid for, before its gradients have no bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from indextts.models.dit import Attention, rotation_table
from indextts.training.sharpness import LIMIT, Sharpness, logit_sizes

HEADS, WIDTH = 2, 16


def test_the_size_is_that_of_logits_that_agree() -> None:
    q = torch.zeros(1, 5, HEADS, WIDTH)
    k = torch.zeros(1, 5, HEADS, WIDTH)
    q[:, :, 0, 0], k[:, :, 0, 0], q[:, :, 1, 3], k[:, :, 1, 3] = 6.0, 8.0, 1.0, 2.0
    qkv = torch.cat([q.flatten(2), k.flatten(2), torch.randn(1, 5, HEADS * WIDTH)], dim=-1)
    assert logit_sizes(qkv, HEADS).tolist() == pytest.approx([6 * 8 / 4, 1 * 2 / 4], rel=1e-5)


@pytest.mark.parametrize("size", [2.0, 30.0])
def test_training_brings_sharp_attention_back(size: float) -> None:
    torch.manual_seed(0)
    attention = Attention(HEADS * WIDTH, HEADS)
    with torch.no_grad():
        attention.wqkv.weight.mul_(size)
    watched = Sharpness([(attention.wqkv, HEADS)])
    x = torch.randn(3, 20, HEADS * WIDTH)
    optimiser = torch.optim.Adam(attention.parameters(), 0.03)
    before = attention.wqkv.weight.detach().clone()
    for step in range(150):
        attention(x, rotation_table(20, WIDTH, x.device), None)
        penalty, logits = watched.penalty()
        if step == 0:
            started = logits
        optimiser.zero_grad()
        penalty.backward()
        assert all(p.grad is None or p.grad.abs().max() < 1 for p in attention.parameters()), "the cure must not explode itself"
        optimiser.step()
    if size < 10:
        assert started < LIMIT
        assert torch.equal(before, attention.wqkv.weight), "healthy attention is left alone"
    else:
        assert started > 3 * LIMIT
        assert logits < 1.2 * LIMIT


def test_a_watch_ends() -> None:
    layer = nn.Linear(4, 3 * HEADS * WIDTH)
    watched = Sharpness([(layer, HEADS)])
    watched.close()
    layer(torch.randn(1, 2, 4))
    assert not watched._seen
