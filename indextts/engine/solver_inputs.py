"""Inputs of the fast solver's steps: how a batch is laid out in slots, and everything that stays the same from step to step.

Layout: samples are shifted in time so that all *windows* end the slots, ``[padding, prompt | window, padding]``. The window holds the
generated frames and the few before them that the WaveNet sees. Attention does not care where a frame lies as long as its rotation and
the mask go with it, and after the last attention nothing but the window matters: a plain slice. Of the rows, the first B are the
conditional branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

START_GRAIN = 32  # frames: in buckets, windows start at multiples of it, so that the prompt's part of one sample needs no padding


@dataclass
class StepInputs:
    """Buffers of one solve: B samples, S slots of which the last W are the window, R rows = B or, with guidance, 2 B."""

    x: Tensor  # (B, W, mel) float32, the state; the step changes it
    static: Tensor  # (R, S, C) what all but x adds to the first hidden state; or its ingredients, (R, S, mel + content + style)
    rotation: Tensor  # (1 or R, S, 1, 1, head_dim / 2) complex64
    mask: Tensor | None  # (1 or R, 1, 1, S) added to attention scores: 0 or -inf; None if every slot holds a frame
    spans: Tensor | None  # (2, 3 R + 1) int32: the same for the kernel that takes no mask; only one of the two is given
    taps: Tensor  # (n,) int64: rows of the flattened window that the WaveNet's convolutions read, ends reflected
    held: Tensor  # (B, W, 1) bool: where the state stays zero
    guidance: Tensor  # () float32
    row: Tensor  # (n,) float32: constants of this step's time

    @property
    def key(self) -> tuple[tuple[int, ...] | None, ...]:
        """Shapes of everything: inputs of equal key can share one graph."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(None if value is None else tuple(value.shape) for value in values)

    def copy_(self, other: StepInputs) -> None:
        """Overwrite these buffers with ``other``'s values."""
        for field in fields(self):
            into = getattr(self, field.name)
            if into is not None:
                into.copy_(getattr(other, field.name))

    def clone(self) -> StepInputs:
        """The same values in buffers of their own."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        copies: dict[str, Any] = {name: None if value is None else value.clone() for name, value in values}
        return StepInputs(**copies)


@dataclass(frozen=True)
class Placement:
    """Where the frames of a batch lie in the slots: sample b's frame f in slot ``f + shifts[b]``, its window in the last ``window``."""

    lengths: list[int]
    prompts: list[int]
    starts: list[int]  # first frame of each sample's window
    window: int
    slots: int
    padded: bool  # whether any slot holds no frame, or, in buckets, might

    @property
    def shifts(self) -> list[int]:
        """How far each sample is moved to the right."""
        return [self.slots - self.window - start for start in self.starts]

    @classmethod
    def of(
        cls,
        mu: Tensor,
        prompt_mel: Tensor,
        style: Tensor,
        noise: Tensor,
        lengths: Tensor | Sequence[int] | None,
        prompt_lengths: Tensor | Sequence[int] | None,
        *,
        halo: int | None,
        bucket: int,
    ) -> Placement:
        """Place a batch; ``halo`` None keeps the whole prompt in the window, ``bucket`` 1 rounds nothing up.

        Errors: ``ValueError`` for shapes or lengths that do not fit together.
        """
        batch, frames, _ = mu.shape
        prompt_frames = prompt_mel.shape[-1]
        if prompt_frames > frames or prompt_mel.shape[0] != batch or style.shape[0] != batch:
            raise ValueError(
                f"mu {tuple(mu.shape)}, prompt_mel {tuple(prompt_mel.shape)} and style {tuple(style.shape)} do not fit together: "
                "one row per sample, and mu must cover the prompt"
            )
        if noise.shape != (batch, prompt_mel.shape[1], frames):
            raise ValueError(f"noise must have shape {(batch, prompt_mel.shape[1], frames)}, got {tuple(noise.shape)}")
        ends, prompts = _host(lengths, batch, frames), _host(prompt_lengths, batch, prompt_frames)
        if any(not 0 <= p <= min(n, prompt_frames) or n > frames or n < 1 for n, p in zip(ends, prompts, strict=True)):
            raise ValueError(
                f"lengths {ends} must be 1 to {frames}, prompt_lengths {prompts} at most {prompt_frames} and within the sample"
            )
        grain = START_GRAIN if bucket > 1 else 1
        starts = [0 if halo is None else max(0, p - halo) // grain * grain for p in prompts]
        window = -(-max(n - start for n, start in zip(ends, starts, strict=True)) // bucket) * bucket
        exact = all(start == max(starts) and n - start == window for n, start in zip(ends, starts, strict=True))
        return cls(ends, prompts, starts, window, max(starts) + window, padded=bucket > 1 or not exact)

    def mel(self, x: Tensor, frames: int) -> Tensor:
        """The state (B, W, mel) as a mel (B, mel, frames)."""
        mel = x.new_zeros(x.shape[0], x.shape[2], frames)
        for into, row, n, p, start in zip(mel, x, self.lengths, self.prompts, self.starts, strict=True):
            into[:, p:n] = row[p - start : n - start].T
        return mel


def _host(lengths: Tensor | Sequence[int] | None, batch: int, full: int) -> list[int]:
    values = [full] * batch if lengths is None else [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(values) != batch:
        raise ValueError(f"{len(values)} lengths for {batch} samples")
    return values
