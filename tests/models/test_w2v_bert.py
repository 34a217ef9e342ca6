"""If this fails, the semantic encoder is no longer the published network, or learns from other start values than it did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from indextts.models.semantic_encoder import RELEASE_W2V_CONFIG, SemanticEncoder

TINY = {
    **RELEASE_W2V_CONFIG, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
    "feature_projection_input_dim": 20, "left_max_position_embeddings": 5, "right_max_position_embeddings": 3,
    "conv_depthwise_kernel_size": 7,
}  # fmt: skip
LENGTHS = {"one token": [1], "whole rows": [16, 16], "padded rows": [37, 23, 1], "beyond the distances": [64]}


def reference(**changes: Any) -> Any:
    """The transformers package's network of the same sizes, without noise."""
    transformers = pytest.importorskip("transformers")
    noise = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "conformer_conv_dropout", "layerdrop")
    config = transformers.Wav2Vec2BertConfig(**{**TINY, **changes}, **dict.fromkeys(noise, 0.0), apply_spec_augment=False)
    config._attn_implementation = "eager"
    return transformers.Wav2Vec2BertModel(config).eval()


def ours(network: Any, hidden_state: int = 3, **changes: Any) -> SemanticEncoder:
    """Our encoder with the weights of ``network``."""
    encoder = SemanticEncoder({**TINY, **changes}, hidden_state)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    own = encoder.state_dict()
    encoder.load_state_dict({**{key: value for key, value in state.items() if key in own}, "mean": own["mean"], "var": own["var"]})
    return encoder


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Features (B, T, 20), padding included, and mask (B, T)."""
    features = torch.randn(len(lengths), max(lengths), 20, generator=torch.Generator().manual_seed(1))
    return features, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def shake(network: Any) -> None:
    """Move every parameter, so that none is zero or one."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("activation", ["swish", "gelu", "relu"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_every_hidden_state_is_the_published_networks(lengths: list[int], activation: str) -> None:
    network = reference(hidden_act=activation)
    shake(network)
    features, mask = batch(lengths)
    with torch.inference_mode():
        expected = network(features, attention_mask=mask, output_hidden_states=True).hidden_states
        for state in (1, 2, 3):
            actual = ours(network, state, hidden_act=activation)(features, mask)
            torch.testing.assert_close(actual, expected[state], atol=1e-5, rtol=0)


def test_a_row_of_padding_only_is_the_published_networks() -> None:
    network = reference()
    shake(network)
    features, mask = batch([19, 7])
    mask[1] = 0
    with torch.inference_mode():
        expected = network(features, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(ours(network)(features, mask), expected, atol=1e-5, rtol=0)


def test_keys_and_shapes_are_the_published_networks() -> None:
    expected = {key: value.shape for key, value in reference().state_dict().items() if key != "masked_spec_embed"}
    actual = {key: value.shape for key, value in SemanticEncoder(TINY, 3).state_dict().items() if key not in ("mean", "var")}
    assert actual == expected


def test_gradients_are_the_published_networks() -> None:
    network = reference()
    shake(network)
    encoder = ours(network).train()
    features, mask = batch([37, 23])
    target = torch.randn(2, 37, 48, generator=torch.Generator().manual_seed(3))
    learning, wanted = encoder(features, mask), network.train()(features, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(learning, wanted, atol=1e-5, rtol=0)
    (wanted * target).mean().backward()
    (learning * target).mean().backward()
    expected = {key: value.grad for key, value in network.named_parameters() if key != "masked_spec_embed"}
    for key, value in encoder.named_parameters():
        assert value.grad is not None, key
        assert value.grad.isfinite().all(), key
        torch.testing.assert_close(value.grad, expected[key], atol=1e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_start_values_spread_as_the_published_networks() -> None:
    torch.manual_seed(0)
    expected = dict(reference(hidden_size=256, intermediate_size=512).named_parameters())
    for key, value in SemanticEncoder({**TINY, "hidden_size": 256, "intermediate_size": 512}, 3).named_parameters():
        # A few hundred numbers in the smallest: their spread is known to a few percent, their mean to a tenth of the spread.
        torch.testing.assert_close(value.std(), expected[key].std(), atol=1e-6, rtol=0.15, msg=lambda text, key=key: f"{key}: {text}")
        torch.testing.assert_close(value.mean(), expected[key].mean(), atol=0.06, rtol=0)


def test_half_precision_stays_near() -> None:
    encoder = SemanticEncoder(TINY, 3).eval()
    features, mask = batch([37, 23, 1])
    with torch.inference_mode():
        expected = encoder(features, mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(encoder(features, mask).float(), expected, atol=0.1, rtol=0.1)
