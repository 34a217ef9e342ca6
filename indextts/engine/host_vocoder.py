"""The vocoder on the CPU: the same wave in a fraction of the passes over memory.

Signals are kept with the channels innermost. Even and odd samples of an activation's doubled rate are two rows of one picture, so that each
resampler is one depthwise convolution, with the snake's factors in its weights; a transposed convolution is an ordinary one that makes
several samples at a time. Samples of a batch are run one by one, each as long as it is, so that padding costs nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.models.bigvgan import TAPS, Activation, AMPBlock, BigVGAN

EDGE = TAPS // 2  # steps beyond an end that both resamplers read together
CACHED = 65536  # numbers a thread that stay in its cache through the snake
COPIED = 32 << 20  # bytes of weights of which a copy is kept in the order they are read in; beyond, each call puts them in order
TILE = 1024  # numbers of a factor repeated in a row, so that multiplying by it is not done a few channels at a time

Shape = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # stride, padding, dilation


class HostVocoder:
    """Runs ``vocoder`` in float32 on the CPU: :meth:`BigVGAN.forward`, up to rounding. It holds on to the weights of when it is made."""

    def __init__(self, vocoder: BigVGAN) -> None:
        self.vocoder = vocoder
        small = sum(parameter.nbytes for parameter in vocoder.parameters()) <= COPIED
        self._layers: dict[nn.Module, _Convolution] = {}
        self._activations: dict[nn.Module, _Resampled] = {}
        for part in vocoder.modules():
            if isinstance(part, (nn.Conv1d, nn.ConvTranspose1d)):
                self._layers[part] = _Convolution(part, copy=small)
            elif isinstance(part, Activation):
                self._activations[part] = _Resampled(part)

    def __call__(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform (B, 1, hop F) of mels (B, num_mels, F); with ``lengths`` (B,), in frames, zero beyond each sample's end."""
        frames = [mel.shape[-1]] * len(mel) if lengths is None else [int(n) for n in lengths]
        waves = mel.new_zeros(len(mel), 1, self.vocoder.hop * mel.shape[-1])
        for one, wave, n in zip(mel, waves, frames, strict=True):
            wave[:, : self.vocoder.hop * n] = self._alone(one[:, :n])
        return waves

    def _alone(self, mel: Tensor) -> Tensor:
        """(num_mels, F) to (1, hop F)."""
        network = self.vocoder
        x = self._layers[network.conv_pre](_picture(mel.t()))
        for i, _ in enumerate(network.rates):
            x = self._layers[next(network.ups[i].children())](x)
            first, *others = network.resblocks[i * network.blocks_per_stage : (i + 1) * network.blocks_per_stage]
            total = self._block(first, x)
            for block in others:
                total += self._block(block, x)
            x = total.div_(network.blocks_per_stage)
        wave = self._layers[network.conv_post](self._activations[network.activation_post](x))[0, :, 0]
        return wave.tanh_() if network.use_tanh else wave.clamp_(-1, 1)

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(block, AMPBlock)
        for i, pair in enumerate(zip(block.convs1, block.convs2, strict=True)):
            h = x
            for layer, activation in zip(pair, block.activations[2 * i : 2 * i + 2], strict=True):
                h = self._layers[layer](self._activations[activation](h))
            x = h.add_(x)
        return x


class _Convolution:
    """A layer of the vocoder on pictures (1, C, 1, T) in memory order (T, C)."""

    def __init__(self, layer: nn.Conv1d | nn.ConvTranspose1d, *, copy: bool) -> None:
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        self.rate, shape = 1, (layer.stride[0], layer.padding[0], layer.dilation[0])
        if isinstance(layer, nn.ConvTranspose1d):
            self.rate = layer.stride[0]
            weight, padding = _several_at_a_time(weight, self.rate, int(layer.padding[0]))
            bias, shape = None if bias is None else bias.repeat(self.rate), (1, padding, 1)
        self.weight, self.bias = weight[:, :, None], bias
        if copy:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)
        self.shape: Shape = ((1, int(shape[0])), (0, int(shape[1])), (1, int(shape[2])))

    def __call__(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, *self.shape)
        return y if self.rate == 1 else _picture(y.permute(0, 2, 3, 1).reshape(self.rate * y.shape[3], -1))


