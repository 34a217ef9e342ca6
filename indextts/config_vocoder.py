"""Configuration of the vocoder: which one, in ``config.yaml``, and the sizes in BigVGAN's own ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from indextts.config_fields import ConfigError, build_section, within

GRIFFIN_LIM = "griffin_lim"


@dataclass(frozen=True)
class VocoderConfig:
    """Section ``vocoder`` of ``config.yaml``. The release names its BigVGAN; with any name but ``griffin_lim`` its files are read.

    ``name: griffin_lim`` (*ours*) stands in where no BigVGAN was trained, and needs no files: see :mod:`indextts.models.griffin_lim`.
    """

    type: str = "bigvgan"
    name: str = "nvidia/bigvgan_v2_22khz_80band_256x"
    iterations: int = 32  # ours, of griffin_lim

    def __post_init__(self) -> None:
        within("vocoder.iterations", self.iterations, 1, 1000)

    @property
    def has_weights(self) -> bool:
        """Whether the vocoder is a network with files of its own."""
        return self.name != GRIFFIN_LIM


@dataclass(frozen=True)
class BigVGANConfig:
    """BigVGAN v2 generator; read from its own ``config.json``, whose training fields are ignored."""

    resblock: str = "1"
    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    upsample_initial_channel: int = 1536
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    activation: str = "snakebeta"
    snake_logscale: bool = True
    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True
    num_mels: int = 80
    n_fft: int = 1024
    hop_size: int = 256
    win_size: int = 1024
    sampling_rate: int = 22050
    fmin: float = 0
    fmax: float | None = None

    def __post_init__(self) -> None:
        if str(self.resblock) != "1" or self.activation != "snakebeta" or not self.snake_logscale:
            raise ConfigError(
                f"BigVGAN with resblock {self.resblock!r}, activation {self.activation!r}, snake_logscale {self.snake_logscale} is not "
                "supported; the release uses resblock '1', 'snakebeta', true"
            )
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ConfigError("BigVGAN: upsample_rates and upsample_kernel_sizes must have the same length")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ConfigError("BigVGAN: resblock_kernel_sizes and resblock_dilation_sizes must have the same length")


def release_bigvgan() -> BigVGANConfig:
    """The published ``bigvgan_v2_22khz_80band_256x``: no tanh and no bias at the end, unlike the class's defaults."""
    return BigVGANConfig(use_tanh_at_final=False, use_bias_at_final=False)


def load_bigvgan_config(path: str | Path) -> BigVGANConfig:
    """Read BigVGAN's ``config.json`` (its training fields are ignored)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vocoder configuration at {path}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold an object, found {type(raw).__name__}")
    known = {f.name for f in dataclasses.fields(BigVGANConfig)}
    try:
        return build_section(BigVGANConfig, {key: value for key, value in raw.items() if key in known}, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
