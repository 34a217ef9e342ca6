"""The activation's training kernels against autograd, in Triton's interpreter; a process of its own, for Triton decides on import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

_CHECK = """
import torch
from indextts.models.bigvgan import Activation
from indextts.training.snake import activate

torch.manual_seed(0)
for frames in (3, 20):
    module = Activation(2)
    with torch.no_grad():
        module.act.alpha.normal_(std=0.5)
        module.act.beta.normal_(std=0.5)
    x, weights = torch.randn(2, 2, frames, requires_grad=True), torch.randn(2, 2, frames)
    results = []
    for run in (module, lambda y: activate(y, module)):
        x.grad = module.act.alpha.grad = module.act.beta.grad = None
        out = run(x)
        (out * weights).sum().backward()
        results.append([out.detach(), x.grad, module.act.alpha.grad, module.act.beta.grad])
    for plain, fused in zip(*results):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_equal_autograd_on_the_plain_activation() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
