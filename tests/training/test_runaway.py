"""A training whose loss runs away goes back to weights of before, with a lower rate; ordinary noise does not disturb it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from indextts.training.loop import StageSettings, Trainer

CPU = torch.device("cpu")
_WINDOW = 5  # steps between two looks at the loss, on a CPU


def trainer(folder: Path, steady: bool = True) -> Trainer:
    torch.manual_seed(0)
    settings = StageSettings(folder, folder, CPU, 60, 60, steps=1000, size="miniature", warmup_steps=10)
    return Trainer("part", {"module": nn.Linear(2, 1)}, settings, peak=0.01, weight_decay=0.0, steady=steady)


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
    trained = trainer(tmp_path, steady=False)
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
