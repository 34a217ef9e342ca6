"""If this fails, semantic features or codes are not those the language model was trained on, or batching changes them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch

from indextts.config import SemanticCodecConfig
from indextts.models.semantic_codec import SemanticCodec
from indextts.models.semantic_encoder import (
    RELEASE_W2V_CONFIG,
    SemanticEncoder,
    load_semantic_encoder,
    semantic_features_frontend,
    stack_features,
)
from indextts.models.weights import CheckpointError, build, fold_weight_norm, load_weights, unfold_weight_norm
from tests.seeded import seeded_state

MANIFESTS = Path(__file__).parents[1] / "manifest"
SMALL_W2V = {
    **RELEASE_W2V_CONFIG, "hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 80,
    "left_max_position_embeddings": 5, "right_max_position_embeddings": 3, "conv_depthwise_kernel_size": 7,
}  # fmt: skip
SMALL_CODEC = SemanticCodecConfig(codebook_size=96, vocos_dim=40, vocos_intermediate_dim=72, vocos_num_layers=3)


def manifest(name: str) -> dict[str, dict[str, list[int]]]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def speech(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.sin(torch.arange(samples) * 0.08) + 0.05 * torch.randn(samples, generator=generator)


def small_encoder(hidden_state: int = 4) -> SemanticEncoder:
    encoder = build(lambda: SemanticEncoder(SMALL_W2V, hidden_state))
    generator = torch.Generator().manual_seed(3)
    statistics = {"mean": torch.randn(48, generator=generator), "var": 0.5 + torch.rand(48, generator=generator)}
    load_semantic_encoder(encoder, seeded_state(manifest("w2v_bert.small"), 2), statistics, source="seeded weights")
    return encoder


def small_codec() -> SemanticCodec:
    codec = build(lambda: SemanticCodec(SMALL_CODEC))
    load_weights(codec, seeded_state(manifest("semantic_codec.small"), 4), unused=SemanticCodec.UNUSED)
    return codec


# ----------------------------------------------------------------------------------------------------------- front-end


def test_odd_frame_counts_end_in_a_masked_half_token() -> None:
    features, mask = semantic_features_frontend(speech(400 + 98 * 160))  # 99 frames
    assert features.shape == (1, 50, 160)
    assert mask.tolist() == [[1] * 49 + [0]]
    assert (features[0, -1, 80:] == 1).all()
    features, mask = semantic_features_frontend(speech(400 + 99 * 160 + 159))  # 100 frames and samples that fill none
    assert features.shape == (1, 50, 160)
    assert mask.all()
    frames = features.reshape(-1, 80)
    torch.testing.assert_close(frames.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(0), torch.ones(80), atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------------------- encoder


def test_release_size_encoder_has_the_published_keys_of_seventeen_layers() -> None:
    state = build(lambda: SemanticEncoder(RELEASE_W2V_CONFIG)).state_dict()
    published = {key: entry["shape"] for key, entry in {**manifest("w2v_bert"), **manifest("w2v_stats")}.items()}
    needed = {key: shape for key, shape in published.items() if not re.match(r"masked_spec_embed|encoder\.layers\.(1[7-9]|2\d)\.", key)}
    assert {key: list(value.shape) for key, value in state.items()} == needed


def test_layers_above_the_hidden_state_are_not_asked_for() -> None:
    state = {key: value for key, value in seeded_state(manifest("w2v_bert.small")).items() if not re.match(r"encoder\.layers\.[45]", key)}
    statistics = {"mean": torch.zeros(48), "var": torch.ones(48)}
    load_semantic_encoder(build(lambda: SemanticEncoder(SMALL_W2V, 4)), state, statistics, source="file")
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.4\."):
        load_semantic_encoder(build(lambda: SemanticEncoder(SMALL_W2V, 5)), state, statistics, source="file")
    with pytest.raises(CheckpointError, match="var"):
        load_semantic_encoder(build(lambda: SemanticEncoder(SMALL_W2V, 4)), state, {"mean": torch.zeros(48)}, source="file")


def test_impossible_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden state 7"):
        SemanticEncoder(SMALL_W2V, 7)
    with pytest.raises(ValueError, match="rotary"):
        SemanticEncoder({**SMALL_W2V, "position_embeddings_type": "rotary"}, 4)
    with pytest.raises(ValueError, match="48 cannot be split into 5"):
        SemanticEncoder({**SMALL_W2V, "num_attention_heads": 5}, 4)
    with pytest.raises(ValueError, match="'tanh' is not supported"):
        SemanticEncoder({**SMALL_W2V, "hidden_act": "tanh"}, 4)


def test_clips_padded_into_a_batch_give_what_they_give_alone() -> None:
    encoder = small_encoder()
    clips = [semantic_features_frontend(speech(samples, seed)) for seed, samples in enumerate([16160, 9000, 14500])]
    features, mask = stack_features(clips)
    with torch.inference_mode():
        together = encoder(features, mask)
        for row, clip in enumerate(clips):
            alone = encoder(*clip)[0]
            torch.testing.assert_close(together[row, : alone.shape[0]], alone, atol=1e-5, rtol=1e-5)


def test_padding_may_hold_anything() -> None:
    encoder = small_encoder()
    features, mask = semantic_features_frontend(speech(9000))
    tokens = features.shape[1]
    padded = torch.cat([features, torch.full((1, 7, 160), 50.0)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(1, 7, dtype=mask.dtype)], dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(padded, padded_mask)[:, :tokens], encoder(features, mask), atol=1e-5, rtol=1e-5)


def test_training_mode_adds_no_noise() -> None:
    encoder = small_encoder()
    clip = semantic_features_frontend(speech(9000))
    with torch.inference_mode():
        expected = encoder(*clip)
        torch.testing.assert_close(encoder.train()(*clip), expected)


def test_transformers_configuration_objects_are_accepted_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import Wav2Vec2BertConfig

    with caplog.at_level(logging.INFO):
        encoder = build(lambda: SemanticEncoder(Wav2Vec2BertConfig(**SMALL_W2V), 4))
    assert encoder.state_dict().keys() == small_encoder().state_dict().keys()
    assert not caplog.records


# --------------------------------------------------------------------------------------------------------------- codec


def test_release_size_codec_has_the_published_keys_without_the_decoder() -> None:
    state = build(lambda: SemanticCodec(SemanticCodecConfig())).state_dict()
    unfolded = unfold_weight_norm({key: torch.empty(value.shape) for key, value in state.items()}, SemanticCodec.WEIGHT_NORMED)
    published = {key: entry["shape"] for key, entry in manifest("semantic_codec").items()}
    needed = {key: shape for key, shape in published.items() if not any(re.fullmatch(pattern, key) for pattern in SemanticCodec.UNUSED)}
    assert {key: list(value.shape) for key, value in unfolded.items()} == needed
    assert len(needed) < len(published)


def test_weights_survive_a_trip_through_the_released_layout() -> None:
    state = small_codec().state_dict()
    again = fold_weight_norm(unfold_weight_norm(state, SemanticCodec.WEIGHT_NORMED))
    assert again.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(again[key], value)


def test_clips_padded_into_a_batch_get_the_codes_they_get_alone() -> None:
    codec = small_codec()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 40, 1024, generator=generator)
    lengths = torch.tensor([40, 23, 9])
    with torch.inference_mode():
        codes, quantized = codec.quantize(features, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone_codes, alone = codec.quantize(features[row : row + 1, :length])
            assert torch.equal(codes[row, :length], alone_codes[0])
            torch.testing.assert_close(quantized[row, :length], alone[0], atol=1e-5, rtol=1e-5)
        unmasked, _ = codec.quantize(features)
    assert not torch.equal(unmasked[2, :9], codes[2, :9]), "the padding would have leaked without lengths"


def test_every_row_of_codes_is_embedded_on_its_own() -> None:
    codec = small_codec()
    codes = torch.randint(0, 96, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = codec.vq2emb(codes)
        assert together.shape == (3, 1024, 7)
        torch.testing.assert_close(together, torch.cat([codec.vq2emb(row.unsqueeze(0)) for row in codes]), atol=1e-6, rtol=1e-6)
        quantized_codes, quantized = codec.quantize(torch.randn(1, 7, 1024))
        torch.testing.assert_close(codec.vq2emb(quantized_codes).transpose(1, 2), quantized)


def test_codebook_rows_are_chosen_by_direction_not_by_length() -> None:
    codec = small_codec()
    features = torch.randn(1, 20, 1024, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        codes, _ = codec.quantize(features)
        codec.quantizer.first.codebook.weight.mul_(torch.linspace(0.1, 10, 96).unsqueeze(1))
        assert torch.equal(codec.quantize(features)[0], codes)


def test_a_codec_can_be_trained() -> None:
    codec = SemanticCodec(SMALL_CODEC)
    _, quantized = codec.quantize(torch.randn(2, 5, 1024))
    quantized.square().mean().backward()
    # Gradients pass straight through the choice of a code to the encoder (arXiv 1711.00937); the codebook has losses of its own.
    assert codec.quantizer.first.in_project.weight.grad is not None
    assert codec.encoder[1].weight.grad is not None
    assert codec.quantizer.first.out_project.weight.grad is not None
