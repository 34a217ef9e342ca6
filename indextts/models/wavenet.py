"""WaveNet head of the flow-matching estimator (arXiv 1609.03499): dilation 1, reflected ends, conditioned on the time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.config import WaveNetConfig


class WaveNet(nn.Module):
    """Gated convolutions over frames: (B, hidden, T) and a time embedding (B, hidden) to (B, hidden, T)."""

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        hidden, layers = config.hidden_dim, config.num_layers
        self.hidden_dim = hidden
        self.right = (config.kernel_size - 1) // 2
        self.left = config.kernel_size - 1 - self.right
        self.cond_layer = NamedConv1d(hidden, 2 * hidden * layers)
        self.in_layers = nn.ModuleList(NamedConv1d(hidden, 2 * hidden, config.kernel_size) for _ in range(layers))
        # The last layer has no next layer to feed, so it gives the skip half only.
        self.res_skip_layers = nn.ModuleList(NamedConv1d(hidden, hidden * (1 if last else 2)) for last in [False] * (layers - 1) + [True])

    def forward(self, z: Tensor, time: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Sum of the layers' skips, (B, hidden, T); ``lengths`` (B,) makes padded samples come out as they do alone.

        Frames beyond a sample's length are unspecified. Needs more frames than the kernel reaches to one side (2 in the release).
        """
        hidden = self.hidden_dim
        reflected = None if lengths is None else reflection_index(lengths, z.shape[-1], self.left, self.right)
        conditions = self.cond_layer(time[:, :, None]).split(2 * hidden, dim=1)
        out = torch.zeros_like(z)
        for condition, in_layer, res_skip in zip(conditions, self.in_layers, self.res_skip_layers, strict=True):
            signal, gate = (in_layer(self._extend(z, reflected)) + condition).chunk(2, dim=1)
            r = res_skip(torch.tanh(signal) * torch.sigmoid(gate))
            if r.shape[1] > hidden:
                z = z + r[:, :hidden]
            out = out + r[:, -hidden:]
        return out

    def _extend(self, z: Tensor, reflected: Tensor | None) -> Tensor:
        """Add the reflected ends (the edge frame is not repeated): (B, hidden, left + T + right)."""
        if reflected is None:
            return F.pad(z, (self.left, self.right), mode="reflect")
        return z.gather(2, reflected[:, None].expand(-1, z.shape[1], -1))


class NamedConv1d(nn.Module):
    """An unpadded 1-D convolution whose parameters carry the release's key name, ``conv.conv``."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({"conv": nn.Conv1d(in_channels, out_channels, kernel_size)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) to (B, out_channels, T - kernel_size + 1)."""
        y: Tensor = self.conv["conv"](x)
        return y


def reflection_index(lengths: Tensor, frames: int, left: int, right: int) -> Tensor:
    """Frames to read so that every sample is reflected at its own two ends: (B, left + frames + right) int64.

    A zero mask would not do: alone, a sample sees its own mirror image at its end.
    """
    position = torch.arange(-left, frames + right, device=lengths.device).abs()
    last = lengths[:, None] - 1
    return torch.where(position > last, 2 * last - position, position).clamp(min=0)
