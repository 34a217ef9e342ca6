"""Steps made for recording equal plain ones: the same losses, the same updates, and few shapes. (Recording itself needs a GPU.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from indextts.models.s2mel import S2Mel
from indextts.training.acoustic import _stretched
from indextts.training.batches import _alike, recorded_room
from indextts.training.loop import LossScale, StageSettings, Trainer
from indextts.training.replay import Replay, _Recorded
from indextts.training.sizes import miniature

CPU = torch.device("cpu")


def trainer(folder: Path, module: nn.Module) -> Trainer:
    settings = StageSettings(folder, folder, CPU, 60, 60, steps=8, size="miniature", warmup_steps=2)
    return Trainer("part", {"module": module}, settings, peak=0.05, weight_decay=0.01)


def test_a_step_as_one_call_updates_as_its_pieces_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 1), nn.Linear(3, 1)
    second.load_state_dict(first.state_dict())
    one, other = trainer(tmp_path / "a", first), trainer(tmp_path / "b", second)
    step = one.replayed(lambda x, y: ((first(x) - y).square().mean(), {"size": x.abs().mean()}))
    for _ in range(8):
        x, y = torch.randn(16, 3), torch.randn(16, 1)
        step(x, y)
        other.step((second(x) - y).square().mean(), size=x.abs().mean())
    assert one.steps == other.steps == 8
    for ours, theirs in ((one.modules, other.modules), (one.averaged, other.averaged)):
        torch.testing.assert_close(ours["module"].weight, theirs["module"].weight, rtol=0, atol=0)
    assert (tmp_path / "a/part.csv").read_text().splitlines()[0].endswith("size,gradient")


def test_averages_follow_the_weights_as_a_running_mean(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    trained = trainer(tmp_path, module)
    expected = module.weight.detach().clone()
    for step in range(4):
        trained.step(module(torch.ones(1, 2)).square().mean())
        expected = expected.lerp(module.weight.detach(), 1 - (1 + step) / (10 + step))
    torch.testing.assert_close(trained.averaged["module"].weight, expected)


def test_scaled_losses_give_the_true_gradients_and_skip_what_overflowed() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimiser = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scale = LossScale(CPU, enabled=True, start=1024.0, patience=2)
    scale.scaled((3 * weight).sum()).backward()
    scale.unscale([weight], optimiser)
    torch.testing.assert_close(weight.grad, torch.full((4,), 3.0))
    optimiser.step()
    moved = weight.detach().clone()
    assert (moved < 1).all()
    weight.grad = torch.tensor([1.0, torch.inf, 1.0, torch.nan])
    scale.unscale([weight], optimiser)
    optimiser.step()
    assert torch.equal(weight.detach(), moved)
    assert float(scale.value) == 512
    for _ in range(2):
        weight.grad = torch.ones(4)
        scale.unscale([weight], optimiser)
    assert float(scale.value) == 1024


def test_without_cuda_a_replay_is_the_function_itself() -> None:
    seen = []
    replay = Replay(lambda x: (seen.append(x), {"loss": x})[1], CPU)
    x = torch.ones(2)
    assert replay(x)["loss"] is x
    assert not replay.enabled
    assert len(seen) == 1


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "frames"), [(7, 12), (60, 103), (41, 70)])
def test_stretching_equals_the_length_regulator(tokens: int, frames: int) -> None:
    torch.manual_seed(0)
    config = miniature().config
    s2mel = S2Mel(config.s2mel, config.gpt_latent_dim).eval()
    content = torch.randn(2, tokens, config.s2mel.length_regulator.in_channels)
    expected = s2mel.length_regulator(content, torch.tensor([frames, frames]))
    torch.testing.assert_close(_stretched(s2mel, content, frames), expected)


def test_batches_of_few_shapes_hold_what_fits_them() -> None:
    rng = np.random.default_rng(0)
    texts = rng.integers(5, 110, 600)
    tokens = (texts * rng.uniform(2, 6, 600)).astype(int)
    batches = _alike(np.arange(600), texts.tolist(), tokens, 6000, (100, 700), rng)
    assert len({(len(ids), text, codes) for ids, text, codes in batches}) <= 12
    for ids, text, codes in batches:
        assert texts[ids].max() <= text or text == 100
        assert tokens[ids].max() <= codes <= 700
        assert (texts + tokens)[ids].max() <= recorded_room(codes)
        assert len(ids) * (recorded_room(codes) + 16) <= 6000 or len(ids) == 1
    drawn = np.unique(np.concatenate([ids for ids, _, _ in batches]))
    assert len(drawn) > 480


def test_a_batch_has_slow_and_fast_speech() -> None:
    rng = np.random.default_rng(0)
    texts, tempo = rng.integers(10, 110, 4000), rng.normal(np.log(3.4), 0.18, 4000)
    tokens = (texts * np.exp(tempo)).astype(int)
    batches = _alike(np.arange(4000), texts.tolist(), tokens, 28_000, (160, 720), rng)
    apart = np.concatenate([tempo[ids] - tempo[ids].mean() for ids, *_ in batches])
    assert apart.std() > 0.9 * tempo.std()


def test_what_a_caller_takes_out_of_the_values_is_there_again_after_the_next_replay() -> None:
    class Graph:
        def replay(self) -> None:
            total.add_(held.sum())

    replay = Replay(lambda x: {"loss": x}, CPU)
    held, total = torch.zeros(2), torch.zeros(())
    replay.enabled = True
    replay._recorded[(((2,), torch.float32),)] = _Recorded(Graph(), (held,), {"loss": total, "doubt": total})  # type: ignore[arg-type]
    for count in (1, 2):
        values = replay(torch.ones(2))
        assert float(values.pop("doubt")) == 2 * count
