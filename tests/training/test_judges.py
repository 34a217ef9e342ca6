"""Faster steps of the vocoder's training say the same as the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from indextts.models.bigvgan import BigVGAN
from indextts.training import discriminators
from indextts.training.discriminators import Discriminators, feature_loss, fooling_loss, judge_loss, judged
from indextts.training.features import mel_of
from indextts.training.replay import Replay
from indextts.training.sizes import SIZES
from indextts.training.speed import branch_blocks, fuse_activations, side_by_side
from indextts.training.vocoder import one_cut


@pytest.fixture
def waves() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 0.1 * torch.randn(2, 4096), 0.1 * torch.randn(2, 4096)


@pytest.mark.parametrize("branches", [False, True])
def test_one_pass_judges_as_two(waves: tuple[torch.Tensor, torch.Tensor], branches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = waves
    judges = Discriminators(4, branches)
    truth, made = judged(judges, real, fake)
    monkeypatch.setattr(discriminators, "_CHANNELS_LAST", False)
    judges._branches = False
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


def test_blocks_side_by_side_sum_to_the_same(waves: tuple[torch.Tensor, torch.Tensor]) -> None:
    vocoder = BigVGAN(SIZES["small"]().bigvgan)
    mel = torch.randn(1, 80, 6)
    with torch.no_grad():
        plain = vocoder.unclamped(mel)
        branch_blocks(vocoder)
        assert torch.equal(vocoder.unclamped(mel), plain)
    with pytest.raises(ValueError, match="not padded"):
        vocoder.unclamped(mel, torch.tensor([6]))


@pytest.mark.gpu
def test_recorded_branches_never_leave_the_plain_path() -> None:
    """A race would show in one of many repetitions."""
    torch.manual_seed(0)
    plain = BigVGAN(SIZES["small"]().bigvgan).cuda().requires_grad_(True)
    wave = 0.1 * torch.randn(8, 16384, device="cuda")

    def step_of(vocoder: BigVGAN, judges: Discriminators) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
        parameters = [*vocoder.parameters(), *judges.parameters()]

        def step(wave: torch.Tensor) -> dict[str, torch.Tensor]:
            for p in parameters:
                p.grad = None
            with torch.autocast("cuda", torch.float16):
                made = vocoder.unclamped(mel_of(wave)).squeeze(1).float()
                truth, fake = judged(judges, wave, made)
            (judge_loss(truth, fake) + made.abs().mean()).backward()
            return {"gradients": torch.stack([p.grad.norm() for p in parameters])}

        return step

    judges = Discriminators(8).cuda()
    branched, side = copy.deepcopy(plain), copy.deepcopy(judges)
    for vocoder in (plain, branched):
        fuse_activations(vocoder, wave.device)
    expected = step_of(plain, judges)(wave)["gradients"]
    branch_blocks(branched)
    side._branches = True
    replay = Replay(step_of(branched, side), wave.device)
    worst = torch.stack([((replay(wave)["gradients"] - expected) / expected.clamp(min=1e-3)).abs().max() for _ in range(300)])
    assert replay.enabled
    assert float(worst.max()) < 0.05, worst


@pytest.mark.gpu
def test_branches_have_the_gradients_of_the_plain_path() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8192, device="cuda")
    judges = Discriminators(8).cuda()
    results = []
    for branches in (False, True):
        judges._branches = branches
        judges.zero_grad()
        fooling_loss(judges(x)).backward()
        results.append([p.grad.clone() for p in judges.parameters() if p.grad is not None])
    for plain, branched in zip(*results, strict=True):
        torch.testing.assert_close(branched, plain, rtol=1e-3, atol=1e-5)
    assert len(side_by_side([torch.sin, torch.cos], x)) == 2
