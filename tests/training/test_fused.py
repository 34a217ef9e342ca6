"""Flow matching's estimator compiles as one graph for all sizes, with the same loss and gradients. (The kernels themselves need a GPU.)"""

from __future__ import annotations

import pytest
import torch

from indextts.models.s2mel import S2Mel
from indextts.training.acoustic import flow_loss
from indextts.training.sizes import miniature
from indextts.training.speed import fused


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile looks at its inputs
def test_the_compiled_estimator_trains_as_the_plain_one() -> None:
    torch.manual_seed(0)
    config = miniature().config
    s2mel = S2Mel(config.s2mel, config.gpt_latent_dim)
    compiled = torch.compile(s2mel.cfm.estimator, dynamic=True, fullgraph=True, backend="aot_eager")
    weight = s2mel.cfm.estimator.cond_x_merge_linear.weight
    compilations = []
    for rows, frames, prompt in ((3, 40, 20), (2, 51, 33)):
        inputs = (
            torch.randn(rows, config.s2mel.length_regulator.in_channels, frames // 2).transpose(1, 2),
            torch.randn(rows, config.s2mel.length_regulator.in_channels, prompt // 2).transpose(1, 2),
            torch.randn(rows, 80, frames),
            torch.randn(rows, 80, prompt),
            torch.randn(rows, config.s2mel.style_encoder.dim),
        )
        losses, gradients = [], []
        for estimator in (None, compiled):
            torch.manual_seed(1)  # the same times, noise and dropped conditions
            loss = flow_loss(s2mel, *inputs, estimator=estimator)
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss, weight)[0])
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)
        compilations.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compilations[1] == compilations[0], "another size must not compile again"


def test_other_devices_run_the_module_itself() -> None:
    module = torch.nn.Linear(2, 2)
    assert fused(module, torch.device("cpu"), wanted=True) is module
    assert fused(module, torch.device("cuda"), wanted=False) is module
