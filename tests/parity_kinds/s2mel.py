"""Runners for the goldens of S2Mel: estimator, solver, latent projection, length regulator, and codes to waveform."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from indextts.config import S2MelConfig, SemanticCodecConfig, build_section
from indextts.models.dit import DiT
from indextts.models.length_regulator import target_frames
from indextts.models.s2mel import S2Mel
from indextts.models.weights import build, load_weights
from tests.parity_kinds.bigvgan import seeded_bigvgan
from tests.parity_kinds.common import Check, Golden, compare, runner
from tests.parity_kinds.stages import compare_all, recorded, suffixes


def seeded_s2mel(golden: Golden) -> S2Mel:
    """The golden's S2Mel; the widths of the latent projection are read off its manifest."""
    name = "s2mel" if "s2mel" in golden.spec.get("manifests", {}) else None
    manifest = golden.manifest(name)
    projections = sorted(
        (key for key in manifest if key.startswith("gpt_layer.") and key.endswith(".weight")), key=lambda key: int(key.split(".")[1])
    )
    widths = [manifest[key]["shape"] for key in projections]
    config = build_section(S2MelConfig, golden.model_config("s2mel"), "s2mel")
    config = dataclasses.replace(config, gpt_layer_dims=tuple(rows for rows, _ in widths[:-1]))
    model = build(lambda: S2Mel(config, widths[0][1]))
    load_weights(model, golden.state(name), unused=S2Mel.UNUSED, source=golden.path.stem)
    return model


@runner("gpt_layer")
def run_gpt_layer(golden: Golden) -> Iterator[Check]:
    layers = seeded_s2mel(golden).gpt_layer
    results: dict[str, Tensor] = {}
    for suffix in suffixes(golden, "latent"):
        with recorded({f"hidden_{i}{suffix}": layer for i, layer in enumerate(layers)}) as stages:
            results[f"y{suffix}"] = layers(golden[f"in.latent{suffix}"])
        results |= stages
    yield from compare_all(golden, results)


@runner("lr")
def run_length_regulator(golden: Golden) -> Iterator[Check]:
    regulator = seeded_s2mel(golden).length_regulator
    results: dict[str, Tensor] = {}
    for suffix in suffixes(golden, "x"):
        named: dict[str, nn.Module] = {f"proj{suffix}": regulator.content_in_proj}
        for i, layer in enumerate(regulator.model):
            named[f"{('conv', 'norm', 'act')[i % 3]}{i // 3}{suffix}"] = layer
        with recorded(named) as stages:
            results[f"y{suffix}"] = regulator(golden[f"in.x{suffix}"], golden[f"in.ylens{suffix}"])
        results |= stages
    if "out.target_lengths" in golden:
        results["target_lengths"] = torch.tensor([target_frames(n) for n in range(1, golden["out.target_lengths"].numel() + 1)])
    yield from compare_all(golden, results)


def estimator_stages(estimator: DiT, suffix: str) -> dict[str, nn.Module]:
    """Which module's output every stage of a ``dit`` golden is."""
    named: dict[str, nn.Module] = {
        "t1": estimator.t_embedder,
        "t2": estimator.t_embedder2,
        "cond_projection": estimator.cond_projection,
        "merge": estimator.cond_x_merge_linear,
        "transformer_norm": estimator.transformer.norm,
        "skip_linear": estimator.skip_linear,
        "conv1": estimator.conv1,
        "wavenet_cond": estimator.wavenet.cond_layer,
        "wavenet": estimator.wavenet,
        "res_projection": estimator.res_projection,
        "final_layer": estimator.final_layer,
    }
    for i, block in enumerate(estimator.transformer.layers):
        named[f"block_{i}"] = block
        parts = {"attn_norm": "attention_norm", "attn": "attention", "ffn_norm": "ffn_norm", "ffn": "feed_forward"}
        named |= {f"block_{i}_{name}": block.get_submodule(part) for name, part in parts.items()}
    for i, (in_layer, res_skip) in enumerate(zip(estimator.wavenet.in_layers, estimator.wavenet.res_skip_layers, strict=True)):
        named[f"wavenet_in_{i}"], named[f"wavenet_res_skip_{i}"] = in_layer, res_skip
    return {name + suffix: module for name, module in named.items()}


