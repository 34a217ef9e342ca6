"""Configuration: dataclasses for the release's ``config.yaml``, checked when they are read.

Field names and defaults are those of the IndexTTS-2 release (model card ``IndexTeam/IndexTTS-2``), so an empty section means
the release's dimensions, and a small voice is the same code with other numbers. Fields marked *ours* do not occur in the
release's file; their defaults are the values that the release fixes in code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from indextts.config_fields import ConfigError, all_equal, build_section, divides, must_be, to_plain, within
from indextts.config_vocoder import VocoderConfig

SUPPORTED_VERSION = "2.0"
MOST_LAYERS = 200  # of any stack; more is a slip of the pen that would take hours to build


@dataclass(frozen=True)
class ConformerConfig:
    """Conditioning encoder (Conformer) and its Perceiver resampler."""

    output_size: int = 512
    linear_units: int = 2048
    attention_heads: int = 8
    num_blocks: int = 6
    input_layer: str = "conv2d2"
    perceiver_mult: int = 2


@dataclass(frozen=True)
class GPTConfig:
    """UnifiedVoice: text and prompts to semantic codes."""

    model_dim: int = 1280
    layers: int = 24
    heads: int = 20
    max_mel_tokens: int = 1815
    max_text_tokens: int = 600
    number_text_tokens: int = 12000
    number_mel_codes: int = 8194
    start_mel_token: int = 8192
    stop_mel_token: int = 8193
    start_text_token: int = 0
    stop_text_token: int = 1
    use_mel_codes_as_input: bool = True
    mel_length_compression: int = 1024
    train_solo_embeddings: bool = False
    condition_type: str = "conformer_perceiver"
    condition_module: ConformerConfig = field(default_factory=ConformerConfig)
    emo_condition_module: ConformerConfig = field(
        default_factory=lambda: ConformerConfig(linear_units=1024, attention_heads=4, num_blocks=4)
    )
    feature_dim: int = 1024  # ours: width of the semantic features that condition the model
    condition_num_latent: int = 32  # ours: speaker latents
    emo_latent_dim: int = 1024  # ours: width of the emotion Perceiver
    perceiver_dim_head: int = 64  # ours

    def __post_init__(self) -> None:
        within("gpt.layers", self.layers, 1, MOST_LAYERS)
        for name in ("start_text_token", "stop_text_token"):
            within(f"gpt.{name}", getattr(self, name), 0, self.number_text_tokens)
        divides("gpt.model_dim", self.model_dim, "gpt.heads", self.heads)
        for name in ("condition_module", "emo_condition_module"):
            module = getattr(self, name)
            within(f"gpt.{name}.num_blocks", module.num_blocks, 1, MOST_LAYERS)
            divides(f"gpt.{name}.output_size", module.output_size, f"gpt.{name}.attention_heads", module.attention_heads)
            if module.input_layer != "conv2d2":
                raise ConfigError(f"gpt.{name}.input_layer is {module.input_layer!r}; only 'conv2d2' is supported")
        if self.condition_type != "conformer_perceiver":
            raise ConfigError(f"gpt.condition_type is {self.condition_type!r}; only 'conformer_perceiver' is supported")
        for name in ("start_mel_token", "stop_mel_token"):
            if not 0 <= getattr(self, name) < self.number_mel_codes:
                raise ConfigError(f"gpt.{name} is {getattr(self, name)}; it must be below number_mel_codes ({self.number_mel_codes})")


@dataclass(frozen=True)
class SemanticCodecConfig:
    """MaskGCT semantic codec: features to one code of 8192 every 20 ms, and back."""

    codebook_size: int = 8192
    hidden_size: int = 1024
    codebook_dim: int = 8
    vocos_dim: int = 384
    vocos_intermediate_dim: int = 2048
    vocos_num_layers: int = 12

    def __post_init__(self) -> None:
        within("semantic_codec.vocos_num_layers", self.vocos_num_layers, 1, MOST_LAYERS)


@dataclass(frozen=True)
class SemanticEncoderConfig:
    """*Ours*: which hidden state of w2v-BERT is the semantic feature; the encoder's own sizes are in its ``config.json``."""

    hidden_state: int = 17


@dataclass(frozen=True)
class CAMPPlusConfig:
    """*Ours* (the release fixes these): CAM++ speaker encoder."""

    feat_dim: int = 80
    embedding_size: int = 192
    growth_rate: int = 32
    bn_size: int = 4
    init_channels: int = 128


