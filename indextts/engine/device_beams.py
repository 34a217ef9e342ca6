"""Beam search and beam sampling with all bookkeeping on the device; the oracle is :class:`indextts.engine.beam_search.BeamState`.

No sequence is stored: a beam is a column of the tables of codes and parents, and a finished hypothesis is the place in them where it
ended. The codes are read out once, backwards from there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indextts.engine.beam_search import UNBORN, BeamState, Candidates, Hypothesis
from indextts.engine.device_sampling import draw_candidates, shape_scores
from indextts.engine.device_search import Search
from indextts.engine.generate import GeneratedCodes, code_lengths
from indextts.engine.sampling import Draws, SamplingParams
from indextts.models.gpt import UnifiedVoice


class BeamSearch(Search):
    """``beams`` sequences a row.

    ``scores``: running scores ``(B, b)``. Finished hypotheses are slots ``(B, b)``, worst first and the older first among equals:
    ``found_score``; ``found_step``, the step of the stop code, 0 where the slot is empty (those come first); ``found_beam``, whose codes
    up to then they are.
    """

    def __init__(self, model: UnifiedVoice, rows: int, beams: int, device: torch.device) -> None:
        super().__init__(model, rows, beams, device)
        exact = torch.float32 if device.type == "mps" else torch.float64  # Python's floats, where the device has them
        with torch.inference_mode(False):
            self.scores = torch.zeros(rows, beams, device=device)
            self.found_score = torch.zeros(rows, beams, dtype=exact, device=device)
            self.found_step = torch.zeros(rows, beams, dtype=torch.long, device=device)
            self.found_beam = torch.zeros_like(self.found_step)
            self.limit = torch.zeros(1, dtype=torch.long, device=device)
            self.ranks = torch.arange(2 * beams, device=device)

    def begin(self, logits: Tensor, limit: int) -> None:
        """Start a generation of at most ``limit`` codes from the first code's logits, ``(B, V)``."""
        super().begin(logits, limit)
        self.scores.fill_(UNBORN)
        self.scores[:, 0] = 0.0
        self.found_score.fill_(-torch.inf)
        self.found_step.zero_()
        self.found_beam.zero_()
        self.limit.fill_(limit)

    def advance(self, params: SamplingParams, forced: bool, generator: Draws) -> tuple[Tensor, Tensor]:
        """Choose the next code of each beam: codes and parents within the row, ``(B, b)`` each. ``forced``: never stop."""
        scores = self._scores(forced).log_softmax(dim=-1)
        shaped = shape_scores(scores.flatten(0, 1), self.seen.flatten(0, 1), params).view_as(scores)
        return self.take(draw_candidates(shaped + self.scores[:, :, None], self.stop, params.do_sample, generator), params)

    def take(self, candidates: Candidates, params: SamplingParams) -> tuple[Tensor, Tensor]:
        """One step of :meth:`BeamState.advance`: candidates ``(B, 2 b)``, best first, become hypotheses and live beams.

        A row that is done goes on with beams of stop codes, which mean nothing.
        """
        self.step += 1
        done, stops = self.done[:, None].clone(), candidates.codes == self.stop
        self._store(candidates, stops & (self.ranks < self.beams) & ~done, params)
        self.done |= self._is_done(candidates.scores[:, 0], params)
        # At most one stop a beam is among the 2 b, so that b others are.
        survivors = self._first(~stops)
        scores, codes, parents = (values.gather(1, survivors) for values in candidates)
        self.scores.copy_(scores.masked_fill(done, 0.0))
        self.seen.copy_(self.seen.gather(1, parents[:, :, None].expand_as(self.seen)))
        return self._record(codes.masked_fill(done, self.stop), parents)

    def _first(self, marked: Tensor) -> Tensor:
        """Ranks of the first b marked candidates of each row, ``(B, b)``; where there are fewer, the rest is meaningless."""
        # Every marked candidate writes its rank into the place that its number says, all others into a place that is cut off.
        places = torch.where(marked, marked.cumsum(dim=1) - 1, self.beams).clamp(max=self.beams)
        return places.new_zeros(self.rows, self.beams + 1).scatter_(1, places, self.ranks.expand_as(places))[:, : self.beams]

    def _store(self, candidates: Candidates, ending: Tensor, params: SamplingParams) -> None:
        """Insert the candidates marked in ``ending`` among the finished hypotheses.

        One after the other, each would have to beat the worst hypothesis stored, which then goes. As the candidates come best first, none
        can drive out another of the same step: the i-th has to beat the i-th worst, and all can be decided at once.
        """
        picked = self._first(ending)
        real = self.ranks[: self.beams] < ending.sum(dim=1, keepdim=True)
        scores = candidates.scores.gather(1, picked) / self._to_penalty(self.step, params)
        stored = real & ((self.found_step == 0) | (scores > self.found_score))
        merged = torch.cat([self.found_score.masked_fill(stored, torch.inf), scores.masked_fill(~stored, torch.inf)], dim=1)
        steps = torch.cat([self.found_step, self.step.expand_as(picked)], dim=1)
        beams = torch.cat([self.found_beam, candidates.beams.gather(1, picked)], dim=1)
        ordered, order = merged.sort(dim=1, stable=True)
        for buffer, values in (
            (self.found_score, ordered),
            (self.found_step, steps.gather(1, order)),
            (self.found_beam, beams.gather(1, order)),
        ):
            buffer.copy_(values[:, : self.beams])

    def _is_done(self, best: Tensor, params: SamplingParams) -> Tensor:
        """Whether no live beam of a row can beat its worst hypothesis, or need not: ``(B,)``. ``best``: of this step's candidates."""
        full = (self.found_step > 0).all(dim=1)
        if params.early_stopping is True:
            return full
        length = self.limit if params.early_stopping == "never" and params.length_penalty > 0 else self.step
        return full & (self.found_score[:, 0] >= best / self._to_penalty(length, params))

    def _to_penalty(self, length: Tensor, params: SamplingParams) -> Tensor:
        return length.to(self.found_score.dtype) ** params.length_penalty

    def result(self, steps: int, params: SamplingParams, limit: int) -> GeneratedCodes:
        """What the first ``steps`` steps found; the end of a search is left to the oracle."""
        tokens, parents = torch.stack([self.tokens[:steps], self.parents[:steps]]).flatten(1).tolist()
        scores, done, width = self.scores.tolist(), self.done.tolist(), self.rows * self.beams
        found = zip(self.found_score.tolist(), self.found_step.tolist(), self.found_beam.tolist(), strict=True)
        state = BeamState(
            self.rows, self.beams, self.stop, limit, length_penalty=params.length_penalty, early_stopping=params.early_stopping
        )

        def codes_of(row: int, beam: int, length: int) -> tuple[int, ...]:
            codes, place = [0] * length, length * width + row * self.beams
            for step in reversed(range(length)):
                place -= width
                codes[step], beam = tokens[place + beam], parents[place + beam]
            return tuple(codes)

        state.done = done
        state.scores = torch.tensor(scores).flatten()
        live = [] if all(done) else [codes_of(row, beam, steps) for row in range(self.rows) for beam in range(self.beams)]
        state.codes = torch.tensor(live, dtype=torch.long)  # of no interest once all have ended
        state.hypotheses = [
            [Hypothesis(score, codes_of(row, beam, step - 1)) for score, step, beam in zip(*slots, strict=True) if step]
            for row, slots in enumerate(found)
        ]
        finished = state.finish()
        codes = state.best_codes(finished)
        return GeneratedCodes(codes.to(self.tokens.device), code_lengths(codes, self.stop), (codes != self.stop).all(dim=1), finished)

    def state(self) -> list[Tensor]:
        """All buffers that a step changes."""
        return [*super().state(), self.scores, self.found_score, self.found_step, self.found_beam]