@runner("dit")
def run_dit(golden: Golden) -> Iterator[Check]:
    estimator = seeded_s2mel(golden).cfm.estimator
    results: dict[str, Tensor] = {}
    for suffix in suffixes(golden, "t"):
        x, prompt_x, lengths, t, style, mu = (golden[f"in.{name}{suffix}"] for name in ("x", "prompt_x", "x_lens", "t", "style", "cond"))
        with recorded(estimator_stages(estimator, suffix)) as stages:
            padded = bool((lengths != x.shape[-1]).any())
            results[f"velocity{suffix}"] = estimator(x, prompt_x, t, style, mu, lengths if padded else None)
        results |= stages
    yield from compare_all(golden, results)


@runner("cfm")
def run_cfm(golden: Golden) -> Iterator[Check]:
    cfm = seeded_s2mel(golden).cfm
    results: dict[str, Tensor] = {}
    for suffix in suffixes(golden, "mu"):
        noise, prompt, mu, style = (golden[f"in.{name}{suffix}"] for name in ("noise", "prompt", "mu", "style"))
        for rate in golden.run["rates"]:
            states: list[Tensor] = []  # before every step
            handle = cfm.estimator.register_forward_pre_hook(lambda _module, arguments, into=states: into.append(arguments[0]))
            mel = cfm.solve(mu, prompt, style, steps=golden.run["n_timesteps"], guidance=rate, noise=noise)
            handle.remove()
            states.append(mel)
            for label in {f"cfg{str(float(rate)).replace('.', '')}", f"cfg{rate:.2f}".replace(".", "")}:
                results[f"mel{suffix}_{label}"] = mel
                results[f"step1{suffix}_{label}"] = states[1][: mel.shape[0]]
    yield from compare_all(golden, results)


@runner("pipeline")
def run_pipeline(golden: Golden) -> Iterator[Check]:
    from indextts.models.semantic_codec import SemanticCodec

    codec_config = build_section(SemanticCodecConfig, golden.model_config("semantic_codec"), "semantic_codec")
    codec = build(lambda: SemanticCodec(codec_config))
    load_weights(codec, golden.state("semantic_codec"), unused=SemanticCodec.UNUSED, source=golden.path.stem)
    s2mel, vocoder = seeded_s2mel(golden), seeded_bigvgan(golden)

    codes, ref_mel = golden["in.codes"], golden["in.ref_mel"]
    prompt_frames = ref_mel.shape[-1]
    _, quantized = codec.quantize(golden["in.ref_features"])
    prompt_condition = s2mel.length_regulator(quantized, torch.tensor([prompt_frames]))
    content = s2mel.content(codec.vq2emb(codes), golden["in.gpt_latent"])
    condition = s2mel.length_regulator(content, torch.tensor([target_frames(codes.shape[1])]))
    mel = s2mel.cfm.solve(
        torch.cat([prompt_condition, condition], dim=1), ref_mel, golden["in.style"],
        steps=golden.run["n_timesteps"], guidance=golden.run["cfg_rate"], noise=golden["in.noise"],
    )[:, :, prompt_frames:]  # fmt: skip
    wave = vocoder(mel)[:, 0]
    pcm = (32767 * wave).clamp(-32767, 32767)
    results = {
        "prompt_condition": prompt_condition,
        "S_infer": content,
        "cond": condition,
        "mel": mel,
        "pre_clamp": vocoder.unclamped(mel),
        "wav": wave,
    }
    samples = {"out.pcm": pcm, "out.int16": pcm.to(torch.int16)}
    for check in compare_all(golden, results):
        if check.name not in samples:
            yield check
    for name, actual in samples.items():
        if name in golden:
            # In units of full scale: rounding of 1e-7 in the waveform may move a sample across a whole number.
            yield compare(name, actual / 32767, golden[name] / 32767)
    if "out.int16" in golden and "out.pcm" in golden:
        yield compare("out.int16 of the recorded out.pcm", golden["out.pcm"].to(torch.int16), golden["out.int16"])
