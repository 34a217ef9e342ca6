"""Log-mel spectrogram of the acoustic prompt: what flow matching continues and the vocoder understands.

The HiFi-GAN and BigVGAN mel (arXiv 2010.05646, 2206.04658) on the mel scale of Slaney's Auditory Toolbox.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from indextts.config import SpectConfig

MAGNITUDE_EPSILON = 1e-9  # inside the root, so the smallest magnitude is 3.2e-5
MEL_FLOOR = 1e-5


def mel_spectrogram(wav: Tensor, config: SpectConfig, sample_rate: int) -> Tensor:
    """Natural-log mel of waveforms (B, n) in [-1, 1]: (B, n_mels, F), F = floor(n / hop_length) for the release's sizes.

    Frames are centred by reflecting (n_fft - hop_length) / 2 samples at both ends. Error: ``ValueError`` for a waveform that is
    not longer than that.
    """
    return log_mel(magnitudes(wav, config), config, sample_rate)


def magnitudes(wav: Tensor, config: SpectConfig) -> Tensor:
    """Magnitudes (B, n_fft // 2 + 1, F) of the frames of :func:`mel_spectrogram`; its errors."""
    padding = (config.n_fft - config.hop_length) // 2
    if wav.shape[-1] <= padding:
        raise ValueError(f"a mel spectrogram needs more than {padding} samples; got {wav.shape[-1]}")
    spectrum = torch.stft(
        F.pad(wav.float(), (padding, padding), mode="reflect"),
        config.n_fft,
        hop_length=config.hop_length,
        win_length=config.win_length,
        window=hann_window(config.win_length, wav.device),
        center=False,
        return_complex=True,
    )
    return (spectrum.real.square() + spectrum.imag.square() + MAGNITUDE_EPSILON).sqrt()


def log_mel(magnitude: Tensor, config: SpectConfig, sample_rate: int) -> Tensor:
    """Natural-log mel (B, n_mels, F) of :func:`magnitudes`."""
    mel = slaney_filters(sample_rate, config.n_fft, config.n_mels, config.fmin, magnitude.device) @ magnitude
    return mel.clamp(min=MEL_FLOOR).log()


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def hann_window(length: int, device: torch.device) -> Tensor:
    """Periodic Hann window (length,), float32."""
    return torch.hann_window(length, periodic=True, dtype=torch.float32, device=device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def slaney_filters(sample_rate: int, n_fft: int, n_mels: int, fmin: float, device: torch.device) -> Tensor:
    """Triangles of equal area (n_mels, n_fft // 2 + 1) from ``fmin`` to Nyquist, computed in float64 and stored in float32."""
    ends = torch.tensor([_slaney_mel(fmin), _slaney_mel(sample_rate / 2)], dtype=torch.float64, device="cpu")
    steps = torch.arange(n_mels + 2, dtype=torch.float64, device="cpu") / (n_mels + 1)
    edges = _slaney_hertz(ends[0] + (ends[1] - ends[0]) * steps).unsqueeze(1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    hertz = torch.arange(n_fft // 2 + 1, dtype=torch.float64, device="cpu") * (sample_rate / n_fft)
    triangles = torch.minimum((hertz - left) / (centre - left), (right - hertz) / (right - centre)).clamp(min=0)
    return (triangles * 2 / (right - left)).to(device=device, dtype=torch.float32)


# Slaney's scale is linear (200/3 Hz a mel) up to 1 kHz, then logarithmic (27 mel for a factor of 6.4).
_BREAK_HERTZ, _BREAK_MEL = 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27


def _slaney_mel(hertz: float) -> float:
    if hertz < _BREAK_HERTZ:
        return 3 * hertz / 200
    return _BREAK_MEL + math.log(hertz / _BREAK_HERTZ) / _LOG_STEP


def _slaney_hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < _BREAK_MEL, mel * 200 / 3, _BREAK_HERTZ * ((mel - _BREAK_MEL) * _LOG_STEP).exp())
