"""Kaldi-style log-mel energies of 16 kHz speech: the first stage of the speaker encoder and of the semantic encoder.

Both cut frames of 25 ms every 10 ms and lay 80 triangles on Kaldi's mel scale between 20 Hz and 8 kHz. They differ in number
format and in scale (the speaker encoder sees samples in [-1, 1], the semantic encoder samples times 32768), and those
differences are part of the trained models.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

SAMPLE_RATE = 16000
FRAME_LENGTH = 400
FRAME_SHIFT = 160
FFT_SIZE = 512
N_MELS = 80
LOWEST_HZ, HIGHEST_HZ = 20.0, 8000.0
PRE_EMPHASIS = 0.97
ENERGY_FLOOR = 1.192092955078125e-07  # the machine epsilon of float32, to the digits that Kaldi's users agreed on


def log_mel_energies(wav16k: Tensor, *, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Log energies of waveforms (..., n) in [-1, 1] at 16 kHz, multiplied by ``scale`` first.

    Returns (..., F, 80) in ``dtype``, F = 1 + floor((n - 400) / 160): only frames that fit completely. Error: ``ValueError``
    for fewer than 400 samples.
    """
    if wav16k.shape[-1] < FRAME_LENGTH:
        raise ValueError(f"a filterbank needs at least {FRAME_LENGTH} samples at {SAMPLE_RATE} Hz (25 ms); got {wav16k.shape[-1]}")
    frames = (wav16k.to(dtype) * scale).unfold(-1, FRAME_LENGTH, FRAME_SHIFT)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PRE_EMPHASIS * previous) * povey_window(dtype, wav16k.device)
    # The published front-ends keep spectra in single precision even where the sums around them are double.
    spectrum = torch.fft.rfft(frames, n=FFT_SIZE).to(torch.complex64)
    power = spectrum.real.to(dtype).square() + spectrum.imag.to(dtype).square()
    return (power @ mel_filters(dtype, wav16k.device)).clamp(min=ENERGY_FLOOR).log()


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def povey_window(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kaldi's default window (400,): a symmetric Hann window to the power 0.85, computed in ``dtype`` throughout.

    Rounding a float64 window to float32 would move the quietest log energies by up to 1e-4.
    """
    return torch.hann_window(FRAME_LENGTH, periodic=False, dtype=dtype, device="cpu").pow(0.85).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def mel_filters(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Triangular filters (257, 80), built in ``dtype``: rounding a float64 bank to float32 moves log energies by up to 1e-4."""
    lowest = _mel(LOWEST_HZ)
    step = (_mel(HIGHEST_HZ) - lowest) / (N_MELS + 1)
    index = torch.arange(N_MELS, dtype=dtype, device="cpu")
    left, centre, right = (lowest + (index + offset) * step for offset in range(3))
    hertz = torch.arange(FFT_SIZE // 2 + 1, dtype=dtype, device="cpu") * (SAMPLE_RATE / FFT_SIZE)
    mel = (1127.0 * (1.0 + hertz / 700.0).log()).unsqueeze(1)
    filters = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    filters[-1] = 0  # the Nyquist bin is the outer foot of the last triangle; rounding must not give it weight
    return filters.to(device)


def _mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)