@dataclass(frozen=True)
class SpectConfig:
    """Reference mel spectrogram."""

    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 256
    n_mels: int = 80
    fmin: float = 0
    fmax: str | None = "None"

    def __post_init__(self) -> None:
        where = "s2mel.preprocess_params.spect_params"
        within(f"{where}.n_fft", self.n_fft, 16, 2**16)
        within(f"{where}.win_length", self.win_length, 1, self.n_fft)
        within(f"{where}.hop_length", self.hop_length, 1, self.n_fft)
        if self.fmax not in (None, "None"):
            raise ConfigError(f's2mel.preprocess_params.spect_params.fmax is {self.fmax!r}; only "None" (Nyquist) is supported')


@dataclass(frozen=True)
class PreprocessConfig:
    """Sample rate and spectrogram of the acoustic prompt."""

    sr: int = 22050
    spect_params: SpectConfig = field(default_factory=SpectConfig)


@dataclass(frozen=True)
class StyleConfig:
    """Style vector (CAM++ embedding)."""

    dim: int = 192


@dataclass(frozen=True)
class LengthRegulatorConfig:
    """Codes at 50 per second to frames at 86.13 per second."""

    channels: int = 512
    is_discrete: bool = False
    in_channels: int = 1024
    content_codebook_size: int = 2048
    sampling_ratios: tuple[int, ...] = (1, 1, 1, 1)
    vector_quantize: bool = False
    n_codebooks: int = 1
    quantizer_dropout: float = 0.0
    f0_condition: bool = False
    n_f0_bins: int = 512

    def __post_init__(self) -> None:
        must_be("s2mel.length_regulator", self, is_discrete=False, vector_quantize=False, n_codebooks=1, f0_condition=False)


@dataclass(frozen=True)
class DiTConfig:
    """Diffusion transformer of the flow-matching estimator."""

    hidden_dim: int = 512
    num_heads: int = 8
    depth: int = 13
    class_dropout_prob: float = 0.1
    block_size: int = 8192
    in_channels: int = 80
    style_condition: bool = True
    final_layer_type: str = "wavenet"
    target: str = "mel"
    content_dim: int = 512
    content_codebook_size: int = 1024
    content_type: str = "discrete"
    f0_condition: bool = False
    n_f0_bins: int = 512
    content_codebooks: int = 1
    is_causal: bool = False
    long_skip_connection: bool = True
    zero_prompt_speech_token: bool = False
    time_as_token: bool = False
    style_as_token: bool = False
    uvit_skip_connection: bool = True
    add_resblock_in_transformer: bool = False

    def __post_init__(self) -> None:
        within("s2mel.DiT.depth", self.depth, 1, MOST_LAYERS)
        divides("s2mel.DiT.hidden_dim", self.hidden_dim, "s2mel.DiT.num_heads", self.num_heads)
        must_be(
            "s2mel.DiT", self, style_condition=True, final_layer_type="wavenet", target="mel", f0_condition=False, is_causal=False,
            long_skip_connection=True, zero_prompt_speech_token=False, time_as_token=False, style_as_token=False,
            uvit_skip_connection=True, add_resblock_in_transformer=False,
        )  # fmt: skip


@dataclass(frozen=True)
class WaveNetConfig:
    """WaveNet head of the estimator."""

    hidden_dim: int = 512
    num_layers: int = 8
    kernel_size: int = 5
    dilation_rate: int = 1
    p_dropout: float = 0.2
    style_condition: bool = True

    def __post_init__(self) -> None:
        within("s2mel.wavenet.num_layers", self.num_layers, 1, MOST_LAYERS)
        must_be("s2mel.wavenet", self, style_condition=True, dilation_rate=1)


@dataclass(frozen=True)
class S2MelConfig:
    """Codes and latents to mel."""

    preprocess_params: PreprocessConfig = field(default_factory=PreprocessConfig)
    dit_type: str = "DiT"
    reg_loss_type: str = "l1"
    style_encoder: StyleConfig = field(default_factory=StyleConfig)
    length_regulator: LengthRegulatorConfig = field(default_factory=LengthRegulatorConfig)
    DiT: DiTConfig = field(default_factory=DiTConfig)
    wavenet: WaveNetConfig = field(default_factory=WaveNetConfig)
    gpt_layer_dims: tuple[int, ...] = (256, 128)  # ours: hidden widths of the projection of the GPT latents
    gpt_latent_dim: int | None = None  # ours: input width of that projection; None means gpt.model_dim

    def __post_init__(self) -> None:
        if self.dit_type != "DiT":
            raise ConfigError(f"s2mel.dit_type is {self.dit_type!r}; only 'DiT' is supported")
        if self.wavenet.hidden_dim != self.DiT.hidden_dim:
            raise ConfigError("s2mel.wavenet.hidden_dim must equal s2mel.DiT.hidden_dim")


