"""Greedy search and sampling with all bookkeeping on the device: :func:`indextts.engine.generate.generate` without beams.

A search writes the code of each step into a table. The host reads one number now and then (has every row ended, and when?) and the table
once, at the end; steps after the end are harmless and are not read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from indextts.engine.device_sampling import draw_codes, shape_scores
from indextts.engine.generate import GeneratedCodes, code_lengths
from indextts.engine.sampling import Draws, SamplingParams
from indextts.engine.static_cache import Bucket, StaticCache
from indextts.models.gpt import PLACEHOLDER, UnifiedVoice


class Search:
    """One sequence a row, and what searches with beams share. Holds its buffers for any number of generations, one at a time.

    ``logits``: ``(B, b, V)`` of the next code, written by the decode step. ``seen``: ``(B, b, V)``, codes that the repetition penalty
    concerns. ``tokens``, ``parents``: ``(max_codes, B, b)``, the code of each step and the beam it continues. ``done``: ``(B,)``.
    ``step``: ``(1,)``, steps made; ``ended``: ``(1,)``, the step with which the last row was done, 0 until then.
    """

    def __init__(self, model: UnifiedVoice, rows: int, beams: int, device: torch.device) -> None:
        config = model.config
        self.rows, self.beams = rows, beams
        self.start, self.stop = config.start_mel_token, config.stop_mel_token
        with torch.inference_mode(False):  # so that the buffers can be written inside and outside of inference mode
            self.logits = torch.zeros(rows, beams, config.number_mel_codes, device=device)
            self.seen = torch.zeros(rows, beams, config.number_mel_codes, dtype=torch.bool, device=device)
            self.tokens = torch.zeros(model.max_codes, rows, beams, dtype=torch.long, device=device)
            self.parents = torch.zeros_like(self.tokens)
            self.done = torch.zeros(rows, dtype=torch.bool, device=device)
            self.step = torch.zeros(1, dtype=torch.long, device=device)
            self.ended = torch.zeros_like(self.step)
            self.no_parents = torch.zeros(rows, beams, dtype=torch.long, device=device)

    def begin(self, logits: Tensor, limit: int) -> None:
        """Start a generation of at most ``limit`` codes from the first code's logits, ``(B, V)``."""
        for buffer in (self.done, self.step, self.ended, self.seen):
            buffer.zero_()
        self.seen[..., PLACEHOLDER] = self.seen[..., self.start] = True
        self.logits.copy_(logits[:, None])

    def enter(
        self, gpt: UnifiedVoice, cache: StaticCache, bucket: Bucket, params: SamplingParams, forced: bool, generator: Draws
    ) -> Tensor:
        """Choose the next code of each sequence, let its cache follow, and embed it: ``(B, b, D)``."""
        codes, parents = self.advance(params, forced, generator)
        cache.see(bucket, parents)
        # While generating, the k-th code has position k + 1.
        embedded: Tensor = gpt.mel_embedding(codes) + gpt.mel_pos_embedding.emb.weight.index_select(0, self.step + 1)
        return embedded

    def advance(self, params: SamplingParams, forced: bool, generator: Draws) -> tuple[Tensor, Tensor]:
        """Choose the next code of each sequence: codes and parents, ``(B, b)`` each. ``forced``: never stop."""
        self.step += 1
        scores = shape_scores(self._scores(forced)[:, 0], self.seen[:, 0], params)
        tokens = draw_codes(scores, params.do_sample, generator).masked_fill(self.done, self.stop)
        self.done |= tokens == self.stop
        return self._record(tokens[:, None], self.no_parents)

    def _scores(self, forced: bool) -> Tensor:
        if not forced:
            return self.logits
        scores = self.logits.clone()
        scores.select(-1, self.stop).fill_(-torch.inf)
        return scores

    def _record(self, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Note the step in the tables; ``seen`` and ``done`` are those after it."""
        row = self.step - 1
        self.tokens.index_copy_(0, row, tokens[None])
        self.parents.index_copy_(0, row, parents[None])
        self.seen.scatter_(2, tokens[:, :, None], True)
        self.ended.copy_(torch.where((self.ended == 0) & self.done.all(), self.step, self.ended))
        return tokens, parents

    def ask_end(self) -> Callable[[], int]:
        """Ask with which step the last row was done, as things stand now (0: with none yet); calling the result waits for the answer."""
        if self.ended.device.type != "cuda":
            ended = int(self.ended)
            return lambda: ended
        on_host = torch.empty(1, dtype=torch.long, pin_memory=True)
        on_host.copy_(self.ended, non_blocking=True)
        there = torch.cuda.Event()
        there.record(torch.cuda.current_stream(self.ended.device))

        def answer() -> int:
            there.synchronize()
            return int(on_host)

        return answer

    def result(self, steps: int, params: SamplingParams, limit: int) -> GeneratedCodes:
        """What the first ``steps`` steps found."""
        codes = self.tokens[:steps, :, 0].t().clone(memory_format=torch.contiguous_format)  # the next search overwrites the buffer
        read = codes.cpu()  # once: what is asked about them is answered by the host
        return GeneratedCodes(codes, code_lengths(read, self.stop), (read != self.stop).all(dim=1))

    def state(self) -> list[Tensor]:
        """All buffers that a step changes."""
        return [self.logits, self.seen, self.tokens, self.parents, self.done, self.step, self.ended]
