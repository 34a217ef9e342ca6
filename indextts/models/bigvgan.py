"""BigVGAN v2 vocoder (arXiv 2206.04658): mel to waveform.

Every activation runs at twice the rate between a low-pass interpolation and a low-pass decimation (after StyleGAN3, arXiv
2106.12423), so that the harmonics it makes do not alias. Alone, a signal meets zeros at its ends in every convolution and its own
last value in every resampler; ``lengths`` reproduces both inside a padded batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.config_vocoder import BigVGANConfig

CONTEXT_FRAMES = 38  # mel frames that a frame of the release's sizes reaches to each side: chunks with this context join exactly
TAPS = 12


class BigVGAN(nn.Module):
    """Generator with the key names of ``bigvgan_generator.pt`` (model id ``nvidia/bigvgan_v2_22khz_80band_256x``)."""

    UNUSED: tuple[str, ...] = (r".*\.(upsample|downsample\.lowpass)\.filter",)  # constant filter taps

    def __init__(self, config: BigVGANConfig) -> None:
        super().__init__()
        self.use_tanh = config.use_tanh_at_final
        self.rates = config.upsample_rates
        self.blocks_per_stage = len(config.resblock_kernel_sizes)
        channels = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.num_mels, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            self.ups.append(nn.Sequential(_upsampler(channels, channels // 2, kernel, rate)))
            channels //= 2
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(AMPBlock(channels, size, dilations))
        self.activation_post = Activation(channels)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=config.use_bias_at_final)
        # Names of the modules whose weight the release's file stores as weight norm.
        self.WEIGHT_NORMED: tuple[str, ...] = tuple(
            name for name, part in self.named_modules() if isinstance(part, (nn.Conv1d, nn.ConvTranspose1d))
        )

    @property
    def hop(self) -> int:
        """Samples per mel frame (256)."""
        return math.prod(self.rates)

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-mel (B, num_mels, F) to a waveform (B, 1, hop F) in [-1, 1].

        With ``lengths`` (B,) int64, in frames, each sample of a right-padded batch comes out as it does alone, zero beyond its end.
        """
        wave = self.unclamped(mel, lengths)
        return torch.tanh(wave) if self.use_tanh else wave.clamp(-1, 1)

    def unclamped(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The same before the last step (clamp, or tanh if the configuration says so): what losses and comparisons want."""
        x = self.conv_pre(zero_beyond(mel, lengths))
        for i, rate in enumerate(self.rates):
            x = self.ups[i](zero_beyond(x, lengths))
            lengths = None if lengths is None else lengths * rate
            first, *others = self.resblocks[i * self.blocks_per_stage : (i + 1) * self.blocks_per_stage]
            x = sum((block(x, lengths) for block in others), first(x, lengths)) / self.blocks_per_stage
        x = self.activation_post(x, lengths)
        return zero_beyond(self.conv_post(zero_beyond(x, lengths)), lengths)


class AMPBlock(nn.Module):
    """Residual convolutions of one kernel size, with an anti-aliased activation before each (AMPBlock1)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2) for d in dilations)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) to (B, C, T); ``lengths`` in samples at this rate."""
        for m, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            h = conv1(zero_beyond(self.activations[2 * m](x, lengths), lengths))
            h = conv2(zero_beyond(self.activations[2 * m + 1](h, lengths), lengths))
            x = x + h
        return x


class Activation(nn.Module):
    """Upsample by 2, SnakeBeta, downsample by 2; the same 12 taps both ways, the signal's ends repeated."""

    taps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.register_buffer("taps", lowpass_taps(), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) to (B, C, T); ``lengths`` in samples at this rate."""
        s = self.act(upsample(hold_beyond(x, lengths), self.taps))
        return downsample(hold_beyond(s, None if lengths is None else 2 * lengths), self.taps)


class SnakeBeta(nn.Module):
    """``x + sin(e^alpha x)^2 / e^beta`` per channel (Snake, arXiv 2006.08195); the parameters are stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        # The quotient is taken before the product, as in the release: the vocoder amplifies differences in the last bit.
        return x + 1.0 / (beta + 1e-9) * torch.sin(alpha * x).square()


def lowpass_taps() -> Tensor:
    """Kaiser-windowed sinc, (12,) float32 on the CPU: cutoff at a quarter of the rate, transition half-width 0.3."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7), dtype=torch.float32, device="cpu")
    time = torch.arange(TAPS, dtype=torch.float32, device="cpu") - (TAPS - 1) / 2
    taps = 0.5 * window * torch.sinc(0.5 * time)
    return taps / taps.sum()


def upsample(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, T) to (B, C, 2 T): zeros between the samples, low-pass, gain 2; the first and last sample repeated beyond the ends."""
    channels, frames = x.shape[1:]
    x = F.pad(x, (3, 3), mode="replicate")
    y = 2 * F.conv_transpose1d(x, taps.expand(channels, 1, -1), stride=2, groups=channels)
    return y[..., 11 : 11 + 2 * frames]


def downsample(s: Tensor, taps: Tensor) -> Tensor:
    """(B, C, 2 T) to (B, C, T): low-pass, every second sample; the first and last sample repeated beyond the ends."""
    channels = s.shape[1]
    return F.conv1d(F.pad(s, (5, 5), mode="replicate"), taps.expand(channels, 1, -1), stride=2, groups=channels)


def zero_beyond(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``x`` (B, C, T) with zeros from ``lengths`` (B,) on: what a convolution sees past the end of a signal that is alone."""
    if lengths is None:
        return x
    return x.masked_fill(torch.arange(x.shape[-1], device=x.device) >= lengths[:, None, None], 0)


def hold_beyond(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``x`` (B, C, T) with its last valid sample repeated from ``lengths`` (B,) on: what a resampler sees past the end."""
    if lengths is None:
        return x
    index = torch.arange(x.shape[-1], device=x.device).minimum(lengths[:, None] - 1)
    return x.gather(2, index[:, None].expand(-1, x.shape[1], -1))


def _upsampler(in_channels: int, out_channels: int, kernel: int, rate: int) -> nn.ConvTranspose1d:
    """Transposed convolution that lengthens exactly ``rate`` times and starts training with unit gain."""
    layer = nn.ConvTranspose1d(in_channels, out_channels, kernel, rate, padding=(kernel - rate) // 2)
    nn.init.normal_(layer.weight, std=(in_channels * kernel / rate) ** -0.5)
    return layer
