"""How the vocoder is run: number format, fused activations, memory order, graphs per bucket of lengths.

None of it changes what is computed. A bucket is a batch padded on the right, with which :class:`BigVGAN` gives each sample what it gets
alone. What rounds differently is the 16-bit format of the convolutions: activations, sums and the signal between blocks stay in float32,
and a result that overflowed is computed again in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.engine.fusion import Fusion
from indextts.engine.graphs import GraphedCall
from indextts.engine.host_vocoder import HostVocoder
from indextts.models.bigvgan import Activation, AMPBlock, BigVGAN, zero_beyond
from indextts.utils.gpu_config import GPUConfig

logger = logging.getLogger(__name__)
BUCKET = 64  # mel frames: lengths are rounded up to multiples of it where graphs are in use

Activate = Callable[[Tensor, Activation, Tensor | None, torch.dtype], Tensor]


def activate(x: Tensor, activation: Activation, lengths: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Anti-aliased activation of ``x`` (B, C, T) in float32, zero beyond ``lengths`` (B,), as ``dtype``; what a fused kernel must equal."""
    return zero_beyond(activation(x.float(), lengths), lengths).to(dtype)


def fused_activation(fusion: Fusion, device: torch.device, dtype: torch.dtype) -> Activate | None:
    """The kernel in place of :func:`activate` where one is wanted and right."""
    if not fusion.usable("vocoder", device, dtype):
        return None
    from indextts.engine.kernels import snake

    return snake.activate


def channels_last_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions in ``dtype`` were measured to be faster with the channels innermost on such a device."""
    if device.type != "cuda" or dtype == torch.float32:
        return False
    return GPUConfig.get_optimal_settings(torch.cuda.get_device_capability(device))["channels_last"]


def convolutions(vocoder: nn.Module) -> list[nn.Conv1d | nn.ConvTranspose1d]:
    """The layers of a vocoder that run in the format of the convolutions; none of another kind than BigVGAN."""
    layers = vocoder.modules() if isinstance(vocoder, BigVGAN) else ()
    return [layer for layer in layers if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d))]


class VocoderRunner:
    """Runs ``vocoder`` on ``device``; convolutions in ``dtype``. Call it with mels (B, num_mels, F) and, for a padded batch, lengths.

    ``fused``: a kernel in place of :func:`activate`. ``channels_last``: convolutions over (B, T, C) in memory, which tensor cores prefer.
    In 16 bits the weights of the vocoder's :func:`convolutions` may be elsewhere than on ``device``, and ``before_float32`` is called
    before it is to run on them after all. ``on_host``: as :class:`HostVocoder`, if all is in float32 on the CPU in the usual memory order.
    A vocoder of another kind than BigVGAN is called as it is.
    """

    def __init__(
        self,
        vocoder: nn.Module,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        fused: Activate | None = None,
        channels_last: bool = False,
        before_float32: Callable[[], None] | None = None,
        on_host: bool = False,
    ) -> None:
        self.vocoder, self.device = vocoder, device
        self._before_float32 = before_float32 or (lambda: None)
        self.graphs: GraphedCall | None = None
        self.dtype = dtype if isinstance(vocoder, BigVGAN) else torch.float32
        self.fused = fused if isinstance(vocoder, BigVGAN) else None
        self.channels_last = channels_last and isinstance(vocoder, BigVGAN)
        self._network: Callable[..., Tensor] = vocoder
        if isinstance(vocoder, BigVGAN) and (dtype != torch.float32 or fused is not None or channels_last):
            self._network = _Prepared(vocoder, device, dtype, fused or activate, channels_last)
        elif isinstance(vocoder, BigVGAN) and on_host and device.type == "cpu" and torch.backends.mkldnn.is_available():
            self._network = HostVocoder(vocoder)

    def __call__(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform (B, 1, hop F) float32 in [-1, 1]; with ``lengths`` (B,), in frames, each sample as it is alone, zero beyond its end."""
        wave = self._run(mel, lengths)
        if self.dtype == torch.float16 and not bool(torch.isfinite(wave).all()):
            logger.warning("float16 overflowed in the vocoder, which runs in float32 from now on")
            self.clear()
            self._before_float32()
            self._network, self.dtype, self.fused, self.channels_last = self.vocoder, torch.float32, None, False
            if self.graphs is not None:
                self.graphs.function = self._network
            wave = self._run(mel, lengths)
        return wave

    @property
    def on_host(self) -> bool:
        """Whether it runs as a :class:`HostVocoder`."""
        return isinstance(self._network, HostVocoder)

    # -------------------------------------------------------------------------------------------------------------- graphs

    def use_graphs(self, warmup_steps: int) -> None:
        """Replay from CUDA graphs, one per bucket of lengths, from now on. Errors: ``RuntimeError`` if a trial capture fails."""
        graphs = GraphedCall(self._network, warmup_steps)
        bands = self.vocoder.conv_pre.in_channels if isinstance(self.vocoder, BigVGAN) else 80
        graphs(torch.zeros(1, bands, BUCKET, device=self.device), torch.full((1,), BUCKET, device=self.device))
        graphs.clear()
        self.graphs = graphs

    @property
    def memory_mb(self) -> float:
        """Megabytes of graph pools."""
        return self.graphs.memory_mb if self.graphs is not None else 0.0

    def clear(self) -> None:
        """Drop captured graphs; they are made again when needed."""
        if self.graphs is not None:
            self.graphs.clear()

    def _run(self, mel: Tensor, lengths: Tensor | None) -> Tensor:
        if self.graphs is None:
            return self._network(mel) if lengths is None else self._network(mel, lengths)
        frames = mel.shape[-1]
        if lengths is None:
            lengths = torch.full((len(mel),), frames, device=mel.device)
        padded = F.pad(mel, (0, -frames % BUCKET))
        hop: int = self.vocoder.hop  # type: ignore[assignment]
        return self.graphs(padded, lengths)[..., : frames * hop]


