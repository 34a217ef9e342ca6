"""The vocoder in chunks: the same wave in pieces, so that the first leaves early and memory does not grow with the length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from indextts.models.bigvgan import TAPS, AMPBlock, BigVGAN


def context_frames(vocoder: BigVGAN) -> int:
    """Mel frames to each side on which a frame of wave depends: chunks with this context join exactly."""
    resampling = TAPS // 2 - 1  # of an activation, up and down again, in samples at its own rate
    reach = 3 + resampling  # the last convolution and activation
    for stage in reversed(range(len(vocoder.rates))):
        blocks = vocoder.resblocks[stage * vocoder.blocks_per_stage : (stage + 1) * vocoder.blocks_per_stage]
        reach += max(_block_reach(block, resampling) for block in blocks)
        up: nn.ConvTranspose1d = vocoder.ups[stage][0]  # type: ignore[index]
        reach = math.ceil((reach + up.kernel_size[0] - 1 - int(up.padding[0])) / up.stride[0])
    return reach + 3  # the first convolution


def vocode_in_chunks(vocoder: nn.Module, run: Callable[[Tensor], Tensor], mel: Tensor, frames: int | None) -> Iterator[Tensor]:
    """Waves (1, samples) that join to ``run(mel)``, which runs ``vocoder``: of ``frames`` mel frames each, or of all for None.

    Every chunk costs twice the context on top. A vocoder whose reach has no limit makes a single piece.
    """
    length = mel.shape[-1]
    if frames is None or frames >= length or not isinstance(vocoder, BigVGAN):
        yield run(mel)
        return
    context, hop = context_frames(vocoder), vocoder.hop
    for first in range(0, length, frames):
        begin, end = max(0, first - context), min(length, first + frames + context)
        wave = run(mel[:, :, begin:end])
        yield wave[:, hop * (first - begin) : hop * (min(first + frames, length) - begin)].clone()


def _block_reach(block: nn.Module, resampling: int) -> int:
    assert isinstance(block, AMPBlock)
    convolutions = [c for c in [*block.convs1, *block.convs2] if isinstance(c, nn.Conv1d)]
    return sum(resampling + c.dilation[0] * (c.kernel_size[0] - 1) // 2 for c in convolutions)
