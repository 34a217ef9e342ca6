"""The fast flow-matching solver: the same mel as ``FlowMatching.solve`` in a fraction of the work, launches and memory traffic.

Guidance, Euler steps and estimator are those of Seed-VC (arXiv 2411.09943) as IndexTTS2 uses them; every shortcut is a switch of
:class:`Savings` and exact up to float32 rounding. What is not exact is the optional 16-bit format of the matrix products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from indextts.engine.solver_attention import can_pack, packed_spans
from indextts.engine.solver_graphs import MB, StepGraphs
from indextts.engine.solver_inputs import Placement, StepInputs
from indextts.engine.solver_ops import SolverOps
from indextts.engine.solver_step import SolverStep
from indextts.engine.solver_weights import Savings
from indextts.models.dit import rotation_table
from indextts.models.s2mel import S2Mel
from indextts.models.wavenet import reflection_index

__all__ = ["FastSolver", "Savings"]

logger = logging.getLogger(__name__)
BUCKET = 64  # frames: windows are rounded up to multiples of it where graphs are in use


class FastSolver:
    """Prepared copy of an S2Mel's estimator on ``device``; matrix products in ``dtype``, everything else in float32.

    A float16 solve that overflowed is done again in bfloat16, which then stays in use. ``ops``: the kernels between the products.
    ``use_graphs`` replays every Euler step from a CUDA graph per bucket; elsewhere than on CUDA, and if capturing fails, steps run
    eagerly, after one log line. ``bucket_frames`` (64 with graphs, 1 without) rounds windows up. The model must be in float32, and on
    ``device`` but for what :func:`.solver_products` lists; make a new solver when its weights have changed, and call :meth:`clear` when
    the way in which float32 products or attention run has, since tables and graphs hold on to it. Single evaluations are captured: any
    number of steps then shares a graph, and a solve can be cancelled between steps. With ``whole_loop`` all steps are one graph, which is
    cancelled before or after.
    """

    def __init__(
        self,
        s2mel: S2Mel,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        use_graphs: bool,
        savings: Savings | None = None,
        bucket_frames: int | None = None,
        warmup_steps: int = 3,
        most_graphs: int = 64,
        ops: type[SolverOps] = SolverOps,
        whole_loop: bool = False,
    ) -> None:
        self.device = device
        self.savings = Savings.best(device) if savings is None else savings
        self._model, self.ops, self.whole_loop = s2mel, ops, whole_loop
        self._head_dim = s2mel.cfm.estimator.transformer.head_dim
        self._rotation = torch.empty(0, 0, dtype=torch.complex64, device=device)
        self.graphs: StepGraphs | None = None
        self._prepare(dtype)
        if use_graphs and device.type == "cuda":
            self.graphs = StepGraphs(self.step, device, warmup_steps=warmup_steps, most=most_graphs)
        elif use_graphs:
            logger.info("CUDA graphs need a CUDA device; the solver runs eagerly on %s", device)
        self.bucket_frames = bucket_frames or (BUCKET if self.graphs else 1)

    def _prepare(self, dtype: torch.dtype) -> None:
        """Weights in the format of the products."""
        self.dtype = dtype
        with torch.inference_mode():
            self.step = SolverStep(self._model.cfm.estimator, self.device, dtype, self.savings, self.ops)
        if self.graphs is not None:
            self.graphs.clear()
            self.graphs.step = self.step
        self._packs = self.savings.packed_attention and can_pack(self.device, dtype, self._head_dim)

    @torch.inference_mode()
    def solve(
        self,
        mu: Tensor,
        prompt_mel: Tensor,
        style: Tensor,
        *,
        steps: int,
        guidance: float,
        noise: Tensor,
        on_step: Callable[[int, int], None] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        prompt_lengths: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Mel (B, mel, T) of prompt and target together; zero in the prompt and beyond each sample's length.

        Arguments as in ``FlowMatching.solve``; ``lengths`` and ``prompt_lengths`` are read on the host, so lists and CPU tensors spare
        a wait for the device. ``on_step(done, steps)`` is called on the host after each step, and an exception in it cancels the rest;
        on a GPU it counts steps handed to the device, which may still be at work on them. Errors: ``ValueError`` for fewer than one
        step or shapes and lengths that do not fit together.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        halo = self.step.halo if self.savings.trim_last_block else None
        place = Placement.of(mu, prompt_mel, style, noise, lengths, prompt_lengths, halo=halo, bucket=self.bucket_frames)
        table = self.step.times.table(steps)
        inputs, advance, loops = self._runner(self._inputs(place, mu, prompt_mel, style, noise, guidance, table[0]), table)
        for done, row in enumerate(table, 1):
            if not loops:
                inputs.row.copy_(row)
                advance()
            elif done == 1:
                advance()
            if on_step is not None:
                on_step(done, steps)
        mel = place.mel(inputs.x, mu.shape[1])
        if self.dtype == torch.float16 and not bool(torch.isfinite(mel).all()):
            logger.warning("float16 overflowed in the mel solver, which multiplies in bfloat16 from now on")
            self._prepare(torch.bfloat16)
            again = {"lengths": lengths, "prompt_lengths": prompt_lengths}
            return self.solve(mu, prompt_mel, style, steps=steps, guidance=guidance, noise=noise, on_step=on_step, **again)
        return mel

    @property
    def captured(self) -> list[dict[str, Any]]:
        """Recorded graphs, least recently used first: samples, slots, window, whether guided, megabytes."""
        return self.graphs.captured if self.graphs else []

    @property
    def memory_mb(self) -> float:
        """Megabytes that the solver holds beside the model: prepared weights, tables and graphs."""
        shared = {tensor.untyped_storage().data_ptr() for tensor in self._model.parameters()}
        own = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self.step.weights.tensors()}
        held = sum(size for address, size in own.items() if address not in shared)
        return (held + self.step.times.memory_bytes + self._rotation.nbytes) / MB + (self.graphs.memory_mb if self.graphs else 0.0)

    def clear(self) -> None:
        """Drop graphs and tables; they are made again when needed. Prepared weights stay."""
        if self.graphs:
            self.graphs.clear()
        self.step.times.clear()

    def _runner(self, inputs: StepInputs, table: Tensor) -> tuple[StepInputs, Callable[[], None], bool]:
        """Buffers to work on, what advances them, and whether it does so by all steps of ``table`` instead of one."""
        if self.graphs is not None:
            try:
                entry = self.graphs.load(inputs, table if self.whole_loop else None)
            except RuntimeError as error:
                logger.warning("CUDA graphs of the solver could not be captured on %s, it runs eagerly from now on: %s", self.device, error)
                self.graphs = None
            else:
                return entry.inputs, entry.replay, self.whole_loop
        return inputs, lambda: self.step(inputs), False

    def _inputs(
        self, place: Placement, mu: Tensor, prompt_mel: Tensor, style: Tensor, noise: Tensor, guidance: float, row: Tensor
    ) -> StepInputs:
        """Everything that the steps of one solve share."""
        batch, device = len(place.lengths), self.device
        # Nothing here waits for the device: while it is at work on the latents, the host gets ahead.
        facts = torch.tensor([place.lengths, place.prompts, place.starts, place.shifts])
        lengths, prompts, starts, shifts = facts.to(device, non_blocking=True)[..., None]
        frame = torch.arange(place.slots, device=device) - shifts  # (B, S): the frame in each slot
        valid, in_prompt = (frame >= 0) & (frame < lengths), frame < prompts
        source, sample = frame.clamp(0, mu.shape[1] - 1), torch.arange(batch, device=device)[:, None]

        prompt = torch.zeros_like(noise)
        prompt[..., : prompt_mel.shape[-1]] = prompt_mel
        prompt = prompt.transpose(1, 2)[sample, source].masked_fill(~in_prompt[..., None], 0)
        static = torch.cat([prompt, mu[sample, source], style[:, None].expand(-1, place.slots, -1)], dim=-1)
        branches = 2 if guidance > 0 else 1
        if branches == 2:  # the null branch sees zeros
            static = torch.cat([static, torch.zeros_like(static)])

        def per_row(x: Tensor) -> Tensor:
            """An entry for each row; a single sample's serves both branches as it is."""
            return x if batch == 1 else x.repeat(branches, *[1] * (x.dim() - 1))

        window = slice(place.slots - place.window, None)
        held = (in_prompt | ~valid)[:, window, None]
        mask = spans = None
        if place.padded and self._packs:
            spans = packed_spans(shifts[:, 0].repeat(branches), lengths[:, 0].repeat(branches), place.slots, place.window)
        elif place.padded:
            mask = per_row(torch.zeros(valid.shape, dtype=self.dtype, device=device).masked_fill(~valid, float("-inf"))[:, None, None])
        return StepInputs(
            x=noise.transpose(1, 2)[sample, source[:, window]].masked_fill(held, 0),
            static=self.step.merge(static) if self.savings.static_inputs else static,
            rotation=per_row(self._rotations(mu.shape[1])[source][:, :, None, None]),
            mask=mask,
            spans=spans,
            taps=self._taps((lengths - starts)[:, 0].repeat(branches), place.window),
            held=held,
            guidance=torch.full((), guidance, dtype=torch.float32, device=device),
            row=row.clone(),
        )

    def _taps(self, ends: Tensor, window: int) -> Tensor:
        """Slots of the flattened windows under the WaveNet's kernels, each row reflected at its own end; ``ends`` (R,)."""
        left, right = self.step.left, self.step.right
        read = reflection_index(ends, window, left, right).clamp(max=window - 1)
        if self.savings.convolution_as_product:
            read = read.unfold(1, left + 1 + right, 1).flatten(1)
        return (read + torch.arange(len(read), device=read.device)[:, None] * window).flatten()

    def _rotations(self, frames: int) -> Tensor:
        """Rotations of the positions from 0 to ``frames`` - 1 or beyond, (n, head_dim / 2) complex64; kept for the next solve."""
        if len(self._rotation) < frames:
            self._rotation = torch.complex(*rotation_table(max(frames, 2 * len(self._rotation)), self._head_dim, self.device))
        return self._rotation
