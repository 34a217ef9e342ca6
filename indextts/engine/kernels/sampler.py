"""Choosing the codes of a step in four or five kernels instead of some forty (one beam) or a hundred (several).

Shape the scores, find the codes that come into question, and let those that top-p leaves run the race, one program a sequence: on GPUs
with enough shared memory one kernel does all that (:mod:`indextts.engine.kernels.choose`), elsewhere two. Put the beams' picks together
and keep the books, one program a row; let beams fork; count. :class:`FusedSearch` and :class:`FusedBeamSearch` hold the same buffers as
the classes in torch that they stand in for, draw the same random numbers, and leave to them what the kernels do not know: typical
sampling, top-p without top-k, more than 128 for top-k, more than 8 beams.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from indextts.engine.device_beams import BeamSearch
from indextts.engine.device_sampling import exponential_waits
from indextts.engine.device_search import Search
from indextts.engine.kernels import choose
from indextts.engine.kernels import sampler_parts as parts
from indextts.engine.sampling import Draws, SamplingParams
from indextts.engine.static_cache import Bucket, StaticCache
from indextts.models.gpt import UnifiedVoice

MOST_K, MOST_BEAMS, MOST_CODES = 128, 8, 32768
BLOCK = 1024
GROUPS, ROOM = 128, 256  # of codes, whose highest scores say where to sift; most codes that are sifted out


def knows(params: SamplingParams, vocabulary: int) -> bool:
    """Whether the kernels can choose as ``params`` say."""
    fits = params.num_beams <= MOST_BEAMS and vocabulary <= MOST_CODES
    k = max(params.top_k or 0, params.min_keep)
    return fits and not params.typical_sampling and (not params.do_sample or (bool(params.top_k) and k <= min(MOST_K, vocabulary - 2)))


class _Fused(Search):
    """What both searches share: the first two kernels and the last two."""

    def enter(
        self, gpt: UnifiedVoice, cache: StaticCache, bucket: Bucket, params: SamplingParams, forced: bool, generator: Draws
    ) -> Tensor:
        """As in torch."""
        if not knows(params, self.logits.shape[-1]):
            return super().enter(gpt, cache, bucket, params, forced, generator)
        self._choose(params, self._pick(params, forced, generator))
        codes, places = gpt.mel_embedding.weight, gpt.mel_pos_embedding.emb.weight
        x = torch.empty(self.rows, self.beams, codes.shape[1], device=codes.device, dtype=codes.dtype)
        most = max(self.seen.shape[-1], bucket.keys, codes.shape[1])
        parts.fork[(self.rows, triton.cdiv(most, BLOCK))](
            self.tokens, self.parents, self.step, self.seen, bucket.visible, cache.slots, codes, places, x,
            self.rows, self.seen.shape[-1], bucket.keys, codes.shape[1],
            BEAMS=self.beams, LANES=triton.next_power_of_2(self.beams), BLOCK=BLOCK,
        )  # fmt: skip
        parts.finish[(1,)](self.done, self.step, self.ended, self.rows, LANES=triton.next_power_of_2(self.rows))
        return x

    def _pick(self, params: SamplingParams, forced: bool, generator: Draws) -> tuple[Tensor, ...]:
        """Of each sequence: the best score, and codes, scores and waiting times of its picks, and codes and scores of its fillers."""
        rows, beams, vocabulary = self.logits.shape
        count, picks, samples = rows * beams, 2 * beams if beams > 1 else 1, params.do_sample
        device = self.logits.device
        waits = exponential_waits(self.logits.view(rows, -1), generator) if samples else self.logits
        highest = torch.empty(count, device=device)
        codes = torch.empty(2, count, picks, device=device, dtype=torch.int32)
        values = torch.empty(3, count, picks, device=device)
        k = max(params.top_k or 1, params.min_keep)
        penalises, heats, top_p = params.repetition_penalty != 1.0, samples and params.temperature != 1.0, samples and params.top_p < 1.0
        found = highest, codes[0], values[0], values[1], codes[1], values[2]
        if (launch := choose.launcher(device, vocabulary)) is not None:
            ways = {
                "SAMPLES": samples, "LOGS": beams > 1, "FORCED": forced, "PENALISES": penalises, "HEATS": heats, "TOP_P": top_p,
                "K": k, "KEEP": params.min_keep, "PICKS": picks,
            }  # fmt: skip
            choose.choose(
                launch, self.logits, self.seen, waits, found, self.stop, {name: int(value) for name, value in ways.items()},
                params.repetition_penalty, params.temperature, 1.0 - params.top_p,
            )  # fmt: skip
            return found
        width = triton.next_power_of_2(vocabulary)
        numbers = torch.empty(count, device=device, dtype=torch.int32)
        sifted = numbers, torch.empty(count, ROOM, device=device, dtype=torch.int32), torch.empty(count, ROOM, device=device)
        how = {
            "LOGS": beams > 1, "SAMPLES": samples, "TOP_P": params.top_p < 1.0, "K": k, "KEEP": params.min_keep, "PICKS": picks,
            "LANES": triton.next_power_of_2(k), "ROOM": ROOM,
        }  # fmt: skip
        parts.shape_and_sift[(count,)](
            self.logits, self.seen, waits, *sifted, *found,
            vocabulary, self.stop, params.repetition_penalty, params.temperature, 1.0 - params.top_p,
            FORCED=forced, PENALISES=penalises, HEATS=heats,
            W=width, G=min(GROUPS, width), **how, num_warps=max(1, min(16, width // 512)),
        )  # fmt: skip
        parts.pick[(count,)](waits, *sifted, *found, vocabulary, self.stop, 1.0 - params.top_p, **how, num_warps=1)
        return found

    def _choose(self, params: SamplingParams, picked: tuple[Tensor, ...]) -> None:
        raise NotImplementedError


class FusedSearch(_Fused):
    """:class:`Search` in kernels."""

    def _choose(self, params: SamplingParams, picked: tuple[Tensor, ...]) -> None:
        chosen = picked[1] if params.do_sample else picked[4]
        parts.take_one[(self.rows,)](chosen, self.tokens, self.parents, self.done, self.step, self.rows, self.stop)


class FusedBeamSearch(_Fused, BeamSearch):
    """:class:`BeamSearch` in kernels."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._penalties: dict[float, Tensor] = {}

    def _choose(self, params: SamplingParams, picked: tuple[Tensor, ...]) -> None:
        pool = triton.next_power_of_2(2 * self.beams * 2 * self.beams)
        parts.take_beams[(self.rows,)](
            *picked, self.scores, self.found_score, self.found_step, self.found_beam,
            self.tokens, self.parents, self.done, self.step, self.limit, self._to_penalties(params.length_penalty), self.rows, self.stop,
            BEAMS=self.beams, SAMPLES=params.do_sample, EARLY=params.early_stopping is True,
            TO_LIMIT=params.early_stopping == "never" and params.length_penalty > 0,
            POOL=pool, LANES=triton.next_power_of_2(2 * self.beams), num_warps=1,
        )  # fmt: skip

    def _to_penalties(self, exponent: float) -> Tensor:
        """Every length to the power of the length penalty; made once, before a graph is recorded."""
        if exponent not in self._penalties:
            with torch.inference_mode(False):
                lengths = torch.arange(len(self.tokens) + 2, device=self.step.device, dtype=self.found_score.dtype)
                self._penalties[exponent] = lengths**exponent
        return self._penalties[exponent]
