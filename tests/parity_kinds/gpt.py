"""Goldens of kind ``gpt``: conditioners, prefix, generation steps and the latent pass, stage by stage."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from indextts.config import GPTConfig, build_section
from indextts.models.gpt import UnifiedVoice
from indextts.models.weights import State, build, load_weights
from tests.parity_kinds.common import Check, Golden, runner

Outputs = dict[str, Tensor]


def gpt_config(golden: Golden) -> GPTConfig:
    """The golden's sizes; those that the release fixes in code come from the manifest."""
    config = build_section(GPTConfig, golden.spec["config"], "gpt")
    manifest = golden.manifest()
    features = next(tensor for name, tensor in golden.tensors.items() if re.match(r"in\.\w*feat", name) and tensor.dim() == 3)
    return dataclasses.replace(
        config,
        feature_dim=features.shape[-1],
        condition_num_latent=manifest["perceiver_encoder.latents"]["shape"][0],
        emo_latent_dim=manifest["emo_perceiver_encoder.latents"]["shape"][1],
        perceiver_dim_head=manifest["perceiver_encoder.layers.0.0.to_q.weight"]["shape"][0] // config.condition_module.attention_heads,
    )


def load_model(golden: Golden, state: State | None = None) -> UnifiedVoice:
    """The model with the golden's seeded weights, or with ``state``."""
    model = build(lambda: UnifiedVoice(gpt_config(golden)))
    load_weights(model, UnifiedVoice.complete_state(golden.state() if state is None else state), source=golden.path.name)
    return model


def compare_all(golden: Golden, outputs: Outputs) -> Iterator[Check]:
    """One check for each recorded output; one that was not computed fails."""
    for name in golden.tensors:
        if name.startswith("out."):
            if name in outputs:
                yield golden.compare(name, outputs[name])
            else:
                yield Check(name, math.inf, 0.0, False, "recorded, but nothing computes it")


@runner("gpt")
def run_gpt(golden: Golden) -> Iterator[Check]:
    """Every recorded stage."""
    state = golden.state()
    model = load_model(golden, state)
    outputs: Outputs = {}
    _conditioners(golden, model, outputs)
    conditionings = _conditionings(golden, model, outputs)
    for suffix, place in (("", "out."), ("_batch", "out.batch.")):
        if f"in.text_ids{suffix}" in golden:
            _sequence(golden, model, conditionings, suffix, place, outputs)
    without_tables = {key: value for key, value in state.items() if not key.endswith(".pe")}
    _sinusoid(golden, load_model(golden, without_tables), outputs)
    yield from compare_all(golden, outputs)


class Recorder:
    """Forward hooks that keep what modules return; a context manager."""

    def __init__(self) -> None:
        self.seen: Outputs = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def output(self, module: nn.Module, name: str) -> None:
        """Keep ``module``'s output; of a tuple its tensors, as ``name`` and ``name.1``."""

        def keep(_: nn.Module, __: tuple[object, ...], result: object) -> None:
            results = result if isinstance(result, tuple) else (result,)
            for index, tensor in enumerate(results):
                if isinstance(tensor, Tensor):
                    self.seen[f"{name}.{index}" if index else name] = tensor

        self._hooks.append(module.register_forward_hook(keep))

    def input(self, module: nn.Module, name: str) -> None:
        """Keep ``module``'s first argument."""
        self._hooks.append(module.register_forward_pre_hook(lambda _, given: self.seen.__setitem__(name, given[0])))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _conditioners(golden: Golden, model: UnifiedVoice, outputs: Outputs) -> None:
    """``out.spk.*``, ``out.emo.*`` for single prompts and ``out.spkb.*``, ``out.emob.*`` for padded batches."""
    for role, name in (("spk", "in.spk_feat"), ("emo", "in.emo_feat")):
        if name in golden:
            features = golden[name]
            # The reference passes the feature width as the length, which masks nothing in a prompt of up to 15 s.
            _encode(model, role, f"out.{role}", features, torch.full((features.shape[0],), features.shape[-1]), outputs)
    for role in ("spk", "emo"):
        name = f"in.{role}_feat_batch" if f"in.{role}_feat_batch" in golden else "in.spk_feat_batch"
        if name in golden:
            _encode(model, role, f"out.{role}b", golden[name], golden[f"{name}_lengths"], outputs)
    if "in.spk_feat" in golden:
        outputs["out.emo.vec_spk"] = model.emotion_vector(golden["in.spk_feat"])


