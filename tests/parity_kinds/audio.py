"""Prompt audio: mel, resampler, filterbanks, speaker encoder, semantic encoder and codec."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from indextts.audio import sinc_resampler
from indextts.config import CAMPPlusConfig, SemanticCodecConfig, SpectConfig
from indextts.models.campplus import CAMPPlus, kaldi_fbank, style_features
from indextts.models.filterbank import mel_filters, povey_window
from indextts.models.mel import hann_window, mel_spectrogram, slaney_filters
from indextts.models.semantic_codec import SemanticCodec
from indextts.models.semantic_encoder import SemanticEncoder, load_semantic_encoder, semantic_features_frontend, semantic_log_mel
from indextts.models.weights import build, load_weights
from tests.parity_kinds.common import Check, Golden, compare, runner
from tests.parity_kinds.stages import compare_all, recorded, suffixes

CPU = torch.device("cpu")
MARGIN = 1e-5  # codes whose two nearest rows are closer than this may fall either way


@runner("mel")
def run_mel(golden: Golden) -> Iterator[Check]:
    spect: dict[str, Any] = golden.run.get("spect", {})
    named = {"n_fft": "n_fft", "n_mels": "n_mels", "hop_length": "hop", "win_length": "win", "fmin": "fmin"}
    config = SpectConfig(**{ours: spect[theirs] for ours, theirs in named.items() if theirs in spect})
    rate = spect.get("sr", 22050)
    computed = {
        "filterbank": slaney_filters(rate, config.n_fft, config.n_mels, config.fmin, CPU),
        "window": hann_window(config.win_length, CPU),
    }
    for case in suffixes(golden, "wav22k"):
        computed[f"mel{case}"] = mel_spectrogram(golden[f"in.wav22k{case}"], config, rate)
    yield from compare_all(golden, computed)


@runner("resample")
def run_resample(golden: Golden) -> Iterator[Check]:
    resampler = sinc_resampler()
    computed = {"kernel": resampler.get_buffer("kernel")}
    for case in suffixes(golden, "wav22k"):
        computed[f"wav16k{case}"] = resampler(golden[f"in.wav22k{case}"])
    yield from compare_all(golden, computed)


@runner("fbank")
def run_fbank(golden: Golden) -> Iterator[Check]:
    computed = {}
    for case in suffixes(golden, "wav16k"):
        wave = golden[f"in.wav16k{case}"].reshape(-1)
        computed[f"fbank{case}"] = kaldi_fbank(wave)
        computed[f"centred{case}"] = style_features(wave)[0]
    yield from compare_all(golden, computed)


@runner("frontend")
def run_frontend(golden: Golden) -> Iterator[Check]:
    computed = {"mel_filters": mel_filters(torch.float64, CPU), "window": povey_window(torch.float64, CPU)}
    for case in suffixes(golden, "wav16k"):
        wave = golden[f"in.wav16k{case}"].reshape(-1)
        computed[f"log_mel{case}"] = semantic_log_mel(wave)
        computed[f"input_features{case}"], computed[f"attention_mask{case}"] = semantic_features_frontend(wave)
    yield from compare_all(golden, computed)


@runner("campplus")
def run_campplus(golden: Golden) -> Iterator[Check]:
    model = build(lambda: CAMPPlus(CAMPPlusConfig(**golden.model_config("campplus"))))
    load_weights(model, golden.state("campplus"), unused=model.UNUSED)
    everything: dict[str, Tensor] = {}
    stages = {"head": model.head, **dict(model.xvector.named_children())}
    for name, block in model.xvector.named_children():
        stages |= {child.replace("tdnnd", f"{name}_layer"): layer for child, layer in block.named_children() if child.startswith("tdnnd")}
    for case in suffixes(golden, "fbank_centred"):
        with recorded(stages) as computed:
            computed["style"] = model(golden[f"in.fbank_centred{case}"])
        everything |= {name + case: value for name, value in computed.items()}
    yield from compare_all(golden, everything)


@runner("w2v")
def run_w2v(golden: Golden) -> Iterator[Check]:
    wanted = int(golden.run["select_hidden_state"])
    states = [int(match[1]) for match in (re.match(r"out\.hidden_(\d+)", name) for name in golden.tensors) if match]
    everything: dict[str, Tensor] = {}
    for depth in sorted({wanted, max(wanted, *states)}, reverse=True):  # the last, shallowest run is the encoder as it is used
        model = build(partial(SemanticEncoder, golden.model_config("w2v_bert"), depth))
        load_semantic_encoder(model, golden.state("w2v_bert"), {"mean": golden["in.mean"], "var": golden["in.var"]}, source="golden")
        layers = list(model.encoder.layers)
        outputs = {f"hidden_{index + 1}": layer for index, layer in enumerate(layers)}
        for case in suffixes(golden, "input_features"):
            with recorded(outputs, {"hidden_0": layers[0]}) as computed:
                computed["features"] = model(golden[f"in.input_features{case}"], golden[f"in.attention_mask{case}"])
            everything |= {name + case: value for name, value in computed.items()}
    yield from compare_all(golden, everything)


@runner("codec")
def run_codec(golden: Golden) -> Iterator[Check]:
    model = build(lambda: SemanticCodec(SemanticCodecConfig(**golden.model_config("semantic_codec"))))
    load_weights(model, golden.state("semantic_codec"), unused=model.UNUSED)
    backbone: Any = model.encoder[0]
    stages = {"embed_norm": backbone.norm, "backbone": backbone, "encoder": model.encoder[1], "z_e": model.quantizer.first.in_project}
    stages |= {f"block_{index}": block for index, block in enumerate(backbone.convnext)}
    everything: dict[str, Tensor] = {}
    for case in suffixes(golden, "features"):
        with recorded(stages) as computed:
            computed["codes"], computed["quantized"] = model.quantize(golden[f"in.features{case}"])
        computed["margin"] = margins(model, computed["z_e"])
        everything |= {name + case: value for name, value in computed.items()}
    for case in suffixes(golden, "codes"):
        everything[f"vq2emb{case}"] = model.vq2emb(golden[f"in.codes{case}"])
    for check in compare_all(golden, everything):
        decided = re.fullmatch(r"out\.(?:codes|quantized)(.*)", check.name)
        recorded_value, value = golden[check.name], everything.get(check.name.removeprefix("out."))
        if decided and value is not None and value.shape == recorded_value.shape:
            sure = golden[f"out.margin{decided[1]}"] >= MARGIN
            yield compare(f"{check.name} where sure", value[sure], recorded_value[sure])
        else:
            yield check


def margins(model: SemanticCodec, z: Tensor) -> Tensor:
    """Squared-distance gap (B, T) between the nearest and the second nearest code of projected latents (B, dim, T)."""
    z = torch.nn.functional.normalize(z.transpose(1, 2), dim=-1)
    codebook = torch.nn.functional.normalize(model.quantizer.first.codebook.weight, dim=-1)
    nearest = torch.cdist(z.double(), codebook.double()).square().topk(2, dim=-1, largest=False).values
    return (nearest[..., 1] - nearest[..., 0]).float()
