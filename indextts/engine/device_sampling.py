"""The rules of :mod:`indextts.engine.sampling` as fixed-shape tensor code that never waits for the device.

Same scores up to rounding and, from the same generator state, the same draws. What differs is the cost: the codes seen are a mask
instead of an ever longer list of ids, top-p looks at the k scores that top-k kept instead of sorting the vocabulary, and nothing is read
back by the host (``torch.multinomial`` reads whether its input is valid).
"""

from __future__ import annotations

import torch
from torch import Tensor

from indextts.engine.beam_search import Candidates
from indextts.engine.sampling import Draws, SamplingParams, top_k, top_p, typical


def shape_scores(scores: Tensor, seen: Tensor, params: SamplingParams) -> Tensor:
    """All stages of :func:`indextts.engine.sampling.process_scores`; ``scores`` and the mask of codes ``seen`` are ``(N, V)``."""
    keep = params.min_keep
    if params.repetition_penalty != 1.0:
        penalised = torch.where(scores < 0, scores * params.repetition_penalty, scores / params.repetition_penalty)
        scores = torch.where(seen, penalised, scores)
    if params.typical_sampling:
        scores = typical(scores, params.typical_mass, keep)
    if not params.do_sample:
        return scores
    if params.temperature != 1.0:
        scores = scores / params.temperature
    if params.top_k and params.top_p < 1.0:
        return top_k_then_top_p(scores, params.top_k, params.top_p, keep)
    if params.top_k:
        return top_k(scores, params.top_k, keep)
    return top_p(scores, params.top_p, keep) if params.top_p < 1.0 else scores


def top_k_then_top_p(scores: Tensor, k: int, p: float, min_keep: int = 1) -> Tensor:
    """``top_p(top_k(scores))`` of ``(N, V)`` without sorting V scores.

    Top-p removes from the lowest score upwards. What top-k leaves is, in that order, ``extra`` scores equal to the k-th (16-bit logits have
    many equals) and then the k highest. So all that has to be found is the lowest score that stays, and how many of its equals go.
    """
    best = scores.topk(min(max(k, min_keep), scores.shape[-1]), dim=-1).values
    ascending, lowest = best.flip(-1), best[..., -1:]
    extra = (scores >= lowest).sum(dim=-1, keepdim=True) - best.shape[-1]
    weights = (ascending - best[..., :1]).exp()
    share = weights[..., :1]  # of one of the extra scores, relative to the highest
    cumulative = extra * share + weights.cumsum(dim=-1)
    budget = (1 - p) * cumulative[..., -1:]
    # A share of 0 (of a score of -inf, say) fits any number of times.
    extra_removed = (budget / share).clamp(max=scores.shape[-1]).long().minimum(extra)
    best_removed = (cumulative <= budget).sum(dim=-1, keepdim=True)
    removed = torch.where(best_removed > 0, extra + best_removed, extra_removed).minimum(extra + best.shape[-1] - min_keep)
    boundary = ascending.gather(-1, (removed - extra).clamp(min=0))
    below = (ascending < boundary).sum(dim=-1, keepdim=True) + extra * (lowest < boundary)
    equal = scores == boundary
    return scores.masked_fill((scores < boundary) | (equal & (equal.cumsum(dim=-1) <= removed - below)), -torch.inf)


def draw_codes(scores: Tensor, do_sample: bool, generator: Draws) -> Tensor:
    """One code a row of ``(B, V)``: drawn from the softmax, or the best (the lowest of equals)."""
    return _race(scores.softmax(dim=-1), generator).argmax(dim=-1) if do_sample else scores.argmax(dim=-1)


def draw_candidates(scores: Tensor, stop: int, do_sample: bool, generator: Draws) -> Candidates:
    """:func:`indextts.engine.beam_search.choose_candidates` for scores ``(B, b, V)``, which are at most 0."""
    _, beams, vocabulary = scores.shape
    flat = scores.flatten(1)
    if not do_sample:
        best, index = flat.topk(2 * beams, dim=-1)
        return Candidates(best, index % vocabulary, index // vocabulary)
    probabilities = flat.softmax(dim=-1)
    # What cannot be drawn completes a draw that has too few: ranked by its score, which is below 0 and so below all that can. Stop never.
    fillers = scores.clamp(min=torch.finfo(scores.dtype).min)
    fillers.select(-1, stop).fill_(-torch.inf)
    ranking = torch.where(probabilities > 0, _race(probabilities, generator), fillers.flatten(1))
    drawn = ranking.topk(2 * beams, dim=-1).indices
    best, order = flat.gather(1, drawn).sort(dim=-1, descending=True)
    index = drawn.gather(1, order)
    return Candidates(best, index % vocabulary, index // vocabulary)


def _race(probabilities: Tensor, generator: Draws) -> Tensor:
    """Speeds of a race among exponential waiting times, in which the n fastest are n draws without replacement.

    ``torch.multinomial`` draws in this way, so its results are reproduced.
    """
    return probabilities / exponential_waits(probabilities, generator)


def exponential_waits(like: Tensor, generator: Draws) -> Tensor:
    """Waiting times of the shape ``(B, n)`` of ``like``, drawn from one generator, or from one a row."""
    waits = torch.empty_like(like)
    if generator is None or isinstance(generator, torch.Generator):
        waits.exponential_(generator=generator)
    else:
        for row, own in zip(waits, generator, strict=True):
            row.exponential_(generator=own)
    return waits
