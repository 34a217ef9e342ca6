"""Runners for the goldens of the vocoder: generator, anti-aliased activation, AMP block."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from indextts.config import build_section
from indextts.config_vocoder import BigVGANConfig
from indextts.models.bigvgan import Activation, AMPBlock, BigVGAN, upsample
from indextts.models.weights import build, load_weights
from tests.parity_kinds.common import Check, Golden, runner
from tests.parity_kinds.stages import compare_all, recorded, suffixes


def seeded_bigvgan(golden: Golden) -> BigVGAN:
    """The golden's vocoder."""
    name = "bigvgan" if "bigvgan" in golden.spec.get("manifests", {}) else None
    config = build_section(BigVGANConfig, golden.model_config("bigvgan"), "bigvgan")
    model = build(lambda: BigVGAN(config))
    load_weights(model, golden.state(name), unused=BigVGAN.UNUSED, source=golden.path.stem)
    return model


@runner("bigvgan")
def run_bigvgan(golden: Golden) -> Iterator[Check]:
    model = seeded_bigvgan(golden)
    results: dict[str, Tensor] = {}
    ups = list(model.ups)
    for suffix in suffixes(golden, "mel"):
        outputs = {"conv_pre": model.conv_pre, "activation_post": model.activation_post, "pre_clamp": model.conv_post}
        outputs |= {f"up_{i}": up for i, up in enumerate(ups)}
        # The result of a stage is what the next one is given.
        inputs = {f"stage_{i}": following for i, following in enumerate([*ups[1:], model.activation_post])}
        with recorded(
            {name + suffix: module for name, module in outputs.items()}, {name + suffix: module for name, module in inputs.items()}
        ) as stages:
            results[f"wav{suffix}"] = model(golden[f"in.mel{suffix}"])
        results |= stages
    yield from compare_all(golden, results)


@runner("bv_act")
def run_activation(golden: Golden) -> Iterator[Check]:
    named = re.search(r"resblocks\.\d+\.activations\.\d+|activation_post", golden.spec["module"])
    activation = seeded_bigvgan(golden).get_submodule(named[0] if named else "resblocks.0.activations.0")
    assert isinstance(activation, Activation)
    taps = activation.taps.view(1, 1, -1)
    results: dict[str, Tensor] = {"taps_up": taps, "taps_down": taps}
    for suffix in suffixes(golden, "x"):
        x = golden[f"in.x{suffix}"]
        with recorded({f"snake{suffix}": activation.act}) as stages:
            results[f"y{suffix}"] = activation(x)
        results |= stages
        results[f"up{suffix}"] = upsample(x, activation.taps)
    yield from compare_all(golden, results)


@runner("bv_amp")
def run_amp_block(golden: Golden) -> Iterator[Check]:
    block = seeded_bigvgan(golden).resblocks[int(golden.run.get("resblock", 0))]
    assert isinstance(block, AMPBlock)
    results: dict[str, Tensor] = {}
    for suffix in suffixes(golden, "x"):
        named = {f"conv1_{m}{suffix}": conv for m, conv in enumerate(block.convs1)}
        named |= {f"conv2_{m}{suffix}": conv for m, conv in enumerate(block.convs2)}
        named |= {f"act_{a}{suffix}": activation for a, activation in enumerate(block.activations)}
        with recorded(named) as stages:
            results[f"y{suffix}"] = block(golden[f"in.x{suffix}"])
        results |= stages
    yield from compare_all(golden, results)