class _Prepared:
    """A BigVGAN with its convolutions in another format or memory order; arithmetic as in :meth:`BigVGAN.unclamped`."""

    def __init__(self, vocoder: BigVGAN, device: torch.device, dtype: torch.dtype, activation: Activate, channels_last: bool) -> None:
        self.vocoder, self.device, self.dtype, self.activate, self.channels_last = vocoder, device, dtype, activation, channels_last
        self._weights: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
        for layer in convolutions(vocoder):
            self._weights[layer] = self._stored(layer.weight), None if layer.bias is None else layer.bias.detach().to(device, dtype)

    def __call__(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        network = self.vocoder
        x = self._convolved(network.conv_pre, zero_beyond(mel, lengths))
        for i, rate in enumerate(network.rates):
            x = self._convolved(next(network.ups[i].children()), zero_beyond(x, lengths)).float()
            lengths = None if lengths is None else lengths * rate
            first, *others = network.resblocks[i * network.blocks_per_stage : (i + 1) * network.blocks_per_stage]
            total = self._block(first, x, lengths)
            for block in others:
                total = total + self._block(block, x, lengths)
            x = total / network.blocks_per_stage
        wave = self._convolved(network.conv_post, self.activate(x, network.activation_post, lengths, self.dtype))
        wave = zero_beyond(wave.float(), lengths)
        return torch.tanh(wave) if network.use_tanh else wave.clamp(-1, 1)

    def _block(self, block: nn.Module, x: Tensor, lengths: Tensor | None) -> Tensor:
        assert isinstance(block, AMPBlock)
        activations = iter(block.activations)
        for convolutions in zip(block.convs1, block.convs2, strict=True):
            h = x
            for layer in convolutions:
                activation = next(activations)
                assert isinstance(activation, Activation)
                h = self._convolved(layer, self.activate(h, activation, lengths, self.dtype))
            x = x + h
        return x

    def _stored(self, weight: Tensor) -> Tensor:
        stored = weight.detach().to(self.device, self.dtype)
        return stored[:, :, None].contiguous(memory_format=torch.channels_last) if self.channels_last else stored

    def _convolved(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C', T'), in the format of the convolutions."""
        weight, bias = self._weights[layer]
        x = x.to(self.dtype)
        if self.channels_last:
            x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        wide = (0,) if self.channels_last else ()  # the height of one row
        if isinstance(layer, nn.ConvTranspose1d):
            transposed = F.conv_transpose2d if self.channels_last else F.conv_transpose1d
            y = transposed(x, weight, bias, stride=(*(1 for _ in wide), *layer.stride), padding=(*wide, *layer.padding))
        else:
            assert isinstance(layer, nn.Conv1d)
            assert not isinstance(layer.padding, str)
            ones = tuple(1 for _ in wide)
            shape = (*ones, *layer.stride), (*wide, *layer.padding), (*ones, *layer.dilation)
            y = F.conv2d(x, weight, bias, *shape) if self.channels_last else F.conv1d(x, weight, bias, *shape)
        return y[:, :, 0] if self.channels_last else y
