"""The training loop that all stages share: a clock instead of a step count, mixed precision, averaged weights, curves, parts."""

from __future__ import annotations

import contextlib
import copy
import csv
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indextts.training.centring import Centring
from indextts.training.parts import load_part, part_path, restore, save_part, state_of
from indextts.training.replay import Replay

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LOG_EVERY = 50
_RUNAWAY = 1.5  # times the usual loss
_YOUNG = 20  # steps before Adam's second moments tell what is usual
# A linear layer over so many inputs moves its output by their number times the learning rate, if Adam agrees with itself, and the language
# model's conditioners have one over 7,600 inputs, all positive. Above this its rate falls with the number of inputs (arXiv 2203.03466).
# That alone did not keep them from saying the same of every clip (indextts.training.conditioning).
_WIDE, _NARROW = 2048, 512


@dataclass(frozen=True)
class StageSettings:
    """What a stage is told from outside.

    ``seconds``: how long this run may take from now on. ``plan_s``: how long the stage is planned to run in all its runs together; the
    learning rate falls over that time, and resumed runs go on where the part says they stopped, or with ``afresh`` count from now, so that
    the rate rises again. ``steps`` above 0 replaces both: the run has that many steps, however long they take.
    """

    parts: Path
    logs: Path
    device: torch.device
    seconds: float
    plan_s: float
    steps: int = 0
    afresh: bool = False
    precision: str = "fp32"
    size: str = "small"
    batch: float = 1.0  # factor on every batch size
    seed: int = 0
    save_every_s: float = 60.0
    warmup_steps: int = 150
    rate: float = 1.0  # factor on every learning rate
    replay: bool = True  # on CUDA, whole steps as graphs
    absolute_pitch: bool = False  # encoder and codec tell how high a voice is, not only how it moves


class LossScale:
    """Dynamic scaling of the loss for 16-bit gradients, without a question to the device; does nothing unless ``enabled``.

    A step with gradients that are not finite is skipped by the fused optimiser and halves the scale; many good ones double it.
    """

    def __init__(self, device: torch.device, enabled: bool, start: float = 2.0**14, patience: int = 500) -> None:
        self.enabled, self._patience = enabled, patience
        self.value = torch.tensor(start if enabled else 1.0, device=device)
        self._good = torch.tensor(0.0, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss * self.value if self.enabled else loss

    @torch.no_grad()
    def unscale(self, parameters: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> None:
        """True gradients in place; tells ``optimiser`` whether to skip."""
        if not self.enabled:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.value)
        finite = torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        optimiser.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        for gradient in gradients:  # the norm that clips must not become NaN
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        self._good.copy_(torch.where(finite, self._good + 1, 0))
        grown = self._good >= self._patience
        self.value.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)).clamp_(1.0, 2.0**20)
        self._good.mul_(torch.where(grown, 0.0, 1.0))


