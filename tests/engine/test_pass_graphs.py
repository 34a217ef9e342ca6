"""Prefill and latent pass in buckets: if these fail, graphs change the first code of some texts, or the voice's fine grain."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts.engine import pass_graphs
from indextts.engine.decode import StaticDecoder
from indextts.engine.pass_graphs import PassGraphs
from indextts.engine.sampling import SamplingParams
from tests.tiny_gpt import tiny_conditioning, tiny_gpt

CPU = torch.device("cpu")
TEXTS = [[7, 3, 9, 12, 5], [15, 2, 1, 1, 1]]


class Pretended:
    """Notes the shapes it is called with, as a graph per shape would be captured."""

    def __init__(self, function: Callable[..., Any], _: int) -> None:
        self.function, self.memory_mb = function, 2.0
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def __call__(self, *inputs: Tensor) -> Any:
        self.shapes.add(tuple(x.shape for x in inputs))
        return self.function(*inputs)

    def clear(self) -> None:
        self.shapes.clear()


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> tuple[StaticDecoder, StaticDecoder]:
    """Without graphs, and with what behaves like them."""
    monkeypatch.setattr(pass_graphs, "PREFIX_BUCKET", 16)
    monkeypatch.setattr(pass_graphs, "CODES_BUCKET", 8)
    model = tiny_gpt()
    plain, graphed = (StaticDecoder(model, CPU, use_graphs=False) for _ in range(2))
    graphed._passes = PassGraphs(model, 1, Pretended)
    return plain, graphed


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS], ids=["one", "two of unequal length"])
def test_buckets_change_neither_codes_nor_latents(decoders: tuple[StaticDecoder, StaticDecoder], texts: list[list[int]]) -> None:
    model = decoders[0].gpt
    prefix, mask = model.prefix(tiny_conditioning(model), torch.tensor(texts))
    states = [decoder.prefill(prefix, mask) for decoder in decoders]
    assert states[1].length % 16 == 0
    assert states[1].length > states[0].length
    torch.testing.assert_close(states[1].start, states[0].start, atol=1e-5, rtol=1e-5)
    for beams in (1, 3):
        params = SamplingParams(max_mel_tokens=13, num_beams=beams)
        made = [
            decoder.decode(state, params, generator=torch.Generator().manual_seed(4))
            for decoder, state in zip(decoders, states, strict=True)
        ]
        assert made[0].codes.tolist() == made[1].codes.tolist()
        latents = [decoder.latents(state, made[0].codes) for decoder, state in zip(decoders, states, strict=True)]
        torch.testing.assert_close(latents[1], latents[0], atol=1e-5, rtol=1e-5)
    rows = [state.row(len(texts) - 1) for state in states]
    latents = [decoder.latents(row, torch.arange(6)[None]) for decoder, row in zip(decoders, rows, strict=True)]
    torch.testing.assert_close(latents[1], latents[0], atol=1e-5, rtol=1e-5)


def test_one_graph_serves_many_lengths_and_counts_as_memory(decoders: tuple[StaticDecoder, StaticDecoder]) -> None:
    decoder, passes = decoders[1], decoders[1]._passes
    assert passes is not None
    prefix, mask = decoder.gpt.prefix(tiny_conditioning(decoder.gpt), torch.tensor(TEXTS[:1]))
    state = decoder.prefill(prefix, None)
    decoder.prefill(prefix[:, 1:], mask[:, 1:])
    for count in (3, 5, 9):
        decoder.latents(state, torch.arange(count)[None])
    assert len(passes._prefill.shapes) == 1
    assert {shapes[-1] for shapes in passes._latents.shapes} == {(1, 8, decoder.gpt.config.model_dim)}
    assert len(passes._latents.shapes) == 1
    assert decoder.memory_mb >= 4.0
    decoder.clear()
    assert not passes._latents.shapes


def test_a_capture_that_fails_is_said_once_and_changes_nothing(
    decoders: tuple[StaticDecoder, StaticDecoder], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("no graphs today")

    plain, graphed = decoders
    assert graphed._passes is not None
    graphed._passes._prefill = refuse
    prefix, mask = plain.gpt.prefix(tiny_conditioning(plain.gpt), torch.tensor(TEXTS))
    with caplog.at_level(logging.WARNING):
        found = [graphed.prefill(prefix, mask) for _ in range(2)]
    assert len(caplog.records) == 1
    assert "no graphs today" in caplog.text
    assert torch.equal(found[1].start, plain.prefill(prefix, mask).start)


@pytest.mark.gpu
def test_passes_replayed_on_a_gpu_equal_eager_ones() -> None:
    model, device = tiny_gpt().cuda(), torch.device("cuda:0")
    eager, graphed = (StaticDecoder(model, device, use_graphs=on) for on in (False, True))
    with torch.no_grad():
        prefix, mask = (x.cuda() for x in tiny_gpt().prefix(tiny_conditioning(tiny_gpt()), torch.tensor(TEXTS)))
    codes = torch.arange(9, device=device).repeat(2, 1)
    for _ in range(2):
        states = [decoder.prefill(prefix, mask) for decoder in (eager, graphed)]
        torch.testing.assert_close(states[1].start, states[0].start, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(graphed.latents(states[1], codes), eager.latents(states[0], codes), atol=1e-4, rtol=1e-4)
    assert graphed._passes is not None
    assert graphed._passes.memory_mb >= 0  # a pool this small may fit into memory that torch holds already
    assert graphed.use_graphs
