"""Bookkeeping of beam search and beam sampling, without any model.

The rules are those of the beam scorer of Hugging Face Transformers 4, which the release uses; stochastic beams: arXiv 1903.06059.
A beam's running score is the sum of *processed* scores: temperature and repetition penalty are in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from indextts.engine.sampling import Draws, draw

UNBORN = -1e9  # start score of all beams but the first, so that the first step expands one beam only


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence without its stop code, and its score divided by length to the power of the length penalty."""

    score: float
    codes: tuple[int, ...]


class Candidates(NamedTuple):
    """Possible continuations of each row's beams, ``(B, 2 b)`` each, best first."""

    scores: Tensor  # running score after the code
    codes: Tensor
    beams: Tensor  # which beam of the row is continued, 0 .. b - 1


def choose_candidates(scores: Tensor, stop: int, *, do_sample: bool, generator: Draws = None) -> Candidates:
    """Choose 2 b continuations among all codes of all beams, scores ``(B, b, V)``.

    Without ``do_sample`` the 2 b highest; with it 2 b draws without replacement from the softmax over the row's b V scores. Where
    fewer than 2 b have a probability above 0 (usual in the first step) the draw is completed with the highest scores among the others,
    except stop codes, which were never drawn and must not end a sequence. These sort last; of score -inf they become dead beams, which
    live ones replace as soon as there are enough.
    """
    rows, beams, vocabulary = scores.shape
    flat = scores.reshape(rows, -1)
    if not do_sample:
        best, index = flat.topk(2 * beams, dim=-1)
        return Candidates(best, index % vocabulary, index // vocabulary)
    probabilities = flat.softmax(dim=-1)
    drawn = draw(probabilities, 2 * beams, generator)
    missing = probabilities.gather(1, drawn) == 0
    no_filler = (probabilities > 0) | (torch.arange(flat.shape[1], device=flat.device) % vocabulary == stop)
    fillers = flat.clamp(min=torch.finfo(flat.dtype).min).masked_fill(no_filler, -torch.inf).topk(2 * beams, dim=-1).indices
    drawn = torch.where(missing, fillers.gather(1, (missing.cumsum(dim=1) - 1).clamp(min=0)), drawn)
    best, order = torch.sort(flat.gather(1, drawn), dim=-1, descending=True)
    index = drawn.gather(1, order)
    return Candidates(best, index % vocabulary, index // vocabulary)


class BeamState:
    """Live beams and finished hypotheses of ``rows`` searches with ``num_beams`` beams each.

    ``scores``: running scores ``(rows * b,)``; ``codes``: codes so far ``(rows * b, t)``; ``done``: one flag a row; ``hypotheses``: at
    most b a row, in the order in which they were stored. ``max_codes``: limit of new codes, the stop included.
    """

    def __init__(
        self,
        rows: int,
        num_beams: int,
        stop: int,
        max_codes: int,
        *,
        length_penalty: float = 0.0,
        early_stopping: bool | Literal["never"] = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_beams = num_beams
        self.stop = stop
        self.max_codes = max_codes
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        first = torch.arange(rows * num_beams, device=device) % num_beams == 0
        self.scores = torch.where(first, 0.0, UNBORN)
        self.codes = torch.empty(rows * num_beams, 0, dtype=torch.long, device=device)
        self.done = [False] * rows
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in range(rows)]

    def advance(self, candidates: Candidates) -> Tensor:
        """One step: the candidates become finished hypotheses or live beams.

        Returns the flat index of each live beam's parent, ``(rows * b,)``, by which a cache is to be reordered. A row that is done keeps
        beams of stop codes with score 0 and parent 0, which mean nothing.
        """
        scores, codes, parents = [], [], []
        for row, done in enumerate(self.done):
            survivors = [(0.0, self.stop, 0)] * self.num_beams if done else self._advance_row(row, candidates)
            for score, code, parent in survivors:
                scores.append(score)
                codes.append(code)
                parents.append(parent)
        device = self.codes.device
        origin = torch.tensor(parents, device=device)
        self.scores = torch.tensor(scores, dtype=torch.float32, device=device)
        self.codes = torch.cat([self.codes[origin], torch.tensor(codes, device=device)[:, None]], dim=1)
        return origin

    def _advance_row(self, row: int, candidates: Candidates) -> list[tuple[float, int, int]]:
        """Survivors as (score, code, flat parent); stores hypotheses and sets the done flag."""
        scores, codes, beams = (values[row].tolist() for values in candidates)
        length = self.codes.shape[1] + 1  # stop included
        survivors: list[tuple[float, int, int]] = []
        for rank, (score, code, beam) in enumerate(zip(scores, codes, beams, strict=True)):
            parent = row * self.num_beams + beam
            if code != self.stop:
                survivors.append((score, code, parent))
            elif rank < self.num_beams:
                _store(self.hypotheses[row], self._hypothesis(score, self.codes[parent], length), self.num_beams)
            if len(survivors) == self.num_beams:
                break
        else:
            raise RuntimeError(f"fewer than {self.num_beams} of the candidates {codes} continue a beam")
        self.done[row] = self._is_done(self.hypotheses[row], max(scores), length)
        return survivors

    def _is_done(self, stored: list[Hypothesis], best_score: float, length: int) -> bool:
        """Whether no live beam can beat the worst stored hypothesis, or need not."""
        if len(stored) < self.num_beams:
            return False
        if self.early_stopping is True:
            return True
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_codes
        return min(h.score for h in stored) >= best_score / length**self.length_penalty

    def finish(self) -> list[list[Hypothesis]]:
        """Each row's hypotheses, best first; rows that are not done contribute their live beams as they are."""
        finished = []
        for row, (stored, done) in enumerate(zip(self.hypotheses, self.done, strict=True)):
            kept = list(stored)
            for beam in range(0 if done else self.num_beams):
                index = row * self.num_beams + beam
                _store(kept, self._hypothesis(float(self.scores[index]), self.codes[index], self.codes.shape[1]), self.num_beams)
            # Among equals the one stored last comes first.
            finished.append(sorted(kept, key=lambda hypothesis: hypothesis.score)[::-1])
        return finished

    def best_codes(self, finished: list[list[Hypothesis]]) -> Tensor:
        """The best hypothesis of each row of :meth:`finish` with its stop code, where the limit leaves room: ``(rows, n)``.

        Shorter rows are filled with stop codes.
        """
        width = min(max(len(row[0].codes) for row in finished) + 1, self.max_codes)
        codes = torch.full((len(finished), width), self.stop, device=self.codes.device)
        for row, (best, *_) in enumerate(finished):
            codes[row, : len(best.codes)] = torch.tensor(best.codes, dtype=torch.long, device=codes.device)
        return codes

    def _hypothesis(self, score: float, codes: Tensor, length: int) -> Hypothesis:
        return Hypothesis(score / length**self.length_penalty, tuple(codes.tolist()))


def _store(stored: list[Hypothesis], new: Hypothesis, most: int) -> None:
    """Keep ``new`` if there is room or it beats the worst, which then goes."""
    if len(stored) < most or new.score > min(h.score for h in stored):
        stored.append(new)
        if len(stored) > most:
            stored.remove(min(stored, key=lambda hypothesis: hypothesis.score))
