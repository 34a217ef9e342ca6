"""Length regulator: content at 50 vectors per second to content at the mel's 86.13 frames per second.

Nearest-neighbour stretching followed by a small convolution stack, as in Seed-VC (arXiv 2411.09943).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indextts.config import LengthRegulatorConfig

FRAMES_PER_CODE = 1.72  # the release's value for 86.13 / 50


def target_frames(n_codes: int, duration_factor: float = 1.0) -> int:
    """Mel frames for ``n_codes`` codes: the float32 product with 1.72, truncated; at least one frame for at least one code.

    ``duration_factor`` stretches speech (above 1 is slower). Errors: ``ValueError`` if a count is negative or the factor not above 0.
    """
    if n_codes < 0 or not duration_factor > 0:
        raise ValueError(f"need n_codes >= 0 and duration_factor > 0, got {n_codes} and {duration_factor}")
    # In float32 as the release computes it: for some counts float64 truncates to another frame.
    count, ratio = torch.tensor([n_codes, FRAMES_PER_CODE * duration_factor], dtype=torch.float32, device="cpu").unbind()
    return max(int(count * ratio), min(n_codes, 1))


class LengthRegulator(nn.Module):
    """Content features (B, X, in_channels) to conditions (B, Y, channels), each sample stretched to its own length."""

    def __init__(self, config: LengthRegulatorConfig) -> None:
        super().__init__()
        channels = config.channels
        self.content_in_proj = nn.Linear(config.in_channels, channels)
        layers: list[nn.Module] = []
        for _ in config.sampling_ratios:
            layers += [nn.Conv1d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, target_lengths: Tensor, source_lengths: Tensor | None = None) -> Tensor:
        """Stretch ``x`` (B, X, in_channels) to (B, Y, channels), Y the longest target; zero beyond each sample's own target.

        ``target_lengths`` and ``source_lengths`` (all X when absent) are (B,) int64, at least 1; they are read on the host, so CPU tensors
        spare waits for the device. A sample of a padded batch comes out as it does alone. Errors: ``ValueError`` for a length below 1 or
        beyond the tensor.
        """
        batch, sources, _ = x.shape
        if source_lengths is None:
            source_lengths = torch.full((batch,), sources, dtype=torch.int64)
        shortest, frames = int(target_lengths.min()), int(target_lengths.max())
        if shortest < 1 or int(source_lengths.min()) < 1 or int(source_lengths.max()) > sources:
            raise ValueError(
                f"target lengths must be at least 1 and source lengths between 1 and {sources}; "
                f"got {target_lengths.tolist()} and {source_lengths.tolist()}"
            )
        source_lengths, target_lengths = (n.to(x.device, non_blocking=True) for n in (source_lengths, target_lengths))
        index = nearest_index(source_lengths, target_lengths, frames)
        projected = self.content_in_proj(x)
        h = projected.gather(1, index[..., None].expand(-1, -1, projected.shape[-1])).transpose(1, 2)
        if shortest == frames:
            for layer in self.model:
                h = group_norm_of_all(layer, h) if isinstance(layer, nn.GroupNorm) else layer(h)
            return h.transpose(1, 2)
        return self._padded(h, target_lengths).transpose(1, 2)

    def _padded(self, h: Tensor, lengths: Tensor) -> Tensor:
        """The stack on (B, channels, Y) where convolutions see zeros, and statistics nothing, beyond each sample's length."""
        beyond = torch.arange(h.shape[-1], device=h.device) >= lengths[:, None, None]
        for layer in self.model:
            h = _group_norm(layer, h, beyond, lengths) if isinstance(layer, nn.GroupNorm) else layer(h.masked_fill(beyond, 0))
        return h.masked_fill(beyond, 0)


def nearest_index(source_lengths: Tensor, target_lengths: Tensor, frames: int) -> Tensor:
    """Which source vector each of ``frames`` frames repeats, (B, frames) int64.

    Computed in float32, like nearest-neighbour interpolation in torch: integer arithmetic picks other vectors for some lengths.
    """
    scale = source_lengths.float() / target_lengths.float()
    index = (torch.arange(frames, device=scale.device, dtype=torch.float32) * scale[:, None]).long()
    return index.minimum(source_lengths[:, None] - 1)


def group_norm_of_all(layer: nn.GroupNorm, h: Tensor) -> Tensor:
    """GroupNorm with one group, of (B, channels, Y). Torch gives a group to one block of a GPU, which takes longer than all else here."""
    if h.dtype != torch.float32:
        y: Tensor = layer(h)  # which autocast knows, and takes in float32
        return y
    variance, mean = torch.var_mean(h, (1, 2), correction=0, keepdim=True)
    scale = layer.weight[:, None] * torch.rsqrt(variance + layer.eps)
    return torch.addcmul(layer.bias[:, None] - mean * scale, h, scale)


def _group_norm(layer: nn.GroupNorm, h: Tensor, beyond: Tensor, lengths: Tensor) -> Tensor:
    """GroupNorm with one group whose mean and variance run over the valid frames of each sample."""
    count = (lengths * h.shape[1])[:, None, None]
    mean = h.masked_fill(beyond, 0).sum((1, 2), keepdim=True) / count
    centred = (h - mean).masked_fill(beyond, 0)
    variance = centred.square().sum((1, 2), keepdim=True) / count
    return centred * torch.rsqrt(variance + layer.eps) * layer.weight[:, None] + layer.bias[:, None]
