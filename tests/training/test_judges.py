"""Faster steps of the vocoder's training say the same as the plain ones."""

from __future__ import annotations

import pytest
import torch

from indextts.training import discriminators
from indextts.training.discriminators import Discriminators, feature_loss, fooling_loss, judge_loss, judged
from indextts.training.vocoder import one_cut


@pytest.fixture
def waves() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 0.1 * torch.randn(2, 4096), 0.1 * torch.randn(2, 4096)


def test_one_pass_judges_as_two(waves: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = waves
    judges = Discriminators(4)
    truth, made = judged(judges, real, fake)
    monkeypatch.setattr(discriminators, "_CHANNELS_LAST", False)
    plain_truth, plain_made = judges(real), judges(fake)
    for loss in (judge_loss, feature_loss):
        torch.testing.assert_close(loss(truth, made), loss(plain_truth, plain_made), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fooling_loss(made), fooling_loss(plain_made), rtol=1e-5, atol=1e-6)
    assert judge_loss(truth, made) != judge_loss(made, truth)


def test_a_cut_is_the_same_piece_of_all_waves(waves: tuple[torch.Tensor, torch.Tensor]) -> None:
    real = torch.arange(4096.0).expand(2, -1)
    first, second = one_cut(1000, real, real + 1)
    assert first.shape == (2, 1000)
    assert torch.equal(second, first + 1)
    assert torch.equal(first[:, 1:] - first[:, :-1], torch.ones(2, 999))
    starts = {float(one_cut(4000, real)[0][0, 0]) for _ in range(200)}
    assert starts <= {float(i) for i in range(97)}
    assert len(starts) > 40
    assert one_cut(5000, *waves) == waves
