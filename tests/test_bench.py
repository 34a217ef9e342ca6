"""If these fail, a benchmark measures another state than it says, or its figures cannot be compared or repeated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import Switches, bench, ladder, matrix
from indextts.bench_cost import decode_step_bytes, measure_rates, solver_flop, vocoder_flop
from indextts.bench_profile import profile
from indextts.bench_report import Spread
from indextts.bench_switches import combinations, ladder_of
from indextts.release.random_release import random_models
from tests.speaking import VOICE

QUICK = {"codes": 4, "runs": 2, "warmup": 1, "voice": VOICE}


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


def test_a_row_can_be_repeated_from_what_it_says(engine: IndexTTS2) -> None:
    row = bench(engine, beams=1, steps=2, command="as told", **QUICK)
    assert (row.codes, row.runs, row.warmup, row.command) == (4, 2, 1, "as told")
    assert row.switches == Switches(accel=True, beams=1, steps=2).to_dict()
    assert (row.settings["diffusion_steps"], row.settings["num_beams"]) == (2, 1)
    assert row.machine["torch"] == torch.__version__
    assert row.machine["device"] == "cpu"
    assert len(row.total.values) == 2
    assert row.rtf == pytest.approx(row.total_s / row.audio_s)
    assert sum(row.stages_s.values()) == pytest.approx(row.total_s, rel=0.3)
    assert row.tokens_per_s == pytest.approx(4 / row.stages_s["gpt"])
    assert row.decode_gb_per_s == pytest.approx(row.floors_s["decode_bytes"] / row.stages_s["gpt"] / 1e9)
    assert all(fraction > 0 for fraction in row.floor_fraction.values())
    assert row.start_up_s is not None
    assert json.loads(json.dumps(row.to_dict()))["total_s"] == row.total_s


def test_a_matrix_starts_with_the_plain_path_and_leaves_the_engine_as_it_was(engine: IndexTTS2) -> None:
    before = Switches.of(engine)
    report = matrix(engine, {"precision": ["fp32", "bf16"], "beams": [1, 2]}, command="c", **QUICK)
    assert [row.label for row in report.rows] == [
        "plain fp32, 1 beam",
        *(f"accel {precision}, {beams}" for precision in ("fp32", "bf16") for beams in ("1 beam", "2 beams")),
    ]
    assert Switches.of(engine) == before
    plain, exact, *_, rounded = report.rows
    assert plain.distance == {"codes": 1.0, "latents": 0.0, "mel": 0.0, "wave": 0.0}
    assert exact.distance is not None
    assert exact.distance["codes"] == 1
    assert max(exact.distance[name] for name in ("latents", "mel", "wave")) < 1e-4
    assert rounded.distance is not None
    assert 1e-4 < rounded.distance["latents"] < 0.1


@pytest.mark.slow
def test_a_ladder_adds_one_thing_at_a_time(engine: IndexTTS2, tmp_path: Path) -> None:
    rungs = ladder_of(engine, beams=2)
    assert rungs[0][1] == Switches(beams=2)
    for (_, before), (what, after) in pairwise(rungs):
        changed = [f.name for f in dataclasses.fields(Switches) if getattr(before, f.name) != getattr(after, f.name)]
        assert len(changed) == 1, what
    seen: list[float] = []
    report = ladder(engine, rungs[-3:], progress=lambda fraction, _: seen.append(fraction), **QUICK)
    assert [row.label for row in report.rows] == [label for label, _ in rungs[-3:]]
    assert report.rows[-1].codes == 4 * report.rows[-2].codes
    assert report.rows[-1].audio_s == pytest.approx(4 * report.rows[-2].audio_s)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    report.save(tmp_path / "new" / "ladder.json")
    assert json.loads((tmp_path / "new" / "ladder.json").read_text()).keys() == {"machine", "command", "rows"}


@pytest.mark.parametrize(
    ("axes", "error", "why"),
    [
        ({"precision": ["fp9"]}, ValueError, "choose 'auto' or one of"),
        ({"attention": ["flash"]}, ValueError, "compute capability"),
        ({"graphs": [True]}, ValueError, "need a CUDA device"),
        ({"batch": [0]}, ValueError, "batch must be at least 1"),
        ({"beams": [1000]}, ValueError, "beams must be between"),
        ({"speed": [1]}, TypeError, "no switch 'speed'"),
        ({"beams": []}, ValueError, "has no values"),
    ],
)
def test_impossible_states_are_refused_before_anything_runs(
    engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch, axes: dict[str, list[object]], error: type[Exception], why: str
) -> None:
    monkeypatch.setattr(engine, "_worker", None)
    with pytest.raises(error, match=why):
        matrix(engine, axes, base=Switches(), **QUICK)


def test_combinations_vary_the_last_axis_fastest() -> None:
    states = combinations(Switches(), {"precision": ["fp32", "bf16"], "beams": [3, 1]})
    assert [(s.precision, s.beams) for s in states] == [("fp32", 3), ("fp32", 1), ("bf16", 3), ("bf16", 1)]


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0, [4.0, 1.0, 3.0, 2.0, 5.0])
    assert Spread.of([2.0]).iqr == 0


@pytest.mark.slow
def test_costs_are_those_of_the_cost_model() -> None:
    """Release sizes: one decode step reads 965.5 MB of 16-bit weights and 122.9 kB a key; see the README's sources."""
    models, _ = random_models("release")
    assert decode_step_bytes(models.gpt, 2, 0) == pytest.approx(965.5e6, rel=2e-3)
    assert decode_step_bytes(models.gpt, 2, 1000) - decode_step_bytes(models.gpt, 2, 0) == pytest.approx(122.9e6, rel=1e-3)
    per_frame = (solver_flop(models.s2mel, 430, 862) - solver_flop(models.s2mel, 430, 0)) / 862
    assert per_frame == pytest.approx(178.4e6 + 114.6e6 + 60e6, rel=0.1)
    assert vocoder_flop(models.vocoder, 862) / (862 * 256 / 22050) == pytest.approx(157.9e9, rel=0.02)


def test_rates_are_measured() -> None:
    rates = measure_rates(torch.device("cpu"), torch.float32, repeats=1)
    assert 1e7 < rates.bytes_per_s < 1e13
    assert 1e7 < rates.flop_per_s < 1e14


def test_a_profile_names_the_operations(engine: IndexTTS2, tmp_path: Path) -> None:
    call = {"spk_audio_prompt": VOICE, "text": "Hi.", "num_beams": 1, "diffusion_steps": 1, "forced_codes": 3}
    written = profile(engine, tmp_path / "p", call)
    assert [path.name for path in written] == ["trace.json", "operations.txt"]
    assert "aten::" in written[1].read_text(encoding="utf-8")
    assert json.loads(written[0].read_text(encoding="utf-8"))["traceEvents"]