@dataclass(frozen=True)
class InferenceConfig:
    """*Ours*: defaults of ``infer``; a config without this section means the release's values."""

    do_sample: bool = True
    top_p: float = 0.8
    top_k: int = 30
    temperature: float = 0.8
    num_beams: int = 3
    repetition_penalty: float = 10.0
    length_penalty: float = 0.0
    max_mel_tokens: int = 1500
    typical_sampling: bool = False
    typical_mass: float = 0.9
    diffusion_steps: int = 25
    inference_cfg_rate: float = 0.7
    voice: str = ""  # name of the bundled clip that speaks by default


@dataclass(frozen=True)
class DatasetConfig:
    """Tokenizer file; the other fields of the release's ``dataset`` section do nothing at inference."""

    IGNORED: ClassVar[tuple[str, ...]] = ("sample_rate", "squeeze", "mel")
    bpe_model: str = "bpe.model"


@dataclass(frozen=True)
class IndexTTSConfig:
    """The whole ``config.yaml``. Paths are relative to the model directory."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    gpt: GPTConfig = field(default_factory=GPTConfig)
    semantic_codec: SemanticCodecConfig = field(default_factory=SemanticCodecConfig)
    s2mel: S2MelConfig = field(default_factory=S2MelConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    gpt_checkpoint: str = "gpt.pth"
    s2mel_checkpoint: str = "s2mel.pth"
    w2v_stat: str = "wav2vec2bert_stats.pt"
    emo_matrix: str = "feat2.pt"
    spk_matrix: str = "feat1.pt"
    emo_num: tuple[int, ...] = (3, 17, 2, 8, 4, 5, 10, 24)
    qwen_emo_path: str = "qwen0.6bemo4-merge/"
    version: str = SUPPORTED_VERSION
    semantic_encoder: SemanticEncoderConfig = field(default_factory=SemanticEncoderConfig)  # ours
    campplus: CAMPPlusConfig = field(default_factory=CAMPPlusConfig)  # ours
    inference: InferenceConfig = field(default_factory=InferenceConfig)  # ours
    name: str = "IndexTTS-2"  # ours: what panels and the command line call this voice

    def __post_init__(self) -> None:
        if len(self.emo_num) != 8 or min(self.emo_num) < 1:
            raise ConfigError(f"emo_num must hold 8 counts >= 1, one per emotion; got {list(self.emo_num)}")
        s2mel, codec = self.s2mel, self.semantic_codec
        all_equal(
            s2mel__DiT__in_channels=s2mel.DiT.in_channels, s2mel__preprocess_params__n_mels=s2mel.preprocess_params.spect_params.n_mels
        )
        all_equal(s2mel__style_encoder__dim=s2mel.style_encoder.dim, campplus__embedding_size=self.campplus.embedding_size)
        all_equal(s2mel__length_regulator__channels=s2mel.length_regulator.channels, s2mel__DiT__content_dim=s2mel.DiT.content_dim)
        all_equal(
            semantic_codec__hidden_size=codec.hidden_size,
            gpt__feature_dim=self.gpt.feature_dim,
            s2mel__length_regulator__in_channels=s2mel.length_regulator.in_channels,
        )
        if self.gpt.start_mel_token < self.semantic_codec.codebook_size:
            raise ConfigError(
                f"gpt.start_mel_token ({self.gpt.start_mel_token}) must not be one of the {self.semantic_codec.codebook_size} codes of "
                "semantic_codec.codebook_size"
            )

    @property
    def gpt_latent_dim(self) -> int:
        """Width of the GPT latents that S2Mel projects."""
        return self.s2mel.gpt_latent_dim or self.gpt.model_dim


def load_config(path: str | Path) -> IndexTTSConfig:
    """Read ``config.yaml``.

    Errors: ``FileNotFoundError`` if there is no such file, :class:`ConfigError` for YAML that does not parse, a field of the
    wrong type, sizes that contradict each other, or a release other than 2.0.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, found {type(raw).__name__}")
    try:
        return config_from_dict(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def config_from_dict(raw: dict[str, Any]) -> IndexTTSConfig:
    """Build the checked configuration from the parsed YAML of a release."""
    version = str(raw.get("version", SUPPORTED_VERSION)).strip()
    if version != SUPPORTED_VERSION:
        raise ConfigError(
            f"this is a configuration of IndexTTS release {version}; only release {SUPPORTED_VERSION} is supported "
            "(another tokenizer and speaker conditioning). Use the files of model id IndexTeam/IndexTTS-2."
        )
    return build_section(IndexTTSConfig, {**raw, "version": version}, "")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts and lists (for YAML or JSON), the inverse of :func:`build_section`."""
    return to_plain(config)
