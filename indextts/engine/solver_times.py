"""What an evaluation of the velocity needs and that depends on the time alone: constants, once the number of steps is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.engine.solver_weights import Savings, SolverWeights, blocks_of, convolution
from indextts.models.dit import DiT

ALIGNED = 64  # rows start at multiples of this many values, so that kernels may load several values at a time
PRODUCT_BIASES = ("wavenet", "attention_bias", "feed_forward_bias")  # in the format of the products they are added to


@dataclass
class TimeRow:
    """One time's constants; D blocks, L WaveNet layers, C channels. Which of the optional ones exist follows from the savings."""

    gain: Tensor  # (2 D + 1, C) of the adaptive norms: attention and feed-forward of each block, then the last norm
    offset: Tensor  # (2 D + 1, C)
    wavenet: Tensor  # (L, 2 C) condition plus bias of the gated convolutions
    dt: Tensor  # () length of the Euler step
    attention_bias: Tensor | None = None  # (D, 3 C) the offsets after the product that follows them
    feed_forward_bias: Tensor | None = None  # (D, 2 hidden)
    scale: Tensor | None = None  # (C,) of the final modulation
    shift: Tensor | None = None  # (C,)
    out_weight: Tensor | None = None  # (mel, C) final modulation, linear and output convolution in one
    out_bias: Tensor | None = None  # (mel,)


def only_for_tables(dit: DiT) -> list[nn.Module]:
    """The large layers that a solver with time tables needs for nothing else: it runs them once per number of steps."""
    norms = [norm for block in blocks_of(dit) for norm in (block.attention_norm, block.ffn_norm)]
    return [*(norm.project_layer for norm in [*norms, dit.transformer.norm]), dit.wavenet.cond_layer, dit.final_layer.adaLN_modulation]


class TimeTables:
    """Computes :class:`TimeRow` for given times; a row travels as one flat tensor, so that handing it to a graph is one copy."""

    def __init__(self, dit: DiT, weights: SolverWeights, device: torch.device, dtype: torch.dtype, savings: Savings) -> None:
        self.dit, self.weights, self.device, self.dtype, self.savings = dit, weights, device, dtype, savings
        self.norms = [norm for block in blocks_of(dit) for norm in (block.attention_norm, block.ffn_norm)] + [dit.transformer.norm]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._exact = 0  # values of a row before those in the format of the products
        self._tables: dict[int, Tensor] = {}

    def table(self, steps: int) -> Tensor:
        """(steps, n) float32, a row per Euler step: all constants, or with ``time_tables`` off just the time and the step length."""
        if steps not in self._tables:
            clock = euler_clock(steps, self.device)
            self._tables[steps] = self._rows(clock) if self.savings.time_tables else clock
        return self._tables[steps]

    def row(self, flat: Tensor) -> TimeRow:
        """The constants in one row of :meth:`table`."""
        if not self.savings.time_tables:
            flat = self._rows(flat[None])[0]
        exact, rounded = flat[: self._exact], flat[self._exact :].view(self.dtype)
        constants, places = {}, {False: 0, True: 0}
        for name, shape in self._shapes.items():
            of_products, size = name in PRODUCT_BIASES, math.prod(shape)
            source = rounded if of_products else exact
            constants[name] = source[places[of_products] : places[of_products] + size].view(shape)
            places[of_products] += size
        return TimeRow(**constants)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all tables made so far."""
        return sum(table.nbytes for table in self._tables.values())

    def clear(self) -> None:
        """Forget the tables; they are made again when needed."""
        self._tables.clear()

    def _rows(self, clock: Tensor) -> Tensor:
        """Flat rows for S pairs (time, step length), (S, 2)."""
        dit, weights, times = self.dit, self.weights, clock[:, 0].contiguous()
        t1, t2 = dit.t_embedder(times), dit.t_embedder2(times)
        projected = [norm.project_layer(t1).chunk(2, dim=-1) for norm in self.norms]
        gain = torch.stack([w * norm.norm.weight for (w, _), norm in zip(projected, self.norms, strict=True)], dim=1)
        offset = torch.stack([b for _, b in projected], dim=1)
        biases = torch.stack([convolution(layer)[1] for layer in dit.wavenet.in_layers])
        shift, scale = dit.final_layer.adaLN_modulation(t1).chunk(2, dim=-1)
        parts = {
            "gain": gain,
            "offset": offset,
            "wavenet": dit.wavenet.cond_layer(t2[:, :, None])[..., 0].unflatten(1, biases.shape) + biases,
        }
        if self.savings.folded_offsets:
            through = [(block.wqkv, block.w13) for block in weights.blocks]
            parts["attention_bias"] = torch.stack([offset[:, 2 * i] @ w.T.float() for i, (w, _) in enumerate(through)], dim=1)
            parts["feed_forward_bias"] = torch.stack([offset[:, 2 * i + 1] @ w.T.float() for i, (_, w) in enumerate(through)], dim=1)
        if self.savings.composed_maps:
            weight, bias = weights.final_out
            parts["out_weight"] = weight * (1 + scale)[:, None]
            parts["out_bias"] = F.linear(shift, weight, bias)
        else:
            parts |= {"scale": 1 + scale, "shift": shift}
        parts["dt"] = clock[:, 1]
        self._shapes = {name: tuple(part.shape[1:]) for name, part in parts.items()}
        # What products add is rounded here, not at every step, and its bits travel as float32.
        flat = {name: part.reshape(len(times), -1) for name, part in parts.items()}
        exact = _aligned([part for name, part in flat.items() if name not in PRODUCT_BIASES])
        rounded = _aligned([part.to(self.dtype) for name, part in flat.items() if name in PRODUCT_BIASES])
        self._exact = exact.shape[1]
        return torch.cat([exact, rounded.view(torch.float32)], dim=1)


def _aligned(parts: list[Tensor]) -> Tensor:
    """Side by side, (S, n), filled up to whole lines."""
    row = torch.cat(parts, dim=1)
    return F.pad(row, (0, -row.shape[1] % (2 * ALIGNED)))


def euler_clock(steps: int, device: torch.device) -> Tensor:
    """Time at which each of ``steps`` Euler steps starts, and its length: (steps, 2) float32."""
    grid = torch.linspace(0, 1, steps + 1, device=device, dtype=torch.float32)
    lengths = grid[1:] - grid[:-1]
    times, t = [], torch.zeros((), device=device, dtype=torch.float32)
    for dt in lengths:
        times.append(t)
        t = t + dt  # accumulated, as the release does
    return torch.stack([torch.stack(times), lengths], dim=1)
