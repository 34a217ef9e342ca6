"""Judges of the vocoder's training: waveforms folded by periods (HiFi-GAN, arXiv 2010.05646), and spectrograms (UnivNet, 2106.07889)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

_PERIODS = (2, 3, 5, 7, 11)
# FFT size, hop, window. No hop divides the vocoder's: what repeats with every frame must not look the same in every column.
_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
_SLOPE = 0.1
_CHANNELS_LAST = True  # as the tensor cores' convolutions want it
_LOUDNESS = 0.3  # power of magnitudes: faint high harmonics count beside the loud low ones

Judgement = tuple[Tensor, list[Tensor]]  # score map, features of every layer


class Discriminators(nn.Module):
    """All judges; ``width`` is the first layer's channels (32 in the papers).

    They have to be stronger than the vocoder: judges of 12 channels ended near chance (their loss 3.5, where 4 is chance) before
    a vocoder whose buzz repeated with every frame.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.judges = nn.ModuleList([PeriodJudge(p, width) for p in _PERIODS] + [SpectrumJudge(*r, width) for r in _RESOLUTIONS])

    def forward(self, wave: Tensor) -> list[Judgement]:
        """Waves (B, n) to one judgement a judge."""
        return [judge(wave) for judge in self.judges]


class PeriodJudge(nn.Module):
    """Convolutions along time over a waveform folded into columns of one period."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, width, 4 * width, 16 * width, 16 * width, 16 * width]
        strides = (3, 3, 3, 3, 1)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0))) for (a, b), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.score = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> Judgement:
        """(B, n) to scores and features."""
        wave = F.pad(wave[:, None], (0, -wave.shape[-1] % self.period), mode="reflect")
        return _run(self.layers, self.score, wave.unflatten(-1, (-1, self.period)))


class SpectrumJudge(nn.Module):
    """Convolutions over a magnitude spectrogram of one resolution."""

    def __init__(self, size: int, hop: int, window: int, width: int) -> None:
        super().__init__()
        self.size, self.hop, self.window = size, hop, window
        shapes = [(1, (3, 9), (1, 1)), (width, (3, 9), (1, 2)), (width, (3, 9), (1, 2)), (width, (3, 9), (1, 2)), (width, (3, 3), (1, 1))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, width, kernel, stride, (kernel[0] // 2, kernel[1] // 2))) for a, kernel, stride in shapes
        )
        self.score = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> Judgement:
        """(B, n) to scores and features."""
        window = torch.hann_window(self.window, device=wave.device)
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.stft(wave.float(), self.size, self.hop, self.window, window, return_complex=True)
            magnitude = torch.view_as_real(spectrum).square().sum(-1).add(1e-6).pow(_LOUDNESS / 2)
        return _run(self.layers, self.score, magnitude.transpose(1, 2)[:, None])


def _run(layers: nn.ModuleList, score: nn.Module, x: Tensor) -> Judgement:
    features = []
    if _CHANNELS_LAST:
        x = x.contiguous(memory_format=torch.channels_last)
    for layer in layers:
        x = F.leaky_relu(layer(x), _SLOPE)
        features.append(x)
    return score(x), features


def judged(judges: Discriminators, real: Tensor, fake: Tensor) -> tuple[list[Judgement], list[Judgement]]:
    """Judgements of ``real`` and ``fake`` (B, n), from one pass over both."""
    n = real.shape[0]
    both = judges(torch.cat([real, fake]))
    parts = [[(score[rows], [f[rows] for f in features]) for score, features in both] for rows in (slice(n), slice(n, None))]
    return parts[0], parts[1]


def judge_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Least-squares loss of the judges."""
    return torch.stack(
        [(1 - r).float().square().mean() + f.float().square().mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    ).sum()


def fooling_loss(fake: list[Judgement]) -> Tensor:
    """Least-squares loss of who wants to be taken for real."""
    return torch.stack([(1 - f).float().square().mean() for f, _ in fake]).sum()


def feature_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Mean absolute difference of the judges' features."""
    pairs = [(a, b) for (_, r), (_, f) in zip(real, fake, strict=True) for a, b in zip(r, f, strict=True)]
    return torch.stack([(a.detach().float() - b.float()).abs().mean() for a, b in pairs]).sum()
