"""Generate semantic codes: greedy search, sampling, beam search and beam sampling on the plain model.

This is the readable path with a growing cache, and the oracle of the fast ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.beam_search import BeamState, Hypothesis, choose_candidates
from indextts.engine.sampling import Draws, SamplingParams, draw, process_scores
from indextts.models.gpt import UnifiedVoice

OnStep = Callable[[int], None]

SILENCE = 52  # the code of silence


@dataclass(frozen=True)
class GeneratedCodes:
    """Result of :func:`generate` for B rows.

    ``codes``: ``(B, n)``, each row filled with stop codes from its end on. ``lengths``: ``(B,)`` codes before the first stop; 0 means
    that the model ended at once, so there is nothing to speak. ``hit_limit``: ``(B,)``, true where the limit came before a stop code.
    ``hypotheses``: with beams, what each row's search kept, best first; the first one is the row's result. Empty without beams.
    """

    codes: Tensor
    lengths: Tensor
    hit_limit: Tensor
    hypotheses: list[list[Hypothesis]] = field(default_factory=list)

    @property
    def scores(self) -> list[float] | None:
        """Score of each row's result; None without beams."""
        return [row[0].score for row in self.hypotheses] if self.hypotheses else None


@torch.no_grad()
def generate(
    model: UnifiedVoice,
    prefix: Tensor,
    mask: Tensor | None,
    params: SamplingParams,
    *,
    generator: Draws = None,
    on_step: OnStep | None = None,
    forced_codes: int | None = None,
) -> GeneratedCodes:
    """Codes for prefixes ``(B, P, D)`` with mask ``(B, P + 1)``, both from :meth:`UnifiedVoice.prefix`.

    ``generator``: where draws come from (None: torch's global generator of the device); the same state gives the same codes. With one
    generator a row, a row draws what it draws alone, so its codes do not depend on its batch; how far its generator has moved does.
    ``on_step(n)`` is called after the n-th code of every sequence was chosen; an exception in it cancels the generation.
    ``forced_codes``: for timing, exactly so many codes: stop is never chosen and ``max_mel_tokens`` does not count.
    Errors: ``ValueError`` if more codes are asked for than the model has positions.
    """
    limit = params.max_mel_tokens if forced_codes is None else forced_codes
    if not 1 <= limit <= model.max_codes:
        name = "max_mel_tokens" if forced_codes is None else "forced_codes"
        raise ValueError(f"{name} is {limit}; this model can generate 1 to {model.max_codes} codes")
    search = _beams if params.num_beams > 1 else _single
    return search(model, prefix, mask, params, limit, generator, on_step, forced_codes is not None)


def _single(
    model: UnifiedVoice,
    prefix: Tensor,
    mask: Tensor | None,
    params: SamplingParams,
    limit: int,
    generator: Draws,
    on_step: OnStep | None,
    forced: bool,
) -> GeneratedCodes:
    """One sequence a row, sampled or greedy."""
    stop = model.config.stop_mel_token
    placeholders = model.placeholder_ids(prefix)
    codes = placeholders[:, :0]
    ended = torch.zeros(prefix.shape[0], dtype=torch.bool, device=prefix.device)
    logits, cache = model.prefill(prefix, mask)
    for step in range(1, limit + 1):
        scores = process_scores(_without_stop(logits, stop) if forced else logits, torch.cat([placeholders, codes], dim=1), params)
        chosen = _choose(scores, params.do_sample, generator).masked_fill(ended, stop)
        codes = torch.cat([codes, chosen[:, None]], dim=1)
        ended |= chosen == stop
        if on_step is not None:
            on_step(step)
        if step == limit or bool(ended.all()):
            break
        logits, cache = model.decode_step(chosen, step, cache, mask)
    return _result(codes, stop)


def _choose(scores: Tensor, do_sample: bool, generator: Draws) -> Tensor:
    """One code a row, ``(B,)``: drawn, or the best (the lowest of equals)."""
    return draw(scores.softmax(dim=-1), 1, generator)[:, 0] if do_sample else scores.argmax(dim=-1)


