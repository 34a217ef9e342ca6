"""Dimensions of the small voice (about 23 million parameters), and of a miniature of it for tests."""

from __future__ import annotations

import dataclasses

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
from indextts.config_vocoder import GRIFFIN_LIM, BigVGANConfig, VocoderConfig
from indextts.release.sizes import SystemSizes
from indextts.training.letters import PHONE_VOCABULARY

MAX_CODES = 700  # 14 s
FEATURES = 192  # width of the semantic features
CODES = 512


def small_voice() -> SystemSizes:
    """The bundled voice: faster than real time on two CPU cores, below 50 MB in 16 bits."""
    config = IndexTTSConfig(
        name="small",
        gpt=GPTConfig(
            model_dim=256,
            layers=7,
            heads=4,
            max_mel_tokens=MAX_CODES + 20,
            max_text_tokens=160,
            number_text_tokens=PHONE_VOCABULARY,
            number_mel_codes=CODES + 2,
            start_mel_token=CODES,
            stop_mel_token=CODES + 1,
            condition_module=ConformerConfig(output_size=80, linear_units=160, attention_heads=4, num_blocks=2, perceiver_mult=1),
            emo_condition_module=ConformerConfig(output_size=64, linear_units=128, attention_heads=4, num_blocks=2, perceiver_mult=1),
            feature_dim=FEATURES,
            condition_num_latent=8,
            emo_latent_dim=128,
            perceiver_dim_head=32,
        ),
        semantic_encoder=SemanticEncoderConfig(hidden_state=4),
        semantic_codec=SemanticCodecConfig(
            codebook_size=CODES, hidden_size=FEATURES, vocos_dim=192, vocos_intermediate_dim=512, vocos_num_layers=4
        ),
        campplus=CAMPPlusConfig(embedding_size=128, growth_rate=12, init_channels=48),
        s2mel=S2MelConfig(
            style_encoder=StyleConfig(dim=128),
            length_regulator=LengthRegulatorConfig(channels=192, in_channels=FEATURES, content_codebook_size=CODES),
            DiT=DiTConfig(hidden_dim=192, num_heads=4, depth=7, content_dim=192, content_codebook_size=CODES),
            wavenet=WaveNetConfig(hidden_dim=192, num_layers=4),
            gpt_layer_dims=(128, 128),
        ),
        inference=InferenceConfig(
            num_beams=1,
            repetition_penalty=1.0,
            temperature=0.8,
            top_p=0.85,
            max_mel_tokens=MAX_CODES,
            diffusion_steps=8,
            inference_cfg_rate=0.4,
            voice="flite-slt",
        ),
    )
    w2v_bert = {
        "hidden_size": FEATURES,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "conv_depthwise_kernel_size": 15,
    }
    bigvgan = BigVGANConfig(upsample_initial_channel=256, use_tanh_at_final=False, use_bias_at_final=False)
    return SystemSizes(config, bigvgan, w2v_bert)


def starter() -> SystemSizes:
    """What one CPU core can teach to speak in about an hour: widths that are multiples of 32, few codes, and no vocoder to train."""
    small = small_voice()
    replace = dataclasses.replace
    width, codes = 128, 256
    conditioner = ConformerConfig(output_size=32, linear_units=64, attention_heads=4, num_blocks=1, perceiver_mult=1)
    config = replace(
        small.config,
        gpt=replace(
            small.config.gpt, model_dim=192, layers=3, number_mel_codes=codes + 2, start_mel_token=codes,
            stop_mel_token=codes + 1, condition_module=conditioner, emo_condition_module=conditioner, feature_dim=width,
            condition_num_latent=4, emo_latent_dim=64,
        ),
        semantic_encoder=SemanticEncoderConfig(hidden_state=3),
        semantic_codec=SemanticCodecConfig(
            codebook_size=codes, hidden_size=width, vocos_dim=128, vocos_intermediate_dim=256, vocos_num_layers=2
        ),
        campplus=CAMPPlusConfig(embedding_size=64, growth_rate=8, init_channels=32, bn_size=2),
        s2mel=S2MelConfig(
            style_encoder=StyleConfig(dim=64),
            length_regulator=LengthRegulatorConfig(channels=128, in_channels=width, content_codebook_size=codes),
            DiT=DiTConfig(hidden_dim=128, num_heads=4, depth=2, content_dim=128, content_codebook_size=codes),
            wavenet=WaveNetConfig(hidden_dim=128, num_layers=1),
            gpt_layer_dims=(64, 64),
        ),
        vocoder=VocoderConfig(type=GRIFFIN_LIM, name=GRIFFIN_LIM),
    )  # fmt: skip
    w2v_bert = {**small.w2v_bert, "hidden_size": width, "num_hidden_layers": 3, "intermediate_size": 384}
    return SystemSizes(config, small.bigvgan, w2v_bert)


def miniature() -> SystemSizes:
    """Every part tiny: a whole training run in seconds, to test the path."""
    small = small_voice()
    conditioner = ConformerConfig(output_size=16, linear_units=32, attention_heads=2, num_blocks=1, perceiver_mult=1)
    width, codes = 32, 64
    replace = dataclasses.replace
    gpt = replace(
        small.config.gpt, model_dim=32, layers=2, heads=2, number_mel_codes=codes + 2, start_mel_token=codes, stop_mel_token=codes + 1,
        condition_module=conditioner, emo_condition_module=conditioner, feature_dim=width, condition_num_latent=4, emo_latent_dim=16,
        perceiver_dim_head=8,
    )  # fmt: skip
    codec = SemanticCodecConfig(codebook_size=codes, hidden_size=width, vocos_dim=16, vocos_intermediate_dim=32, vocos_num_layers=1)
    s2mel = S2MelConfig(
        style_encoder=StyleConfig(dim=16),
        length_regulator=LengthRegulatorConfig(channels=16, in_channels=width, content_codebook_size=codes),
        DiT=DiTConfig(hidden_dim=32, num_heads=2, depth=3, content_dim=16, content_codebook_size=codes),
        wavenet=WaveNetConfig(hidden_dim=32, num_layers=2),
        gpt_layer_dims=(16, 16),
    )
    config = replace(
        small.config,
        name="miniature",
        gpt=gpt,
        semantic_encoder=SemanticEncoderConfig(hidden_state=1),
        semantic_codec=codec,
        campplus=CAMPPlusConfig(embedding_size=16, growth_rate=2, init_channels=8, bn_size=2),
        s2mel=s2mel,
        inference=replace(small.config.inference, max_mel_tokens=30, diffusion_steps=2),
    )
    w2v_bert = {**small.w2v_bert, "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return SystemSizes(
        config,
        dataclasses.replace(small.bigvgan, upsample_initial_channel=64, resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1,),)),
        w2v_bert,
    )


SIZES = {"small": small_voice, "starter": starter, "miniature": miniature}
