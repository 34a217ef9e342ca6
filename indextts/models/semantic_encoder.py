"""Semantic features of speech: w2v-BERT 2.0, one hidden state of it, standardised; 50 vectors a second.

w2v-BERT 2.0 is the speech encoder of Seamless (arXiv 2312.05187; model id ``facebook/w2v-bert-2.0``), a Conformer
(arXiv 2005.08100). IndexTTS2 reads hidden state 17, the output of layer 16 counted from 0, so later layers are neither built nor
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from indextts.models.filterbank import log_mel_energies
from indextts.models.w2v_bert import Encoder, FeatureProjection
from indextts.models.weights import load_weights

SAMPLE_SCALE = 32768.0  # this front-end, unlike the speaker encoder's, was trained on 16-bit sample values
STACK = 2  # frames of 10 ms to a token
PADDING_VALUE = 1.0  # fills the missing half of the last token; the published preprocessor's setting

# What determines the numbers in the encoder's ``config.json``; the rest is about training, adapters and other tasks.
RELEASE_W2V_CONFIG: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feature_projection_input_dim": 160,
    "hidden_act": "swish",
    "layer_norm_eps": 1e-5,
    "position_embeddings_type": "relative_key",
    "left_max_position_embeddings": 64,
    "right_max_position_embeddings": 8,
    "conv_depthwise_kernel_size": 31,
}


def semantic_features_frontend(wav16k: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder input of one 16 kHz waveform (n,) in [-1, 1]: features (1, T, 160) and mask (1, T) int64, 1 = real token.

    Log energies of 10 ms frames, standardised per mel bin over the clip, two frames to a token. With an odd number of frames
    the last token is half padding: its mask is 0, but it stays in the sequence, as in the reference.
    """
    log_mel = semantic_log_mel(wav16k)
    variance, mean = torch.var_mean(log_mel, dim=0, keepdim=True)
    frames = (log_mel - mean) / (variance + 1e-7).sqrt()
    missing = -frames.shape[0] % STACK
    mask = torch.ones(frames.shape[0] + missing, dtype=torch.int64, device=frames.device)
    mask[frames.shape[0] :] = 0
    frames = torch.nn.functional.pad(frames, (0, 0, 0, missing), value=PADDING_VALUE)
    return frames.reshape(1, -1, STACK * frames.shape[1]), mask[STACK - 1 :: STACK].unsqueeze(0)


def semantic_log_mel(wav16k: Tensor) -> Tensor:
    """Log-mel energies (F, 80) before standardisation; computed in float64, returned in float32."""
    return log_mel_energies(wav16k, dtype=torch.float64, scale=SAMPLE_SCALE).float()


def stack_features(clips: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Batch outputs of :func:`semantic_features_frontend`, padded on the right: features (B, T, 160), mask (B, T).

    The encoder's output for a clip is then the first of its T rows, as many as it has tokens alone, whatever the padding.
    """
    features = torch.nn.utils.rnn.pad_sequence([clip[0][0] for clip in clips], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([clip[1][0] for clip in clips], batch_first=True)
    return features, mask


class SemanticEncoder(nn.Module):
    """Front-end features to semantic features.

    ``w2v_config`` is the encoder's ``config.json`` as a mapping, or transformers' configuration object. Parameters carry the
    file's key names; the statistics of the features are the buffers ``mean`` and ``var``. Errors: ``ValueError`` if the
    configuration has fewer than ``hidden_state`` layers, another kind of position embedding, or an unknown activation.
    """

    # Layers above the hidden state in use; load_weights still reports any that the encoder has and a file lacks.
    UNUSED: tuple[str, ...] = (r"masked_spec_embed", r"encoder\.layers\.\d+\..*", r"adapter\..*")

    def __init__(self, w2v_config: Mapping[str, Any] | Any, hidden_state: int = 17) -> None:
        super().__init__()
        given = w2v_config if isinstance(w2v_config, Mapping) else w2v_config.to_dict()
        sizes = {key: given.get(key, default) for key, default in RELEASE_W2V_CONFIG.items()}
        if not 1 <= hidden_state <= sizes["num_hidden_layers"]:
            raise ValueError(f"hidden state {hidden_state} of a w2v-BERT with {sizes['num_hidden_layers']} layers does not exist")
        if sizes["position_embeddings_type"] != "relative_key":
            raise ValueError(f"w2v-BERT position embeddings {sizes['position_embeddings_type']!r} are not supported; use 'relative_key'")
        self.feature_projection = FeatureProjection(sizes)
        self.encoder = Encoder({**sizes, "num_hidden_layers": hidden_state})
        self.register_buffer("mean", torch.zeros(sizes["hidden_size"]))
        self.register_buffer("var", torch.ones(sizes["hidden_size"]))
        self.mean: Tensor
        self.var: Tensor

    def forward(self, input_features: Tensor, mask: Tensor) -> Tensor:
        """Features (B, T, 160) and mask (B, T), 1 = real token, to standardised hidden states (B, T, hidden)."""
        hidden: Tensor = self.encoder(self.feature_projection(input_features), mask)
        return (hidden - self.mean) / self.var.sqrt()


def load_semantic_encoder(encoder: SemanticEncoder, state: Mapping[str, Tensor], statistics: Mapping[str, Tensor], *, source: str) -> None:
    """Load the w2v-BERT file's ``state`` (needed layers suffice) and the release's ``statistics`` (``mean``, ``var``)."""
    both = {**state, **{key: statistics[key] for key in ("mean", "var") if key in statistics}}
    load_weights(encoder, both, unused=SemanticEncoder.UNUSED, source=source)