def _beams(
    model: UnifiedVoice,
    prefix: Tensor,
    mask: Tensor | None,
    params: SamplingParams,
    limit: int,
    generator: Draws,
    on_step: OnStep | None,
    forced: bool,
) -> GeneratedCodes:
    """``num_beams`` sequences a row; the result is the best hypothesis."""
    rows, stop = prefix.shape[0], model.config.stop_mel_token
    state = BeamState(
        rows,
        params.num_beams,
        stop,
        limit,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        device=prefix.device,
    )
    # The prefix of a row is the same for all its beams: run it once, then repeat its keys and values.
    row_of_beam = torch.arange(rows, device=prefix.device).repeat_interleave(params.num_beams)
    placeholders = model.placeholder_ids(prefix)[row_of_beam]
    logits, cache = model.prefill(prefix, mask)
    logits, mask = logits[row_of_beam], None if mask is None else mask[row_of_beam]
    cache.reorder(row_of_beam)
    for step in range(1, limit + 1):
        scores = (_without_stop(logits, stop) if forced else logits).log_softmax(dim=-1)
        scores = process_scores(scores, torch.cat([placeholders, state.codes], dim=1), params) + state.scores[:, None]
        candidates = choose_candidates(scores.unflatten(0, (rows, -1)), stop, do_sample=params.do_sample, generator=generator)
        parents = state.advance(candidates)
        if on_step is not None:
            on_step(step)
        if step == limit or all(state.done):
            break
        cache.reorder(parents)
        logits, cache = model.decode_step(state.codes[:, -1], step, cache, mask)
    hypotheses = state.finish()
    return _result(state.best_codes(hypotheses), stop, hypotheses)


def _without_stop(logits: Tensor, stop: int) -> Tensor:
    return logits.index_fill(-1, torch.tensor([stop], device=logits.device), -torch.inf)


def _result(codes: Tensor, stop: int, hypotheses: list[list[Hypothesis]] | None = None) -> GeneratedCodes:
    return GeneratedCodes(codes, code_lengths(codes, stop), (codes != stop).all(dim=1), hypotheses or [])


def code_lengths(codes: Tensor, stop: int) -> Tensor:
    """Codes before the first stop in each row of ``(B, n)``: ``(B,)``."""
    return (codes == stop).cumsum(dim=1).eq(0).sum(dim=1)


def trim_codes(codes: Tensor, stop: int) -> tuple[Tensor, Tensor]:
    """Cut ``(B, n)`` at each row's first stop code: codes ``(B, longest)``, shorter rows filled with stop, and lengths ``(B,)``."""
    lengths = code_lengths(codes, stop)
    longest = int(lengths.max()) if len(lengths) else 0
    return _fill(codes[:, :longest], lengths, stop), lengths


def remove_long_silence(codes: Tensor, stop: int, *, silence: int = SILENCE, most: int = 30, keep: int = 10) -> tuple[Tensor, Tensor]:
    """Shorten pauses: in a row of ``(B, n)`` with more than ``most`` silence codes, keep ``keep`` of each run of them.

    Returns what :func:`trim_codes` does. The release offers this and does not use it.
    """
    rows = []
    for row, length in zip(codes, code_lengths(codes, stop).tolist(), strict=True):
        kept = row[:length]
        if int((row == silence).sum()) > most:
            kept = kept[_place_in_run(kept == silence) <= keep]
        rows.append(kept)
    lengths = torch.tensor([len(row) for row in rows], device=codes.device)
    longest = max(map(len, rows), default=0)
    return torch.stack([F.pad(row, (0, longest - len(row)), value=stop) for row in rows]), lengths


def _place_in_run(marked: Tensor) -> Tensor:
    """For each place of ``(n,)`` its number within its run of true values (1, 2, ..), 0 where false."""
    places = torch.arange(1, len(marked) + 1, device=marked.device)
    last_unmarked = places.masked_fill(marked, 0).cummax(dim=0).values if len(marked) else places
    return places - last_unmarked


def _fill(codes: Tensor, lengths: Tensor, stop: int) -> Tensor:
    return codes.masked_fill(torch.arange(codes.shape[1], device=codes.device) >= lengths[:, None], stop)
