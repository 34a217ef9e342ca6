"""A training whose loss runs away goes back to weights of before, with a lower rate; ordinary noise does not disturb it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from indextts.training.loop import StageSettings, Trainer

CPU = torch.device("cpu")
_WINDOW = 5  # steps between two looks at the loss, on a CPU


def trainer(folder: Path, name: str = "part", **options: Any) -> Trainer:
    torch.manual_seed(0)
    settings = StageSettings(folder, folder, CPU, 60, 60, steps=1000, size="miniature", warmup_steps=10)
    return Trainer(name, {"module": nn.Linear(2, 1)}, settings, peak=0.01, weight_decay=0.0, **options)


def run(trained: Trainer, *losses: float) -> None:
    """Steps with these losses, whatever the weights; one window each. A gradient drives the weights up all the same."""
    weight = trained.modules["module"].weight
    for loss in losses:
        for _ in range(_WINDOW):
            trained.step(loss + 10 * (weight - weight.detach()).sum())


def test_weights_return_to_before_the_rise_and_the_rate_is_lowered(tmp_path: Path) -> None:
    trained = trainer(tmp_path)
    run(trained, *[1.0] * 30)  # snapshots after 50, 100 and 150 steps
    kept = trained._good[0]["module.weight"].clone()
    peak = trained.peak
    run(trained, 1.2, 1.6)  # one window is not enough
    assert trained.peak == peak
    run(trained, 1.9)
    assert trained.peak == pytest.approx(0.6 * peak)
    torch.testing.assert_close(trained.modules["module"].weight.detach(), kept, rtol=0, atol=0)
    torch.testing.assert_close(trained.averaged["module"].weight, kept, rtol=0, atol=0)
    trained.before_update()
    assert float(trained._rate) < 0.2 * trained.peak  # it rises again from below


def test_noise_a_falling_loss_and_one_bad_window_change_nothing(tmp_path: Path) -> None:
    trained = trainer(tmp_path)
    run(trained, 9.0, 5.0, 3.0, 2.0, *[1.0, 1.3, 0.8, 1.2] * 5, 4.0, *[1.0] * 5)
    assert trained.peak == 0.01


def test_losses_that_may_rise_are_left_alone_unless_they_are_no_numbers(tmp_path: Path) -> None:
    trained = trainer(tmp_path, watched=None)
    run(trained, *[1.0] * 10, *[4.0] * 10)
    assert trained.peak == 0.01
    run(trained, math.nan)
    assert trained.peak == pytest.approx(0.006)
    assert torch.isfinite(trained.modules["module"].weight).all()


def test_gradients_beyond_all_bounds_count_as_running_away(tmp_path: Path) -> None:
    trained = trainer(tmp_path)
    run(trained, *[1.0] * 30)
    kept = trained._good[0]["module.weight"].clone()
    weight = trained.modules["module"].weight
    for _ in range(_WINDOW):
        trained.step(1.0 + 1e25 * (weight - weight.detach()).sum())  # the loss itself looks well
    assert trained.peak == pytest.approx(0.006)
    torch.testing.assert_close(weight.detach(), kept, rtol=0, atol=0)


def test_a_rise_that_may_pass_is_given_time_and_another_value_can_be_watched(tmp_path: Path) -> None:
    trained = trainer(tmp_path, watched="mel", patience=3, setback=0.8)
    weight = trained.modules["module"].weight

    def windows(count: int, loss: float, mel: float) -> None:
        for _ in range(_WINDOW * count):
            trained.step(loss + 0 * weight.sum(), mel=torch.tensor(mel))

    windows(30, 1.0, 0.4)
    windows(5, 9.0, 0.4)  # the loss rises, for judges have come in
    windows(3, 9.0, 2.0)
    windows(1, 9.0, 0.4)
    windows(3, 9.0, 2.0)
    assert trained.peak == 0.01
    windows(1, 9.0, 2.0)
    assert trained.peak == pytest.approx(0.008)


def test_who_follows_goes_back_too_to_weights_of_the_same_time(tmp_path: Path) -> None:
    leader, follower = trainer(tmp_path), trainer(tmp_path, "other", watched=None)
    follower.follow(leader)
    for _ in range(30):
        run(leader, 1.0)
        run(follower, 1.0)
    kept = follower._good[0]["module.weight"].clone()
    run(follower, *[5.0] * 20)  # nobody watches its loss, and it keeps no weights by itself
    torch.testing.assert_close(follower._good[0]["module.weight"], kept, rtol=0, atol=0)
    run(leader, 2.0, 2.0)
    assert leader.peak == follower.peak == pytest.approx(0.006)
    torch.testing.assert_close(follower.modules["module"].weight.detach(), kept, rtol=0, atol=0)


def _moved(folder: Path, surge: float, outlier: float, repeats: int = 12) -> float:
    """How far weights go, in learning rates, when one gradient of many usual ones is ``outlier`` times as long; signs alternate else."""
    trained = trainer(folder, surge=surge, betas=(0.8, 0.99), clip=math.inf)
    weight = trained.modules["module"].weight
    for i in range(200):
        trained.step((-1.0) ** i * weight.sum())
    before = weight.detach().clone()
    trained.step(outlier * weight.sum())
    for i in range(repeats):
        trained.step((-1.0) ** i * weight.sum())
    return float((before - weight.detach()).abs().max()) / float(trained._rate)


def test_one_long_gradient_does_not_carry_weights_away(tmp_path: Path) -> None:
    assert _moved(tmp_path, math.inf, 30.0) > 6.0  # the plain optimiser
    assert _moved(tmp_path, 2.0, 30.0) < 3.0


def test_gradients_of_usual_length_are_not_touched(tmp_path: Path) -> None:
    assert _moved(tmp_path, 2.0, 1.5) == _moved(tmp_path, math.inf, 1.5)


def test_gradients_that_stay_long_become_usual(tmp_path: Path) -> None:
    trained = trainer(tmp_path, surge=2.0, betas=(0.8, 0.99), clip=math.inf)
    weight = trained.modules["module"].weight
    for scale, steps in ((1.0, 100), (50.0, 250)):
        for _ in range(steps):
            trained.before_update()
            trained.update(scale * weight.sum())
    assert float(weight.grad.abs().max()) == 50.0


def test_curves_of_an_older_recipe_are_kept_beside_the_new_ones(tmp_path: Path) -> None:
    (tmp_path / "part.csv").write_text("steps,loss\n5,2.0\n")
    run(trainer(tmp_path), 1.0, 1.0)
    old = list(tmp_path.glob("part.*.csv"))
    assert [path.read_text() for path in old] == ["steps,loss\n5,2.0\n"]
    new = (tmp_path / "part.csv").read_text().splitlines()
    assert len(new) == 3
    assert new[0].split(",") == ["steps", "seconds", "rate", "ms_per_step", "loss", "gradient"]


def test_layers_over_many_inputs_learn_more_slowly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules = {"wide": nn.Linear(4096, 2, bias=False), "narrow": nn.Linear(64, 2, bias=False)}
    settings = StageSettings(tmp_path, tmp_path, CPU, 60, 60, steps=1000, size="miniature", warmup_steps=1)
    trained = Trainer("part", modules, settings, peak=0.01, weight_decay=0.0)
    before = {name: module.weight.detach().clone() for name, module in modules.items()}
    trained.step(sum(module.weight.sum() for module in modules.values()))
    moved = {name: float((module.weight.detach() - before[name]).abs().mean()) for name, module in modules.items()}
    assert moved["narrow"] == pytest.approx(0.01, rel=1e-3)
    assert moved["wide"] == pytest.approx(0.01 / 8, rel=1e-3)