def _encode(model: UnifiedVoice, role: str, place: str, features: Tensor, lengths: Tensor, outputs: Outputs) -> None:
    speaker = role == "spk"
    encoder: Any = model.conditioning_encoder if speaker else model.emo_conditioning_encoder
    perceiver: Any = model.perceiver_encoder if speaker else model.emo_perceiver_encoder
    with Recorder() as recorder:
        recorder.output(encoder.embed, f"{place}.conv_linear")
        recorder.input(encoder.encoders[0], f"{place}.subsampled")
        for index, block in enumerate(encoder.encoders):
            recorder.output(block.self_attn, f"{place}.block{index}.attn")
            recorder.output(block.conv_module, f"{place}.block{index}.conv")
            recorder.output(block.feed_forward, f"{place}.block{index}.ff")
            recorder.output(block, f"{place}.block{index}")
        recorder.output(encoder, f"{place}.encoder")
        for index, (attention, feed_forward) in enumerate(perceiver.layers):
            recorder.output(attention, f"{place}.perceiver{index}.attn")
            recorder.output(feed_forward, f"{place}.perceiver{index}.ff")
        recorder.output(perceiver, f"{place}.perceived_sequence")
        recorder.output(model.emovec_layer, f"{place}.after_emovec_layer")
        result = model.speaker_latents(features, lengths) if speaker else model.emotion_vector(features, lengths)
    outputs |= recorder.seen
    outputs[f"{place}.mask"] = recorder.seen[f"{place}.encoder.1"]
    if speaker:
        outputs[f"{place}.latents"] = result
    else:
        outputs[f"{place}.perceived"] = recorder.seen[f"{place}.perceived_sequence"][:, 0]
        outputs[f"{place}.vec"] = outputs[f"{place}.vec_emo"] = result


def _conditionings(golden: Golden, model: UnifiedVoice, outputs: Outputs) -> list[Tensor]:
    """``out.emo.merged_*``, and every conditioning that the golden's sequences may start with."""
    candidates = []
    if "out.spkb.latents" in outputs:
        candidates.append(model.conditioning(outputs["out.spkb.latents"], outputs["out.emob.vec"]))
    if "in.spk_feat" in golden and "in.emo_feat" in golden:
        for name in (name for name in golden.tensors if name.startswith("out.emo.merged")):
            stated = re.search(r"alpha (-?[\d.]*\d)", golden.spec.get("tensors", {}).get(name, {}).get("meaning", ""))
            alpha = float(stated[1]) if stated else int(name.rsplit("_", 1)[-1]) / 100
            outputs[name] = model.merge_emotion(golden["in.spk_feat"], golden["in.emo_feat"], alpha)
            candidates.append(model.conditioning(outputs["out.spk.latents"], outputs[name]))
        candidates.append(model.conditioning(outputs["out.spk.latents"], outputs["out.emo.vec_emo"]))
    return candidates


def _sequence(golden: Golden, model: UnifiedVoice, candidates: list[Tensor], suffix: str, place: str, outputs: Outputs) -> None:
    """Prefix, prefill, cached steps over given codes, latent pass."""
    text, codes = golden[f"in.text_ids{suffix}"], golden[f"in.codes{suffix}"]
    candidates = [conditioning for conditioning in candidates if conditioning.shape[0] in (1, text.shape[0])]
    if f"{place}prefix.emb" in golden:
        # Which conditioning is in force is stated in words only; the recorded prefix shows it.
        recorded = golden[f"{place}prefix.emb"]
        candidates.sort(key=lambda conditioning: float((model.prefix(conditioning, text)[0] - recorded).abs().max()))
    conditioning = candidates[0]
    prefix, mask = model.prefix(conditioning, text)
    outputs |= {f"{place}prefix.emb": prefix, f"{place}prefix.mask": mask, f"{place}prefix.ids": model.placeholder_ids(prefix)}

    with Recorder() as recorder:
        recorder.input(model.gpt.h[0], "hidden0")
        for index, block in enumerate(model.gpt.h[:-1], start=1):
            recorder.output(block, f"hidden{index}")
        recorder.output(model.gpt, f"hidden{len(model.gpt.h)}")
        logits, cache = model.prefill(prefix, mask)
    outputs |= {f"{place}prefill.{name}": tensor for name, tensor in recorder.seen.items()}
    outputs[f"{place}prefill.logits_last"] = logits
    outputs[f"{place}prefill.logits_all"] = model.logits(recorder.seen[f"hidden{len(model.gpt.h)}"])
    for index, (keys, values) in enumerate(cache.layers):
        outputs |= {f"{place}prefill.k{index}": keys, f"{place}prefill.v{index}": values}

    steps = [logits]
    normed = [model.final_norm(recorder.seen[f"hidden{len(model.gpt.h)}"])[:, -1]]
    with Recorder() as recorder:
        recorder.output(model.final_norm, "normed")
        for step in range(1, codes.shape[1] + 1):
            logits, cache = model.decode_step(codes[:, step - 1], step, cache, mask)
            steps.append(logits)
            normed.append(recorder.seen["normed"])
    outputs[f"{place}decode.logits"] = torch.stack(steps, dim=1)
    outputs[f"{place}decode.normed_hidden"] = torch.stack(normed, dim=1)

    lengths = [golden.tensors.get(name) for name in (f"in.text_ids{suffix}_lengths", f"in.codes{suffix}_lengths")]
    outputs[f"{place}latent"] = model.latents(conditioning, text, lengths[0], codes, lengths[1])


def _sinusoid(golden: Golden, model: UnifiedVoice, outputs: Outputs) -> None:
    """The same conditioners with position tables that the checkpoint lacks."""
    if "in.spk_feat" in golden:
        outputs["out.sinusoid.spk.latents"] = model.speaker_latents(golden["in.spk_feat"])
        outputs["out.sinusoid.emo.vec_spk"] = model.emotion_vector(golden["in.spk_feat"])
    if "in.emo_feat" in golden:
        outputs["out.sinusoid.emo.vec_emo"] = model.emotion_vector(golden["in.emo_feat"])
