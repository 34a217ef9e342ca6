"""The kernel that finds the codes of a draw, run on the CPU: every CUDA thread is a fiber of ``fibers.h``."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from indextts.engine.device_beams import BeamSearch
from indextts.engine.device_search import Search
from indextts.engine.kernels import choose
from indextts.engine.kernels.checks import alike, searched
from indextts.engine.kernels.choose import Launch
from indextts.engine.sampling import SamplingParams
from tests.engine.on_fibers import runner
from tests.tiny_gpt import tiny_gpt

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton, which does the rest, is not installed")


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    run = runner(tmp_path_factory.mktemp("choose"), "choose.cu", "choose", "Choice")
    return lambda defines, given, rows: run(defines, given, rows, choose.THREADS, choose.shared_bytes(defines["VOCABULARY"]))


@needs_triton
@pytest.mark.parametrize(
    ("rows", "beams", "forced", "equals", "given"),
    [
        (1, 1, False, True, {"top_k": 5, "top_p": 0.5, "repetition_penalty": 1.3}),
        (2, 1, True, False, {"top_k": 7, "top_p": 1.0, "temperature": 1.0}),
        (1, 1, False, False, {"do_sample": False, "repetition_penalty": 2.0}),
        (2, 3, False, False, {"top_p": 0.5, "repetition_penalty": 1.3}),
        (1, 3, True, True, {"top_k": 20, "early_stopping": True}),
        (1, 3, False, False, {"do_sample": False, "length_penalty": 1.0, "repetition_penalty": 1.0}),
    ],
)
def test_chosen_codes_are_those_of_torch(
    rows: int, beams: int, forced: bool, equals: bool, given: dict[str, Any], launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indextts.engine.kernels.sampler import FusedBeamSearch, FusedSearch

    gpt, params = tiny_gpt(), SamplingParams(**{"num_beams": beams, "top_k": 12, **given})
    launches = []

    def counted(*told: Any) -> None:
        launches.append(told)
        launch(*told)

    monkeypatch.setattr(choose, "launcher", lambda device, vocabulary: counted)
    pair = (Search, FusedSearch) if beams == 1 else (BeamSearch, FusedBeamSearch)
    with torch.inference_mode():
        plain, fused = (searched(kind(gpt, rows, beams, CPU), gpt, params, 4, forced=forced, equals=equals) for kind in pair)
    assert len(launches) == 4
    assert [step for step, states in enumerate(zip(plain, fused, strict=True)) if not alike(*states)] == []


def test_many_equals_and_few_codes(launch: Launch) -> None:
    """More codes in question than threads, and a vocabulary that does not fill the groups."""
    for vocabulary, k in ((2500, 30), (40, 30)):
        logits, waits = torch.zeros(2, vocabulary), torch.rand(2, vocabulary) + 0.1
        logits[1, 7], seen = 2.0, torch.zeros(2, vocabulary, dtype=torch.bool)
        codes = torch.empty(2, 2, 4, dtype=torch.int32)
        found = (torch.empty(2), codes[0], torch.empty(2, 4), torch.empty(2, 4), codes[1], torch.empty(2, 4))
        how = {"SAMPLES": 1, "LOGS": 0, "FORCED": 1, "PENALISES": 0, "HEATS": 0, "TOP_P": 0, "K": k, "KEEP": 2, "PICKS": 4}
        choose.choose(launch, logits, seen, waits, found, 3, how, 1.0, 1.0, 0.2)
        speeds = logits.exp() / waits
        speeds[:, 3] = 0
        assert found[1].tolist() == speeds.topk(4).indices.tolist()
        assert found[4].tolist() == [[0, 1, 2, 4], [7, 0, 1, 2]]
        assert found[0].tolist() == [0.0, 2.0]


def test_compiles_for_gpus_without_one() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    how = {"SAMPLES": 1, "LOGS": 1, "FORCED": 0, "PENALISES": 1, "HEATS": 1, "TOP_P": 1, "K": 30, "KEEP": 1, "PICKS": 6}
    for architecture in ("sm_80", "sm_90"):
        assert len(choose.cuda_source.compiled("choose.cu", architecture, tuple(sorted({**how, "VOCABULARY": 8194}.items())))) > 1000
