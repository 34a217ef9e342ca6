"""Flow matching (arXiv 2210.02747) with classifier-free guidance (arXiv 2207.12598): from noise to mel in plain Euler steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from indextts.config import S2MelConfig
from indextts.models.dit import DiT


class FlowMatching(nn.Module):
    """Solver around the velocity estimator; the oracle that faster solvers are compared with."""

    def __init__(self, s2mel: S2MelConfig) -> None:
        super().__init__()
        self.estimator = DiT(s2mel)

    def solve(
        self,
        mu: Tensor,
        prompt_mel: Tensor,
        style: Tensor,
        *,
        steps: int = 25,
        guidance: float = 0.7,
        noise: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        lengths: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Solve for the mel (B, mel, T) of prompt and target together; the prompt's frames come back as zeros.

        ``mu`` (B, T, content): conditions of the prompt, then of the target; ``prompt_mel`` (B, mel, P); ``style`` (B, style);
        ``noise`` (B, mel, T), drawn with ``generator`` when absent. For a padded batch, ``lengths`` (B,) are the valid frames of
        ``mu`` and ``prompt_lengths`` (B,) those of ``prompt_mel``: each sample then comes out as it does alone, zero beyond its
        length. ``guidance`` 0 skips the unconditional branch. ``on_step(done, steps)`` is called after every Euler step.
        Errors: ``ValueError`` for fewer than one step or shapes that do not fit together.
        """
        batch, frames, _ = mu.shape
        bands, prompt_frames = prompt_mel.shape[1:]
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if prompt_frames > frames or prompt_mel.shape[0] != batch or style.shape[0] != batch:
            raise ValueError(
                f"mu {tuple(mu.shape)}, prompt_mel {tuple(prompt_mel.shape)} and style {tuple(style.shape)} do not fit together: "
                "one row per sample, and mu must cover the prompt"
            )
        if noise is None:
            noise = torch.randn(batch, bands, frames, device=mu.device, dtype=mu.dtype, generator=generator)
        elif noise.shape != (batch, bands, frames):
            raise ValueError(f"noise must have shape {(batch, bands, frames)}, got {tuple(noise.shape)}")

        # Where the state is held at zero: the prompt, and what lies beyond the sample.
        position = torch.arange(frames, device=mu.device)
        in_prompt = (position < (prompt_frames if prompt_lengths is None else prompt_lengths[:, None])).expand(batch, -1)[:, None]
        held = in_prompt if lengths is None else in_prompt | (position >= lengths[:, None])[:, None]
        prompt_x = torch.zeros_like(noise)
        prompt_x[..., :prompt_frames] = prompt_mel
        prompt_x = prompt_x.masked_fill(~in_prompt, 0)

        x = (noise * temperature).masked_fill(held, 0)
        times = torch.linspace(0, 1, steps + 1, device=mu.device, dtype=torch.float32)
        t = torch.zeros(batch, device=mu.device, dtype=torch.float32)
        for step in range(1, steps + 1):
            dt = times[step] - times[step - 1]
            x = (x + dt * self.velocity(x, prompt_x, t, style, mu, guidance, lengths)).masked_fill(held, 0)
            t = t + dt  # accumulated, as the release does: not the same float32 values as ``times``
            if on_step is not None:
                on_step(step, steps)
        return x

    def velocity(
        self, x: Tensor, prompt_x: Tensor, t: Tensor, style: Tensor, mu: Tensor, guidance: float, lengths: Tensor | None = None
    ) -> Tensor:
        """Guided velocity (B, mel, T): both branches in one batch of 2 B; the null branch sees zeros for prompt, style and mu."""
        if guidance <= 0:
            v: Tensor = self.estimator(x, prompt_x, t, style, mu, lengths)
            return v
        v, null = self.estimator(
            torch.cat([x, x]),
            torch.cat([prompt_x, torch.zeros_like(prompt_x)]),
            torch.cat([t, t]),
            torch.cat([style, torch.zeros_like(style)]),
            torch.cat([mu, torch.zeros_like(mu)]),
            None if lengths is None else torch.cat([lengths, lengths]),
        ).chunk(2)
        return (1 + guidance) * v - guidance * null