class Trainer:
    """Optimises ``modules`` (by the names that their part uses) until the clock runs out."""

    def __init__(
        self,
        name: str,
        modules: Mapping[str, nn.Module],
        settings: StageSettings,
        *,
        peak: float,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        clip: float = 1.0,
        average: float = 0.998,
        surge: float = math.inf,
        watched: str | None = "loss",
        patience: int = 1,
        setback: float = 0.6,
    ) -> None:
        """Beside the usual.

        ``surge``: a tensor's gradient is shortened to so many times its usual length, which Adam's own second moments tell.
        ``watched``: the value that is expected to fall; when it stays far above the usual for more than ``patience`` looks, all weights go
        back to those of before, and the rate becomes ``setback`` of what it was. ``None``: only if the loss is no number.
        """
        self.name, self.settings, self.surge = name, settings, surge
        self._watched, self._patience, self._setback = watched, patience, setback
        self._followers: list[Trainer] = []
        self._follows = False
        self.centred: list[Centring] = []  # layers whose steps are made as if their inputs had no mean
        self.modules = {key: module.to(settings.device) for key, module in modules.items()}
        self.facts: dict[str, Any] = {"steps": 0, "seconds": 0.0}
        self.resumed = part_path(settings.parts, name).is_file()
        if self.resumed:
            tensors, facts = load_part(settings.parts, name)
            known = {key: value for key, value in tensors.items() if key.split(".", 1)[0] in self.modules}
            kept = {key.split(".", 1)[0] for key in known}
            restore({key: module for key, module in self.modules.items() if key in kept}, known)
            self.facts.update(facts)
            logger.info("%s: resumed after %d steps, %.0f s", name, self.facts["steps"], self.facts["seconds"])
        for module in self.modules.values():
            module.requires_grad_(True)
        self.averaged = {key: copy.deepcopy(module).requires_grad_(False).eval() for key, module in self.modules.items()}
        self.parameters = [p for module in self.modules.values() for p in module.parameters()]
        wide = [p for p in self.parameters if p.dim() == 2 and p.shape[1] > _WIDE]
        matrices = [p for p in self.parameters if p.dim() > 1 and not any(p is other for other in wide)]
        others = [p for p in self.parameters if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        # On the device, so that a recorded step reads today's values: the learning rate, and the weight of the newest parameters.
        peak *= settings.rate
        self._rate = torch.tensor(peak, device=settings.device)
        self._newest = torch.tensor(1.0, device=settings.device)
        on_cuda = settings.device.type == "cuda"
        self._wide_rates = [(torch.tensor(peak, device=settings.device), _NARROW / p.shape[1]) for p in wide]
        groups += [{"params": [p], "weight_decay": weight_decay, "lr": r} for p, (r, _) in zip(wide, self._wide_rates, strict=True)]
        self.optimiser = torch.optim.AdamW(groups, lr=self._rate, betas=betas, fused=True, capturable=on_cuda)
        self.scale = LossScale(settings.device, enabled=settings.precision == "fp16" and on_cuda)
        self.peak, self.clip, self.average, self._memory = peak, clip, average, betas[1]
        self.least = 0.04 * peak  # the learning rate never falls below it
        self.began = self._saved = self._logged = time.monotonic()
        self.steps = self._noted = 0
        self._sums: dict[str, Tensor] = {}
        self._pairs: list[tuple[Tensor, Tensor]] = []  # averaged tensor, trained tensor
        self._good = [self._snapshot()] * 2  # the older is surely from before a loss began to rise
        self._usual = self._doubts = 0.0
        self._warm_from = 0
        self._before = float(self.facts["seconds"])

    # ------------------------------------------------------------------------------------------------------------- clock

    @property
    def elapsed(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self.began

    @property
    def progress(self) -> float:
        """Share of the planned training time that has passed, earlier runs included unless it is counted afresh; at most 1."""
        if self.settings.steps:
            return min(1.0, self.steps / self.settings.steps)
        before = 0.0 if self.settings.afresh else self._before
        return min(1.0, (before + self.elapsed) / max(self.settings.plan_s, 1e-9))

    @property
    def running(self) -> bool:
        """False when the time is over, or all steps are made."""
        if self.settings.steps:
            return self.steps < self.settings.steps
        return self.elapsed < self.settings.seconds

    def start_clock(self) -> None:
        """Begin to count time now, after waiting for data."""
        self.began = self._saved = self._logged = time.monotonic()

    # -------------------------------------------------------------------------------------------------------------- step

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision as the settings ask."""
        return autocast(self.settings)

    def step(self, loss: Tensor, **values: Tensor) -> None:
        """One update from ``loss``; ``values`` are logged beside it."""
        self.before_update()
        gradient = self.update(loss)
        self.after_update({"loss": loss, **values, "gradient": gradient})

    def replayed(self, losses: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> Callable[..., None]:
        """Whole steps of ``losses(*tensors) -> (loss, values to log)`` as one call, recorded on CUDA (:mod:`indextts.training.replay`)."""

        def whole(*inputs: Tensor) -> dict[str, Tensor]:
            with self.autocast():
                loss, values = losses(*inputs)
            gradient = self.update(loss)
            return {"loss": loss.detach(), **{key: value.detach() for key, value in values.items()}, "gradient": gradient}

        replay = Replay(whole, self.settings.device, enabled=self.settings.replay)

        def step(*inputs: Tensor) -> None:
            self.before_update()
            self.after_update(replay(*inputs))

        return step

    def before_update(self) -> None:
        """Put this step's learning rate and averaging weight where :meth:`update` finds them."""
        warm = min(1.0, (self.steps - self._warm_from + 1) / self.settings.warmup_steps)
        falling = max(0.0, self.progress - 0.25) / 0.75
        rate = warm * max(self.least, self.peak * 0.5 * (1 + math.cos(math.pi * falling)))
        self._rate.fill_(rate)
        for wide, factor in self._wide_rates:
            wide.fill_(factor * rate)
        keep = min(self.average, (1 + self.steps) / (10 + self.steps)) if not self.resumed else self.average
        self._newest.fill_(1 - keep)
        if not self._pairs:
            means, trained = state_of(self.averaged), state_of(self.modules)
            self._pairs = [(means[key], trained[key]) for key in trained if trained[key].is_floating_point()]

    def update(self, loss: Tensor) -> Tensor:
        """The part of a step that runs on the device alone: gradients, optimiser, averages. It asks the device for no value.

        Returns the norm of all gradients before they were clipped, ().
        """
        self.optimiser.zero_grad(set_to_none=True)
        self.scale.scaled(loss).backward()
        self.scale.unscale(self.parameters, self.optimiser)
        for layer in self.centred:
            layer.before()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if math.isfinite(self.surge):
            self._calm()
        self.optimiser.step()
        for layer in self.centred:
            layer.after()
        with torch.no_grad():
            means = [mean for mean, _ in self._pairs]
            moves = torch._foreach_sub([value for _, value in self._pairs], means)
            torch._foreach_mul_(moves, self._newest)
            torch._foreach_add_(means, moves)
        return norm.detach()

    @torch.no_grad()
    def _calm(self) -> None:
        """Shorten gradients that are suddenly long.

        Adam divides by what gradients have been: one that is 30 times as long as usual moves every weight of its tensor by 10 learning
        rates within a few steps, all of them the way that one moment of one wave asked for (arXiv 2304.13013, which lowers the rate).
        """
        known = [(p.grad, self.optimiser.state[p]) for p in self.parameters if p.grad is not None and self.optimiser.state[p]]
        if not known:
            return
        gradients = [gradient for gradient, _ in known]
        steps = torch.stack([state["step"] for _, state in known]).to(gradients[0].device)
        moments = torch.stack(torch._foreach_norm([state["exp_avg_sq"] for _, state in known], 1))
        usual = (moments / (1 - self._memory**steps).clamp(min=1e-6)).sqrt()
        factors = (self.surge * usual / torch.stack(torch._foreach_norm(gradients)).clamp(min=1e-20)).clamp(max=1.0)
        factors = torch.where(steps < _YOUNG, 1.0, factors)
        torch._foreach_mul_(gradients, list(factors.unbind()))

    def after_update(self, values: Mapping[str, Tensor]) -> None:
        """Count the step and keep its ``values`` (``loss`` among them) for the curves."""
        self.steps += 1
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0) + value.detach().float()
        if self.steps % (_LOG_EVERY if self.settings.device.type == "cuda" else 5) == 0:
            self._log()

    # --------------------------------------------------------------------------------------------------- curves and parts

    def note(self, **values: Tensor) -> None:
        """Say how a preparation that is no step of this trainer goes, now and then."""
        self._noted += 1
        if self._noted % _LOG_EVERY == 0:
            logger.info(
                "%s: preparation %d, %s", self.name, self._noted, ", ".join(f"{k} {float(v.detach()):.4f}" for k, v in values.items())
            )

    def _log(self) -> None:
        count = _LOG_EVERY if self.settings.device.type == "cuda" else 5
        means = {key: float(value) / count for key, value in self._sums.items()}
        self._sums = {}
        now = time.monotonic()
        row = {
            "steps": self.facts["steps"] + self.steps,
            "seconds": round(self._before + self.elapsed, 1),
            "rate": f"{float(self._rate):.2e}",
            "ms_per_step": round(1000 * (now - self._logged) / count, 1),
            **{key: round(value, 4) for key, value in means.items()},
        }
        self._logged = now
        self.settings.logs.mkdir(parents=True, exist_ok=True)
        _append_row(self.settings.logs / f"{self.name}.csv", row)
        logger.info("%s: %s", self.name, ", ".join(f"{key} {value}" for key, value in row.items()))
        # Beyond all bounds, gradients clip each other to nothing, and a step is only noise, however small the loss still is.
        finite = math.isfinite(means["loss"]) and math.isfinite(means.get("gradient", 0.0))
        self._judge(means[self._watched or "loss"] if finite else math.inf, self.steps % (10 * count) == 0)

    def _judge(self, value: float, due: bool) -> None:
        """Keep good weights now and then (``due``); go back to them when ``value`` is no number, or stays far above the usual."""
        raised = value / self._usual if self._usual > 0 and self._watched else 1.0
        self._doubts = self._doubts + 1 if raised > _RUNAWAY else 0
        if not math.isfinite(value) or self._doubts > self._patience:
            logger.warning("%s: %.3g after %.3g; going back to the last good weights", self.name, value, self._usual)
            for trainer in (self, *self._followers):
                trainer._go_back()
        elif raised < 1 + (_RUNAWAY - 1) / 3:
            self._usual = value if self._usual == 0 else 0.9 * self._usual + 0.1 * value
            if due and not self._follows:
                for trainer in (self, *self._followers):
                    trainer._good = [trainer._good[1], trainer._snapshot()]

    def follow(self, leader: Trainer) -> None:
        """Keep weights when ``leader`` does, and go back when it does: what was learnt from its bad work is forgotten with it."""
        leader._followers.append(self)
        self._follows = True

    def _snapshot(self) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in state_of(self.averaged).items()}

    def _go_back(self) -> None:
        """Back to the last good weights with a lower rate: one bad batch must not cost the run."""
        restore(self.modules, self._good[0])
        restore(self.averaged, self._good[0])
        self._good = [self._good[0]] * 2
        self.peak, self.least = self._setback * self.peak, self._setback * self.least
        self._doubts, self._warm_from = 0, self.steps
        for state in self.optimiser.state.values():  # in place, for recorded steps know these tensors
            for value in state.values():
                value.zero_()

    def save(self, extra: Mapping[str, Tensor] | None = None) -> None:
        """Write the averaged weights as the stage's part."""
        self._saved = time.monotonic()
        facts = {"size": self.settings.size, "steps": self.facts["steps"] + self.steps, "seconds": self._before + self.elapsed}
        save_part(self.settings.parts, self.name, {**state_of(self.averaged), **(extra or {})}, **facts)

    def save_if_due(self, extra: Callable[[], Mapping[str, Tensor]] | None = None) -> bool:
        """Save when ``save_every_s`` have passed since the last time; True if it did."""
        if time.monotonic() - self._saved < self.settings.save_every_s:
            return False
        self.save(extra() if extra else None)
        return True


def _append_row(path: Path, row: Mapping[str, object]) -> None:
    """Add ``row`` to a table; one with other columns, of an older recipe's run, is kept beside it."""
    if path.is_file():
        with path.open(newline="") as file:
            known = next(csv.reader(file), [])
        if known != list(row):
            path.rename(path.with_suffix(f".{int(path.stat().st_mtime)}.csv"))
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def autocast(settings: StageSettings) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision as the settings ask; on the CPU bf16 too (worth it where the processor has AMX), but not fp16."""
    on_cpu = settings.device.type == "cpu"
    dtype = None if on_cpu and settings.precision == "fp16" else PRECISIONS[settings.precision]
    return torch.autocast(settings.device.type, dtype=dtype, enabled=dtype is not None)


def wait_for(path: Path, what: str, timeout_s: float) -> None:
    """Wait until ``path`` exists; ``RuntimeError`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s in vain for {what} ({path})")
        time.sleep(0.2)
