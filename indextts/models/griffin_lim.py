"""A vocoder without weights: magnitudes from the mel, phases by the fast Griffin-Lim algorithm (Perraudin et al., WASPAA 2013).

It stands in for BigVGAN where a voice comes without a trained one. Words stay intelligible; the sound is metallic. The steps: magnitudes
whose mel is the given one, by multiplicative updates (Lee and Seung, 2000); then, in turns, the nearest spectrogram of any signal and the
known magnitudes, each turn carried a little too far. Everything is deterministic and in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.config import SpectConfig
from indextts.models.mel import hann_window, slaney_filters

_MOMENTUM = 0.99
_UPDATES = 12  # of the magnitudes
_SMALLEST = 1e-8


class GriffinLim(nn.Module):
    """Same calls as :class:`indextts.models.bigvgan.BigVGAN`, nothing to load."""

    UNUSED: tuple[str, ...] = ()
    WEIGHT_NORMED: tuple[str, ...] = ()

    def __init__(self, spect: SpectConfig, sample_rate: int = 22050, iterations: int = 32) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.spect, self.sample_rate, self.iterations = spect, sample_rate, iterations

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        return self.spect.hop_length

    def forward(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-mel (B, n_mels, N) to a waveform (B, 1, hop N) in [-1, 1].

        With ``lengths`` (B,) int64, in frames, each sample of a right-padded batch comes out as it does alone, zero beyond its end.
        """
        return self.unclamped(mel, lengths).clamp(-1, 1)

    def unclamped(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The same before clamping."""
        frames = mel.shape[-1]
        real = torch.ones(mel.shape[0], 1, frames, device=mel.device)
        if lengths is not None:
            real = (torch.arange(frames, device=mel.device) < lengths[:, None, None]).float()
        magnitude = self.magnitudes(mel.float()) * real
        short = self.spect.n_fft - self.spect.win_length
        window = F.pad(hann_window(self.spect.win_length, mel.device), (short // 2, short - short // 2))
        envelope = self._overlap(window.square()[None, :, None] * real).clamp(min=1e-3)
        spectrum = magnitude * _starting_phases(magnitude)
        before = torch.zeros_like(spectrum)
        for _ in range(self.iterations):
            nearest = self._analyse(self._synthesise(spectrum, window, envelope), window) * real
            ahead = nearest + _MOMENTUM * (nearest - before)
            spectrum = magnitude * ahead / ahead.abs().clamp(min=_SMALLEST)
            before = nearest
        wave = self._synthesise(spectrum, window, envelope)
        margin = (self.spect.n_fft - self.hop) // 2  # what the mel's front-end reflects at the ends
        wave = wave[:, margin : margin + self.hop * frames]
        return (wave * real.repeat_interleave(self.hop, dim=2)[:, 0])[:, None]

    def magnitudes(self, mel: Tensor) -> Tensor:
        """Spectrum magnitudes (B, bins, N), at least 0, whose mel comes close to ``mel``."""
        filters = slaney_filters(self.sample_rate, self.spect.n_fft, self.spect.n_mels, self.spect.fmin, mel.device)
        wanted = mel.exp()
        back = filters.T @ wanted
        magnitude = back / (filters.T @ filters.sum(1, keepdim=True)).clamp(min=_SMALLEST)
        for _ in range(_UPDATES):
            magnitude = magnitude * back / (filters.T @ (filters @ magnitude)).clamp(min=_SMALLEST)
        return magnitude

    def _synthesise(self, spectrum: Tensor, window: Tensor, envelope: Tensor) -> Tensor:
        """The signal (B, n_fft + hop (N - 1)) whose windowed pieces are nearest to ``spectrum``."""
        return self._overlap(torch.fft.irfft(spectrum, n=self.spect.n_fft, dim=1) * window[:, None]) / envelope

    def _analyse(self, wave: Tensor, window: Tensor) -> Tensor:
        pieces = wave.unfold(1, self.spect.n_fft, self.hop) * window
        return torch.fft.rfft(pieces, dim=2).transpose(1, 2)

    def _overlap(self, pieces: Tensor) -> Tensor:
        """Pieces (B, n_fft, N) added up at their places."""
        length = self.spect.n_fft + self.hop * (pieces.shape[-1] - 1)
        return F.fold(pieces, (1, length), (1, self.spect.n_fft), stride=(1, self.hop))[:, 0, 0]


def _starting_phases(magnitude: Tensor) -> Tensor:
    """Unit numbers (bins, N) with scattered angles that depend on bin and frame alone: the same on every device, call and length."""
    bins, frames = magnitude.shape[1:]
    f = torch.arange(bins, device=magnitude.device, dtype=torch.float64)[:, None]
    t = torch.arange(frames, device=magnitude.device, dtype=torch.float64)
    scattered = (torch.sin(12.9898 * t + 78.233 * f) * 43758.5453).frac()
    return torch.polar(torch.ones_like(scattered), 2 * math.pi * scattered).to(torch.complex64)