class _Resampled:
    """:class:`Activation` of pictures (1, C, 1, T).

    The first convolution gives ``e^alpha`` times the doubled signal, z; the second one takes ``(z + sin(z)^2 e^alpha / e^beta) / e^alpha``.
    """

    def __init__(self, activation: Activation) -> None:
        taps, alpha, beta = activation.taps.detach(), activation.act.alpha.detach().exp(), activation.act.beta.detach().exp()
        self.channels = len(alpha)
        # With a row of padding above and below, the first output row is made by the lower row of the kernel, and the second by the upper.
        up, down = taps.new_zeros(2, TAPS // 2 + 1), taps.new_zeros(2, TAPS // 2 + 1)
        up[1, :-1], up[0, 1:] = 2 * taps[1::2].flip(0), 2 * taps[::2].flip(0)
        down[0, 1:], down[1, :-1] = taps[1::2], taps[::2]
        each = alpha[:, None, None, None]
        self.up, self.down = (w.contiguous(memory_format=torch.channels_last) for w in (up * each, down / each))
        self.repeats = max(1, TILE // self.channels)
        self.factor = (alpha / (beta + 1e-9)).repeat(self.repeats)

    def __call__(self, x: Tensor) -> Tensor:
        frames = x.shape[3]
        width = -(-(frames + EDGE) // self.repeats) * self.repeats
        z = F.conv2d(self._held(x, width + EDGE), self.up, None, 1, (1, 0), 1, self.channels)  # even samples, and odd ones below
        z = z.contiguous(memory_format=torch.channels_last)  # which it is with most libraries
        flat = z.permute(0, 2, 3, 1).view(-1, len(self.factor))
        for part in flat.split(max(1, CACHED * torch.get_num_threads() // len(self.factor))):
            part.addcmul_(torch.sin(part).square_(), self.factor)
        end = frames + EDGE // 2
        z[..., : EDGE // 2], z[..., end : end + EDGE // 2] = z[:, :, :1, EDGE // 2, None], z[:, :, 1:, end - 1, None]
        return F.conv2d(z, self.down, None, 1, 0, 1, self.channels)[..., :frames]

    def _held(self, x: Tensor, width: int) -> Tensor:
        """``x`` with its ends repeated, ``EDGE`` times at the left, and to a length of ``width`` in all."""
        held = x.new_empty(width, self.channels)
        signal = x[0, :, 0].t()
        held[:EDGE], held[EDGE : EDGE + len(signal)], held[EDGE + len(signal) :] = signal[:1], signal, signal[-1:]
        return _picture(held)


def _picture(x: Tensor) -> Tensor:
    """(T, C) as (1, C, 1, T)."""
    return x[None, None].permute(0, 3, 1, 2)


def _several_at_a_time(weight: Tensor, rate: int, padding: int) -> tuple[Tensor, int]:
    """Weight (rate out, in, n) and padding of the convolution whose output (rate out, T) is that of a transposed one, (out, rate T)."""
    inputs, outputs, taps = weight.shape
    reach = max(-(-(taps - padding) // rate) - 1, padding // rate, (rate - 1 + padding) // rate)
    several = weight.new_zeros(rate, outputs, inputs, 2 * reach + 1)
    for phase in range(rate):
        for step in range(-reach, reach + 1):  # the input frame, counted from the output's
            if 0 <= (tap := phase + padding - rate * step) < taps:
                several[phase, :, :, reach + step] = weight[:, :, tap].t()
    return several.flatten(0, 1), reach
