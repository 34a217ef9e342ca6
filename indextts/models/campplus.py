"""CAM++ speaker encoder: one style vector per voice.

Architecture: "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking" (arXiv 2303.00332);
weights: model id ``funasr/campplus``. A small 2-D convolutional head, then a densely connected time-delay network whose layers
mask their own output by context, then pooling over time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indextts.config import CAMPPlusConfig
from indextts.models.filterbank import log_mel_energies

HEAD_CHANNELS = 32
DENSE_BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation of each dense block
DENSE_KERNEL = 3
SEGMENT_STEPS = 100  # the local context of a mask: two seconds


def kaldi_fbank(wav16k: Tensor) -> Tensor:
    """Log-mel energies (F, 80) of a 16 kHz waveform (n,) in [-1, 1]; samples are not scaled to 16 bits, as in training."""
    return log_mel_energies(wav16k, dtype=torch.float32)


def style_features(wav16k: Tensor) -> Tensor:
    """Encoder input (1, F, 80) of a 16 kHz waveform (n,): :func:`kaldi_fbank` minus its mean over frames."""
    fbank = kaldi_fbank(wav16k)
    return (fbank - fbank.mean(dim=0, keepdim=True)).unsqueeze(0)


@dataclass
class Real:
    """Which of T steps are real in a batch padded on the right; made on the device, without a look at the lengths."""

    beyond: Tensor  # (B, 1, T) true for padding
    count: Tensor  # (B, 1, 1) real steps
    share: Tensor  # (B, 1, S) steps of each segment over its real steps; of no account where it has none

    @classmethod
    def of(cls, lengths: Tensor, steps: int) -> Real:
        """For ``lengths`` (B,) int64 of ``steps`` steps."""
        lengths = lengths[:, None, None]
        starts = torch.arange(0, steps, SEGMENT_STEPS, device=lengths.device)
        held, real = (steps - starts).clamp(max=SEGMENT_STEPS), (lengths - starts).clamp(1, SEGMENT_STEPS)
        return cls(torch.arange(steps, device=lengths.device) >= lengths, lengths, held / real)


class CAMPPlus(nn.Module):
    """Centred filterbank (B, F, 80) to style vectors (B, 192), not length-normalised."""

    UNUSED: tuple[str, ...] = ()

    def __init__(self, config: CAMPPlusConfig) -> None:
        super().__init__()
        self.head = ConvolutionHead()
        channels = config.init_channels
        bottleneck = config.bn_size * config.growth_rate
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["tdnn"] = TimeDelay(self.head.out_channels(config.feat_dim), channels)
        for number, (layers, dilation) in enumerate(DENSE_BLOCKS, start=1):
            stages[f"block{number}"] = DenseBlock(layers, channels, config.growth_rate, bottleneck, dilation)
            channels += layers * config.growth_rate
            stages[f"transit{number}"] = Transition(channels, channels // 2)
            channels //= 2
        stages["out_nonlinear"] = normalised_relu(channels)
        stages["stats"] = StatisticsPooling()
        stages["dense"] = Embedding(2 * channels, config.embedding_size)
        self.xvector = nn.Sequential(stages)

    def forward(self, fbank_centred: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, F, feat_dim) to (B, embedding_size).

        ``lengths`` (B,) int64, on the same device, counts the real frames of each row of a batch padded on the right, with anything:
        every row comes out as if it were alone. Without it all frames are real. Nothing waits for the device.
        """
        fbank = fbank_centred.transpose(1, 2)
        frames = steps = None
        if lengths is not None:
            frames = Real.of(lengths, fbank.shape[-1]).beyond
            steps = Real.of((lengths - 1) // 2 + 1, (fbank.shape[-1] - 1) // 2 + 1)  # as TimeDelay halves them
        x = zero_beyond(self.head(fbank, frames), frames)
        for stage in self.xvector:
            x = stage(x, steps) if isinstance(stage, (DenseBlock, StatisticsPooling)) else stage(x)
        return x


def zero_beyond(x: Tensor, beyond: Tensor | None) -> Tensor:
    """Zero the padding of (B, ..., T), so that a convolution sees what it sees at the end of a single clip."""
    return x if beyond is None else x.masked_fill(beyond, 0)


# ---------------------------------------------------------------------------------------------------------- 2-D head


class ConvolutionHead(nn.Module):
    """Residual convolutions over frequency and time that halve the frequency three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, HEAD_CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.layer1 = nn.Sequential(ResidualBlock(2), ResidualBlock(1))
        self.layer2 = nn.Sequential(ResidualBlock(2), ResidualBlock(1))
        self.conv2 = nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS)

    @staticmethod
    def out_channels(mels: int) -> int:
        """Rows that the head makes of ``mels`` frequencies."""
        for _ in range(3):
            mels = (mels + 1) // 2
        return HEAD_CHANNELS * mels

    def forward(self, fbank: Tensor, beyond: Tensor | None = None) -> Tensor:
        """(B, mels, F) to (B, 32 * mels / 8, F); ``beyond`` (B, 1, F) is true for padding, where the result means nothing."""
        beyond = None if beyond is None else beyond.unsqueeze(1)
        x = F.relu(self.bn1(self.conv1(zero_beyond(fbank.unsqueeze(1), beyond))))
        for layer in (self.layer1, self.layer2):
            for block in layer:
                x = block(x, beyond)
        x = F.relu(self.bn2(self.conv2(zero_beyond(x, beyond))))
        return x.flatten(1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; ``stride`` acts on the frequency."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.conv2 = nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(HEAD_CHANNELS, HEAD_CHANNELS, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(HEAD_CHANNELS))

    def forward(self, x: Tensor, beyond: Tensor | None = None) -> Tensor:
        """(B, 32, mels, F) to (B, 32, mels / stride, F); ``beyond`` (B, 1, 1, F) is true for padding."""
        x = zero_beyond(x, beyond)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(zero_beyond(y, beyond))) + self.shortcut(x))


# ---------------------------------------------------------------------------------------------- densely connected TDNN


def normalised_relu(channels: int) -> nn.Sequential:
    """BatchNorm and ReLU over (B, channels, T)."""
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))


class TimeDelay(nn.Module):
    """Convolution over time that halves the frame rate."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, channels, 5, stride=2, padding=2, bias=False)
        self.nonlinear = normalised_relu(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, F) to (B, channels, T), T = floor((F - 1) / 2) + 1."""
        y: Tensor = self.nonlinear(self.linear(x))
        return y


class DenseBlock(nn.Module):
    """Layers that each see everything made before them."""

    def __init__(self, layers: int, channels: int, growth: int, bottleneck: int, dilation: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"tdnnd{index + 1}", DenseLayer(channels + index * growth, growth, bottleneck, dilation))

    def forward(self, x: Tensor, real: Real | None = None) -> Tensor:
        """(B, C, T) to (B, C + layers * growth, T)."""
        for layer in self.children():
            x = torch.cat([x, layer(x, real)], dim=1)
        return x


class DenseLayer(nn.Module):
    """One layer of a block; the block joins its output to its input."""

    def __init__(self, channels: int, growth: int, bottleneck: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = normalised_relu(channels)
        self.linear1 = nn.Conv1d(channels, bottleneck, 1, bias=False)
        self.nonlinear2 = normalised_relu(bottleneck)
        self.cam_layer = ContextAwareMask(bottleneck, growth, dilation)

    def forward(self, x: Tensor, real: Real | None = None) -> Tensor:
        """(B, C, T) to the new channels (B, growth, T)."""
        y: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))), real)
        return y


class ContextAwareMask(nn.Module):
    """Convolution whose output is masked by the clip's mean plus the mean over the surrounding two seconds (section 2.3)."""

    def __init__(self, bottleneck: int, growth: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (DENSE_KERNEL - 1) // 2
        self.linear_local = nn.Conv1d(bottleneck, growth, DENSE_KERNEL, padding=padding, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(bottleneck, bottleneck // 2, 1)
        self.linear2 = nn.Conv1d(bottleneck // 2, growth, 1)

    def forward(self, x: Tensor, real: Real | None = None) -> Tensor:
        """(B, bottleneck, T) to (B, growth, T)."""
        if real is None:
            context = x.mean(dim=-1, keepdim=True) + segment_means(x)
        else:
            x = zero_beyond(x, real.beyond)
            context = x.sum(dim=-1, keepdim=True) / real.count + segment_means(x, real.share)
        mask = self.linear2(F.relu(self.linear1(context))).sigmoid()
        masked: Tensor = self.linear_local(x) * mask
        return masked


def segment_means(x: Tensor, share: Tensor | None = None) -> Tensor:
    """Replace each step of (B, C, T) by the mean of its segment of 100 steps; the last segment may be shorter.

    ``share``: of :class:`Real`, for means over the real steps of an ``x`` that is zero beyond them.
    """
    # ceil_mode divides the last window by the steps it really has.
    means = F.avg_pool1d(x, SEGMENT_STEPS, stride=SEGMENT_STEPS, ceil_mode=True)
    if share is not None:
        means = means * share
    return means.repeat_interleave(SEGMENT_STEPS, dim=-1)[..., : x.shape[-1]]


class Transition(nn.Module):
    """Narrows what a block has gathered."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.nonlinear = normalised_relu(in_channels)
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) to (B, out_channels, T)."""
        y: Tensor = self.linear(self.nonlinear(x))
        return y


class StatisticsPooling(nn.Module):
    """Mean and unbiased standard deviation over time."""

    def forward(self, x: Tensor, real: Real | None = None) -> Tensor:
        """(B, C, T) to (B, 2 C), over the real steps."""
        if real is None:
            return torch.cat([x.mean(dim=-1), x.std(dim=-1)], dim=-1)
        mean = zero_beyond(x, real.beyond).sum(dim=-1, keepdim=True) / real.count
        squares = zero_beyond(x - mean, real.beyond).square().sum(dim=-1, keepdim=True)
        return torch.cat([mean, (squares / (real.count - 1)).sqrt()], dim=1).squeeze(-1)


class Embedding(nn.Module):
    """Projection, standardised by running statistics without scale or shift."""

    def __init__(self, in_channels: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, size, 1, bias=False)
        self.nonlinear = nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(size, affine=False)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels) to (B, size)."""
        y: Tensor = self.nonlinear(self.linear(x.unsqueeze(-1)))
        return y.squeeze(-1)
