"""If this fails, what a text sounds like depends on which other texts happen to be rendered with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from indextts.engine.decode import StaticDecoder
from indextts.engine.generate import generate
from indextts.engine.sampling import SamplingParams
from indextts.models.gpt import UnifiedVoice
from tests.engine.test_decode import CPU, decoder_of, prompt
from tests.tiny_gpt import tiny_gpt

TEXTS = [[5, 6, 7, 8], [4, 0, 0, 0], [9, 9, 3, 0]]  # 0 and 1 are start and stop of text


@pytest.fixture(scope="module")
def model() -> UnifiedVoice:
    return tiny_gpt()


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def unpadded(row: list[int]) -> list[int]:
    return row[: len(row) - row.count(0)]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("path", ["plain", "static", "graphs"])
@pytest.mark.parametrize("more", [{}, {"forced_codes": 9}], ids=str)
def test_a_row_draws_what_it_draws_alone(model: UnifiedVoice, path: str, beams: int, more: dict[str, Any]) -> None:
    params = SamplingParams(num_beams=beams, repetition_penalty=1.5, temperature=1.3, max_mel_tokens=14)
    decoder = decoder_of(model, pretend=path == "graphs")

    def made(texts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        prefix, mask = prompt(model, texts)
        run = decoder.generate if path != "plain" else lambda *a, **k: generate(model, *a, **k)
        found = run(prefix, mask, params, generator=generators(*seeds), **more)
        return [row[:length].tolist() for row, length in zip(found.codes, found.lengths.tolist(), strict=True)]

    alone = [made([unpadded(text)], [seed])[0] for seed, text in enumerate(TEXTS)]
    assert made(TEXTS, [0, 1, 2]) == alone
    assert made(TEXTS[::-1], [2, 1, 0]) == alone[::-1], "the order of rows does not matter"
    assert len({tuple(codes) for codes in alone}) > 1


def test_one_generator_still_serves_all_rows_and_is_left_where_it_was_used_up_to(model: UnifiedVoice) -> None:
    params = SamplingParams(num_beams=1, max_mel_tokens=6)
    prefix, mask = prompt(model, TEXTS)
    (shared,) = generators(0)
    before = shared.get_state()
    StaticDecoder(model, CPU, use_graphs=False).generate(prefix, mask, params, generator=shared)
    assert not torch.equal(before, shared.get_state())


def test_a_wrong_number_of_generators_is_refused(model: UnifiedVoice) -> None:
    prefix, mask = prompt(model, TEXTS)
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        decoder_of(model).generate(prefix, mask, SamplingParams(max_mel_tokens=6), generator=generators(0, 1))
