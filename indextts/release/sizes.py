"""Dimensions of a whole system: the release's, and a tiny one of the same shape for lessons and tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from indextts.config import (
    CAMPPlusConfig,
    ConformerConfig,
    DiTConfig,
    GPTConfig,
    IndexTTSConfig,
    InferenceConfig,
    LengthRegulatorConfig,
    S2MelConfig,
    SemanticCodecConfig,
    SemanticEncoderConfig,
    StyleConfig,
    WaveNetConfig,
)
from indextts.config_vocoder import BigVGANConfig, release_bigvgan
from indextts.release.tiny_bpe import TOKENIZER_SIZE


@dataclass(frozen=True)
class SystemSizes:
    """What fixes every tensor's shape: ``config.yaml``, and the ``config.json`` of vocoder and semantic encoder."""

    config: IndexTTSConfig = field(default_factory=IndexTTSConfig)
    bigvgan: BigVGANConfig = field(default_factory=release_bigvgan)
    w2v_bert: dict[str, Any] = field(default_factory=dict)  # fields that differ from w2v-BERT 2.0

    def w2v_bert_config(self) -> dict[str, Any]:
        """The semantic encoder's ``config.json``."""
        from indextts.models.semantic_encoder import RELEASE_W2V_CONFIG

        return {
            "architectures": ["Wav2Vec2BertModel"],
            "model_type": "wav2vec2-bert",
            "add_adapter": False,
            **RELEASE_W2V_CONFIG,
            **self.w2v_bert,
        }


def release_config() -> SystemSizes:
    """The dimensions of IndexTTS-2: 1.3 billion parameters in use."""
    return SystemSizes()


def small_config() -> SystemSizes:
    """Every part tiny, the audio formats real (22050 Hz, 80 bands, 256 samples a frame): a sentence takes about a second on a CPU."""
    width, codes, style = 64, 256, 64
    conformer = ConformerConfig(output_size=64, linear_units=128, attention_heads=4, num_blocks=2)
    config = IndexTTSConfig(
        name="random-small",
        gpt=GPTConfig(
            model_dim=128,
            layers=4,
            heads=4,
            number_text_tokens=TOKENIZER_SIZE,
            number_mel_codes=codes + 2,
            start_mel_token=codes,
            stop_mel_token=codes + 1,
            condition_module=conformer,
            emo_condition_module=conformer,
            feature_dim=width,
            emo_latent_dim=64,
            perceiver_dim_head=16,
        ),
        semantic_encoder=SemanticEncoderConfig(hidden_state=2),
        semantic_codec=SemanticCodecConfig(
            codebook_size=codes, hidden_size=width, vocos_dim=48, vocos_intermediate_dim=96, vocos_num_layers=2
        ),
        campplus=CAMPPlusConfig(embedding_size=style, growth_rate=8, init_channels=32),
        s2mel=S2MelConfig(
            style_encoder=StyleConfig(dim=style),
            length_regulator=LengthRegulatorConfig(channels=64, in_channels=width, content_codebook_size=64),
            DiT=DiTConfig(hidden_dim=64, num_heads=4, depth=5, content_dim=64, content_codebook_size=64),
            wavenet=WaveNetConfig(hidden_dim=64, num_layers=3),
            gpt_layer_dims=(32, 16),
        ),
        inference=InferenceConfig(max_mel_tokens=60, diffusion_steps=4),
    )
    w2v_bert = {"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    bigvgan = BigVGANConfig(upsample_initial_channel=64, use_tanh_at_final=False, use_bias_at_final=False)
    return SystemSizes(config, bigvgan, w2v_bert)


def system_sizes(size: str | SystemSizes) -> SystemSizes:
    """``"release"``, ``"small"`` or dimensions of one's own; ``ValueError`` for another name."""
    if isinstance(size, SystemSizes):
        return size
    known = {"release": release_config, "small": small_config}
    if size not in known:
        raise ValueError(f"size {size!r} is unknown; use 'release', 'small' or a SystemSizes")
    return known[size]()
