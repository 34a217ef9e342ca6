"""Batched front-ends on the training device: 16 kHz resampling, semantic input features, filterbanks, pitch."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.config import SpectConfig
from indextts.models.filterbank import log_mel_energies
from indextts.models.mel import MAGNITUDE_EPSILON, log_mel, magnitudes
from indextts.models.semantic_encoder import PADDING_VALUE, SAMPLE_SCALE, STACK
from indextts.training.corpus import SAMPLE_RATE, TOKEN_SAMPLES

PITCH_BINS = 12  # 0: unvoiced; the others span an octave and a half around the piece's median, or all voices
_ABSOLUTE_CENTRE_HZ, _ABSOLUTE_STEP, _RELATIVE_STEP = 150.0, 2.8, 1.6  # steps in semitones
_LOWEST_HZ, _HIGHEST_HZ = 65.0, 420.0
_TILT_TERMS = 3  # of these: loudness, tilt and the widest bow, which are not formants
_ENVELOPE_TERMS = 40  # 1.8 ms: finer than formants, coarser than the harmonics of a high voice


@functools.lru_cache(maxsize=4)
def _resampler(device: torch.device) -> nn.Module:
    from torchaudio.transforms import Resample

    return Resample(SAMPLE_RATE, 16000).to(device)


def to_16k(waves: Tensor) -> Tensor:
    """(B, n) at 22 050 Hz to (B, ceil(320 n / 441)) at 16 kHz, as the pipeline does for the speaker's clip."""
    out: Tensor = _resampler(waves.device)(waves)
    return out


def piece_samples(tokens: int) -> int:
    """Samples at 22 050 Hz of a piece that gives exactly ``tokens`` semantic tokens, all of them real."""
    return TOKEN_SAMPLES * (tokens + 1)


