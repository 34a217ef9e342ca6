"""How the scores of the next code are shaped before one is chosen.

Each stage is a pure function of scores ``(N, V)``; removed codes get -inf and nothing is renormalised. Order and edge cases are those
of Hugging Face Transformers' logits processors, which the release uses. Without beams the scores are the logits, with beams their
log-softmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

from indextts.config import InferenceConfig

Stage = Callable[[Tensor, Tensor], Tensor]  # (scores (N, V), ids so far (N, T)) -> scores
Draws = torch.Generator | Sequence[torch.Generator] | None  # one for all rows, or one for each; None: torch's global generator


@dataclass(frozen=True)
class SamplingParams:
    """Generation arguments of ``infer``; the defaults are the release's.

    ``top_k`` 0 or None, ``top_p`` 1, ``temperature`` 1 and ``repetition_penalty`` 1 switch their stage off. ``num_beams`` 1 is plain
    sampling, or greedy search without ``do_sample``. ``max_mel_tokens``: most codes, the stop included. ``length_penalty`` (exponent of
    the length by which a hypothesis's score is divided) and ``early_stopping`` (False, True or ``"never"``) act with beams only.
    Errors: ``TypeError`` or ``ValueError`` that names the argument.
    """

    do_sample: bool = True
    top_p: float = 0.8
    top_k: int | None = 30
    temperature: float = 0.8
    num_beams: int = 3
    repetition_penalty: float = 10.0
    length_penalty: float = 0.0
    max_mel_tokens: int = 1500
    typical_sampling: bool = False
    typical_mass: float = 0.9
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        for name in ("do_sample", "typical_sampling"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(f'early_stopping must be True, False or "never", got {self.early_stopping!r}')
        self._set("top_k", _whole("top_k", 0 if self.top_k is None else self.top_k, least=0))
        self._set("num_beams", _whole("num_beams", self.num_beams, least=1))
        self._set("max_mel_tokens", _whole("max_mel_tokens", self.max_mel_tokens, least=1))
        self._set("length_penalty", _number("length_penalty", self.length_penalty))
        self._set("temperature", _number("temperature", self.temperature, above=0.0))
        self._set("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, above=0.0))
        self._set("top_p", _number("top_p", self.top_p))
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"top_p must be between 0 and 1, got {self.top_p}")
        self._set("typical_mass", _number("typical_mass", self.typical_mass, above=0.0))
        if not self.typical_mass < 1.0:
            raise ValueError(f"typical_mass must be below 1, got {self.typical_mass}")

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_kwargs(cls, defaults: InferenceConfig, kwargs: Mapping[str, Any]) -> SamplingParams:
        """The caller's keywords over a configuration's defaults.

        ``num_return_sequences`` is accepted as 1, for scripts that state it. Errors: ``TypeError`` that lists the valid keywords for
        any other one, and those of the class.
        """
        names = [f.name for f in fields(cls)]
        given = dict(kwargs)
        if given.pop("num_return_sequences", 1) != 1:
            raise ValueError(f"num_return_sequences must be 1, got {kwargs['num_return_sequences']!r}")
        unknown = [name for name in given if name not in names]
        if unknown:
            raise TypeError(f"unknown generation argument {', '.join(map(repr, unknown))}; valid ones are {', '.join(names)}")
        return cls(**{name: getattr(defaults, name) for name in names if hasattr(defaults, name)} | given)

    @property
    def min_keep(self) -> int:
        """Codes that always survive top-k, top-p and the typical stage: with beams 2, so that stop is never the only choice."""
        return 2 if self.num_beams > 1 else 1


def score_stages(params: SamplingParams) -> list[tuple[str, Stage]]:
    """The stages that ``params`` switch on, in order, by name. Temperature, top-k and top-p act only when sampling."""
    keep = params.min_keep
    chain: list[tuple[str, Stage]] = []
    if params.repetition_penalty != 1.0:
        chain.append(("repetition_penalty", lambda scores, ids: repetition_penalty(scores, ids, params.repetition_penalty)))
    if params.typical_sampling:
        chain.append(("typical", lambda scores, _: typical(scores, params.typical_mass, keep)))
    if params.do_sample:
        if params.temperature != 1.0:
            chain.append(("temperature", lambda scores, _: scores / params.temperature))
        if top := params.top_k:
            chain.append(("top_k", lambda scores, _: top_k(scores, top, keep)))
        if params.top_p < 1.0:
            chain.append(("top_p", lambda scores, _: top_p(scores, params.top_p, keep)))
    return chain


def process_scores(scores: Tensor, ids: Tensor, params: SamplingParams) -> Tensor:
    """All stages: scores ``(N, V)`` and the ids so far, prefix placeholders included, ``(N, T)``, to scores ``(N, V)``."""
    for _, stage in score_stages(params):
        scores = stage(scores, ids)
    return scores


def repetition_penalty(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Make the ids seen less likely (arXiv 1909.05858): a score below 0 is multiplied by ``penalty``, others are divided by it.

    ``ids``: ``(N, T)``; an id counts once, however often it occurs.
    """
    seen = scores.gather(1, ids)
    return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def typical(scores: Tensor, mass: float, min_keep: int = 1) -> Tensor:
    """Locally typical sampling (arXiv 2202.00666): keep the codes whose information is nearest to the entropy, up to ``mass``."""
    logs = scores.log_softmax(dim=-1)
    entropy = -(logs.exp() * logs).nansum(dim=-1, keepdim=True)
    distance, order = torch.sort((-logs - entropy).abs(), dim=-1)
    cumulative = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
    # Rounding can leave every cumulative value below a mass close to 1: then nothing is removed.
    last = (cumulative < mass).sum(dim=-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    removed = distance > distance.gather(-1, last)
    removed[..., :min_keep] = False
    return _remove(scores, removed, order)


def top_k(scores: Tensor, k: int, min_keep: int = 1) -> Tensor:
    """Keep the ``max(k, min_keep)`` highest scores, and those equal to the lowest of them."""
    k = min(max(k, min_keep), scores.shape[-1])
    return scores.masked_fill(scores < scores.topk(k, dim=-1).values[..., -1:], -torch.inf)


def top_p(scores: Tensor, p: float, min_keep: int = 1) -> Tensor:
    """Nucleus sampling (arXiv 1904.09751): remove the least likely codes whose probabilities sum to at most ``1 - p``."""
    ascending, order = torch.sort(scores, dim=-1)
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    removed[..., -min_keep:] = False
    return _remove(scores, removed, order)


def draw(probabilities: Tensor, count: int, generator: Draws) -> Tensor:
    """``count`` different columns of each row of ``(B, n)``, drawn by their probabilities: ``(B, count)``."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.multinomial(probabilities, count, generator=generator)
    rows = zip(probabilities.split(1), generator, strict=True)
    return torch.cat([torch.multinomial(row, count, generator=own) for row, own in rows])


def _remove(scores: Tensor, removed: Tensor, order: Tensor) -> Tensor:
    """Set to -inf what ``removed`` marks in the sorted order ``order``."""
    return scores.masked_fill(torch.zeros_like(removed).scatter(-1, order, removed), -torch.inf)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _number(name: str, value: Any, above: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and number > above):
        raise ValueError(f"{name} must be a finite number{'' if above == -math.inf else f' above {above:g}'}, got {value}")
    return number