def semantic_inputs(waves_16k: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Encoder input (B, T, 160) and mask (B, T) of waves (B, n); ``lengths`` (B,) are the real samples (None: all).

    Each row comes out as ``semantic_features_frontend`` gives it alone, up to float32 rounding.
    """
    log_mel = log_mel_energies(waves_16k, dtype=torch.float32, scale=SAMPLE_SCALE)
    batch, frames, bands = log_mel.shape
    if lengths is None:
        lengths = torch.full((batch,), waves_16k.shape[1], device=waves_16k.device)
    valid = 1 + (lengths - 400).div(160, rounding_mode="floor")
    real = (torch.arange(frames, device=log_mel.device) < valid[:, None])[..., None]
    mean = (log_mel * real).sum(1, keepdim=True) / valid[:, None, None]
    centred = (log_mel - mean) * real
    variance = centred.square().sum(1, keepdim=True) / (valid[:, None, None] - 1).clamp(min=1)
    normed = torch.where(real, centred / (variance + 1e-7).sqrt(), PADDING_VALUE)
    normed = F.pad(normed, (0, 0, 0, -frames % STACK), value=PADDING_VALUE)
    mask = F.pad(real[..., 0], (0, -frames % STACK))[:, STACK - 1 :: STACK]
    return normed.reshape(batch, -1, STACK * bands), mask.long()


def style_inputs(waves_16k: Tensor) -> Tensor:
    """Speaker encoder input (B, F, 80) of waves (B, n) that are real throughout."""
    fbank = log_mel_energies(waves_16k, dtype=torch.float32)
    return fbank - fbank.mean(dim=1, keepdim=True)


def mel_of(
    waves: Tensor,
    warps: Tensor | None = None,
    gains: Tensor | None = None,
    formants: Tensor | None = None,
    relief: Tensor | None = None,
    depth: Tensor | None = None,
) -> Tensor:
    """Log-mel (B, 80, n // 256) of waves (B, n) at 22 050 Hz.

    ``warps`` (B,): factors on all frequencies, as of a smaller head with a higher voice; ``formants`` (B,) or (B, 513): factors on the
    frequencies of the spectrum's envelope alone, the pitch stays; ``relief`` (B,): on how far its formants stand out, in decibels;
    ``depth`` (B,): on how far harmonics stand out of it; ``gains`` (B, 513): on the magnitude of each frequency, thereafter.
    """
    magnitude = magnitudes(waves, SpectConfig())
    if warps is not None:
        magnitude = _warped(magnitude, warps)
    if formants is not None or relief is not None or depth is not None:
        magnitude = _reshaped(magnitude, formants, relief, depth)
    if gains is not None:
        magnitude = magnitude * gains[..., None]
    return log_mel(magnitude, SpectConfig(), SAMPLE_RATE)


def random_curves(rows: int, bins: int, spread: float, count: int, device: torch.device) -> Tensor:
    """Smooth random functions (B, bins) of the place on the mel scale, from 0 Hz to half the sample rate: sums of ``count`` cosines."""
    place = torch.log1p(torch.linspace(0, SAMPLE_RATE / 2, bins, device=device) / 700)
    order = torch.arange(1, count + 1, device=device)
    return (torch.randn(rows, count, device=device) * spread / order.sqrt()) @ (math.pi * order[:, None] * place / place[-1]).cos()


def _warped(magnitude: Tensor, warps: Tensor) -> Tensor:
    """Magnitudes (B, K, F) with what was at a frequency moved to ``warps`` times that; nothing comes in from above."""
    mixed, inside = _moved(magnitude, warps)
    return torch.where(inside, mixed, MAGNITUDE_EPSILON**0.5)


def _reshaped(magnitude: Tensor, formants: Tensor | None, relief: Tensor | None, depth: Tensor | None) -> Tensor:
    """Magnitudes (B, K, F) whose envelope, the slow part of the log spectrum (its first cepstral coefficients), is another."""
    logarithm = magnitude.log()
    cepstrum = torch.fft.irfft(logarithm, dim=1)
    quefrency = torch.arange(cepstrum.shape[1], device=magnitude.device)
    quefrency = torch.minimum(quefrency, cepstrum.shape[1] - quefrency)[:, None]
    slow = cepstrum * (quefrency < _ENVELOPE_TERMS)
    envelope = torch.fft.rfft(slow, dim=1).real
    fine = logarithm - envelope
    if relief is not None:
        standing = (quefrency >= _TILT_TERMS).float()
        envelope = torch.fft.rfft(slow * (1 + (relief[:, None, None] - 1) * standing), dim=1).real
    if formants is not None:
        envelope, _ = _moved(envelope, formants)
    return (envelope + (fine if depth is None else fine * depth[:, None, None])).exp()


def _moved(values: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B, K, F) by frequency, each from a frequency ``factors`` (B,) or (B, K) times lower, and where (B, K, 1) that existed.

    Beyond it the last one is repeated.
    """
    bins = values.shape[1]
    source = torch.arange(bins, device=values.device) / (factors if factors.dim() == 2 else factors[:, None])
    below = source.floor().clamp(max=bins - 1)
    share = (source - below)[..., None].clamp(max=1)
    lower, upper = (at.long().clamp(max=bins - 1)[..., None].expand(-1, -1, values.shape[2]) for at in (below, below + 1))
    return (1 - share) * values.gather(1, lower) + share * values.gather(1, upper), (source <= bins - 1)[..., None]


@torch.no_grad()
def pitch_bins(waves_16k: Tensor, tokens: int, absolute: bool = False) -> Tensor:
    """Pitch class (B, tokens) int64 per semantic token: 0 unvoiced, else relative to the piece's median, in steps of 1.6 semitones.

    ``absolute``: relative to 150 Hz, in steps of 2.8 semitones, so that codes can also say that a voice is raised. Found by
    autocorrelation of 40 ms windows; good enough for clean synthetic voices.
    """
    window, hop = 640, 320
    padded = F.pad(waves_16k, (window // 2 - 280, window))  # a token's centre is 17.5 ms after its start
    frames = padded.unfold(1, window, hop)[:, :tokens]
    frames = (frames - frames.mean(-1, keepdim=True)) * torch.hann_window(window, device=waves_16k.device)
    spectrum = torch.fft.rfft(frames, n=2 * window)
    correlation = torch.fft.irfft(spectrum.abs().square())[..., :window]
    shape = torch.fft.irfft(torch.fft.rfft(torch.hann_window(window, device=waves_16k.device), n=2 * window).abs().square())[:window]
    correlation = correlation / (correlation[..., :1] + 1e-6) / (shape / shape[0]).clamp(min=0.05)
    low, high = int(16000 / _HIGHEST_HZ), int(16000 / _LOWEST_HZ)
    strength, lag = correlation[..., low:high].max(-1)
    energy = frames.square().mean(-1)
    voiced = (strength > 0.5) & (energy > 0.003 * energy.amax(1, keepdim=True))
    semitones = 12 * torch.log2(16000 / (lag + low).float())
    half = (PITCH_BINS - 1) // 2
    if absolute:
        steps = (semitones - 12 * math.log2(_ABSOLUTE_CENTRE_HZ)) / _ABSOLUTE_STEP
        return torch.where(voiced, steps.round().clamp(-half, half).long() + half + 1, 0)
    median = torch.nanmedian(semitones.masked_fill(~voiced, torch.nan), dim=1, keepdim=True).values
    relative = torch.nan_to_num(semitones - median)
    return torch.where(voiced, (relative / _RELATIVE_STEP).round().clamp(-half, half).long() + half + 1, 0)
