"""The lessons' experiments: what they claim to measure is what they measure."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch

from indextts import IndexTTS2, infer_v2_modded
from indextts.config import GPTConfig
from widgets.lessons import (
    attention,
    batching,
    benchmarks,
    caches,
    compiling,
    hardware,
    launches,
    mixed_training,
    precision,
    profiling,
    scheduling,
    training_faults,
)
from widgets.lessons.engine import sentence_limit, speak
from widgets.lessons.measure import Timing
from widgets.lessons.quality import climb
from widgets.lessons.walk import Walk, log_mel_distance_db


@pytest.fixture(scope="module")
def tts():
    with IndexTTS2.from_random("small") as made:
        yield made


class TestWalk:
    def test_stage_by_stage_gives_what_infer_gives(self, tts):
        walk = Walk(tts, "Hello there.", max_mel_tokens=20)
        codes = walk.codes()
        wave = walk.wave(walk.mel(codes, walk.latents(codes)))
        whole = speak(tts, "Hello there.", max_mel_tokens=20)
        assert abs(walk.record(wave, "").samples.astype(int) - whole.samples).max() <= 2

    def test_more_steps_come_closer_to_the_fine_solution(self, tts):
        walk = Walk(tts, "Hello there.")
        codes = walk.codes(forced=10)
        ladder = climb(walk, codes, walk.latents(codes), [1, 8], reference_steps=24)
        assert ladder.distance_db[1] < ladder.distance_db[0]

    def test_distance_is_in_decibels(self):
        one = torch.zeros(1, 80, 5)
        tenfold = one + torch.log(torch.tensor(10.0))  # ten times the amplitude is 20 dB
        assert log_mel_distance_db(one, tenfold) == pytest.approx(20, abs=1e-3)

    def test_each_sentence_becomes_a_segment(self, tts):
        text = "It was late. The lamps went out. Somewhere a door fell shut."
        limit = sentence_limit(tts, text)
        assert len(tts.frontend.segments(text, limit)) == 3


class TestPrecision:
    def test_rounding_keeps_the_fraction_bits_of_the_format(self):
        x = torch.tensor([1 + 2.0**-10, 1 + 2.0**-11, 1 + 2.0**-7, 1 + 2.0**-9])
        assert precision.round_to(x, "tf32").tolist() == [1 + 2.0**-10, 1 + 2.0**-10, 1 + 2.0**-7, 1 + 2.0**-9]
        assert precision.round_to(x, "bf16").tolist() == [1.0, 1.0, 1 + 2.0**-7, 1.0]
        assert precision.round_to(torch.tensor([1e6]), "fp16").isinf().all()
        assert precision.round_to(torch.tensor([1e6, -3.0]), "tf32").isfinite().all()
        with pytest.raises(ValueError, match="fp8"):
            precision.round_to(x, "fp8")

    def test_format_table_agrees_with_torch(self):
        rows = {row["format"]: row for row in precision.format_table()}
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
            assert float(rows[name]["largest"]) == pytest.approx(torch.finfo(dtype).max, rel=0.01)
            assert float(rows[name]["step at 1"]) == pytest.approx(torch.finfo(dtype).eps, rel=0.05)

    def test_comparison_leaves_the_engine_as_it_was(self, tts):
        runs = precision.compare_precisions(tts, codes=5, runs=1, text="One.")
        assert tts.precision == "fp32"
        assert set(runs) >= {"fp32", "bf16"}
        assert runs["fp32"].latent_error == 0
        assert runs["bf16"].latent_error > 0
        assert runs["fp32"].equal_codes == 5


class TestAttention:
    def test_kernels_agree(self):
        query, key, value = attention.inputs(20, 20, device="cpu")
        assert torch.allclose(attention.attend("math", query, key, value), attention.attend("fused", query, key, value), atol=1e-5)

    def test_shares_follow_the_cost_model(self):
        share = attention.decode_share(7856)
        assert share["bytes"] == pytest.approx(50, abs=0.1)
        assert attention.solver_share(0) == 0
        assert attention.scores_mb(1024, heads=1) == 4


class TestLaunches:
    def test_views_are_not_operations(self):
        x = torch.ones(4, 4)
        assert launches.count_operations(lambda: x.t().unsqueeze(0)[0, 1]).total == 0
        counted = launches.count_operations(lambda: (x.t() + 1).relu())
        assert dict(counted.names) == {"add": 1, "relu": 1}

    def test_every_layer_has_four_products(self):
        assert launches.decode_step_operations(context=4).names["addmm"] == 4 * GPTConfig().layers + 1

    def test_paths_leave_the_engine_as_it_was(self, tts):
        found = launches.paths_ms(tts, codes=4)
        assert tts.use_accel
        assert all(ms > 0 for ms in found.values())


class TestCompiling:
    def test_break_even(self):
        assert compiling.calls_to_pay(75, 4.57, 4.47) == pytest.approx(750, rel=0.01)
        assert compiling.calls_to_pay(75, 1, 2) == float("inf")
        assert compiling.saved_s(750, 75, 4.57, 4.47) == pytest.approx(0, abs=0.1)

    def test_a_machine_that_cannot_compile_is_told_so(self, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("no compiler")

        monkeypatch.setattr(torch, "compile", broken)
        result = compiling.compile_block(frames=4, width=8)
        assert result.compiled_s is None
        assert result.operations >= 7
        assert "cannot compile" in result.words

    def test_merging_saves_traffic(self):
        alone, merged = compiling.traffic_mb(frames=1024, width=256)
        assert merged == pytest.approx(3)  # 1024 x 512 in, 1024 x 256 out, 4 bytes
        assert alone > 3 * merged


class TestCaches:
    def test_limits_come_back_after_an_error(self):
        before = infer_v2_modded.MAX_CACHE_SIZE_MB, infer_v2_modded.CACHE_CHECK_INTERVAL
        with contextlib.suppress(ZeroDivisionError), caches.cache_limits(1):
            assert infer_v2_modded.MAX_CACHE_SIZE_MB == 1
            raise ZeroDivisionError
        assert before == (infer_v2_modded.MAX_CACHE_SIZE_MB, infer_v2_modded.CACHE_CHECK_INTERVAL)

    def test_a_voice_is_read_once(self, tts):
        rows = caches.visit(tts, caches.made_up_voices(2, seconds=1.0), [0, 1, 0], codes=2)
        assert [row["known"] for row in rows] == [False, False, True]

    def test_fit_is_used_plus_peak_against_the_threshold(self):
        peaks = [{"path": "a", "precision": "fp32", "peak_gb": 1.048576}]  # 1000 MB
        assert caches.would_fit(peaks, total_mb=2000, used_mb=799)[0]["below 90 %"]
        assert not caches.would_fit(peaks, total_mb=2000, used_mb=800)[0]["below 90 %"]

    def test_keys_and_values(self):
        assert caches.key_value_mb(GPTConfig(), 1024) == pytest.approx(120)


class TestBatching:
    def test_padding_without_lengths_is_wrong_and_with_them_exact(self, tts):
        errors = batching.solver_errors(tts, frames=(30, 50), steps=2)
        assert errors["zeros, no lengths"] > 1e-3
        assert errors["zeros, with lengths"] < 1e-4

    def test_padding_is_counted(self):
        assert batching.padding_percent([10, 10], 0.0) == (0.0, 1)
        percent, batches = batching.padding_percent([10, 20], 1.0)
        assert (percent, batches) == (pytest.approx(25), 1)

    def test_waves_of_other_lengths_count_as_different(self):
        import numpy as np

        assert batching._difference(np.zeros(3, np.int16), np.zeros(4, np.int16)) == 65535
        assert batching._difference(np.array([-32768], np.int16), np.array([32767], np.int16)) == 65535


class TestScheduling:
    def test_least_loaded_beats_dealing_out(self):
        work = [5, 1, 5, 1]
        assert scheduling.makespan(work, 2, "round robin") == 10
        assert scheduling.makespan(work, 2) == 6
        assert scheduling.makespan(work, 9) == 5

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="at least one worker"):
            scheduling.makespan([1], 0)
        with pytest.raises(ValueError, match="policy"):
            scheduling.makespan([1], 1, "random")

    def test_waiting_grows_with_load_and_shrinks_with_workers(self):
        light, heavy = scheduling.waiting_curve(2, [0.3, 0.9], count=500)
        assert light < heavy
        assert scheduling.waiting_curve(8, [0.9], count=500)[0] < heavy


class TestProfiling:
    def test_the_engines_thread_is_watched(self, tts):
        found = profiling.profile_call(tts, "One.", max_mel_tokens=5)
        assert sum(found.calls.values()) > 300
        assert list(found.self_ms.values()) == sorted(found.self_ms.values(), reverse=True)
        assert sum(profiling.families(found).values()) == pytest.approx(100)
        assert json.dumps(found.top(3))

    def test_kinds(self):
        found = profiling.Profiled("cpu", {"aten::addmm": 6.0, "aten::conv1d": 3.0, "aten::foo": 1.0}, {}, 10.0, 0.0)
        assert profiling.families(found) == {"matrix products": 60, "convolutions": 30, "all else": 10}


class TestBenchmarks:
    def test_interval_holds_the_ratio(self):
        before, after = Timing([2.0, 2.1, 1.9, 2.05]), Timing([1.0, 1.05, 0.95, 1.02])
        low, ratio, high = benchmarks.ratio_interval(before, after)
        assert low <= ratio <= high
        assert ratio == pytest.approx(2.005, abs=0.05)
        same = benchmarks.ratio_interval(before, before)
        assert same[0] < 1 < same[2]

    def test_comparison_leaves_the_engine_as_it_was(self, tts):
        found = benchmarks.compare_paths(tts, runs=1)
        assert set(found) == {"plain", "accelerated"}
        assert tts.use_accel


class TestTraining:
    def test_scaling_saves_small_gradients(self):
        sizes = torch.tensor([1e-9, 1e-3])
        assert mixed_training.lost_percent(sizes) == 50
        assert mixed_training.lost_percent(sizes, scale=2.0**14) == 0

    def test_scale_halves_on_overflow_and_grows_later(self):
        history = mixed_training.scale_history([2], steps=20, start=1024.0, patience=5)
        assert history[1] == 1024
        assert history[2] == 512
        assert history[-1] > 512

    def test_miniature_learns(self):
        curve = mixed_training.train("bf16", steps=25)
        assert curve.losses[-1] < curve.losses[0]

    def test_buzz_of_a_clip_and_of_a_vocoder(self, tts):
        spoken, made = training_faults.vocoder_buzz(tts)
        assert -1 <= spoken <= 1
        assert -1 <= made <= 1

    def test_a_step_moves_the_first_layer_less_without_the_mean(self, tts):
        moved = training_faults.moved_outputs(tts)
        assert 0 < moved["centred"] < moved["plain"]
        twice = training_faults.moved_outputs(tts, 6e-4)
        assert twice["plain"] == pytest.approx(2 * moved["plain"], rel=1e-4)


def test_floor_is_bytes_over_bandwidth():
    assert hardware.decode_floor_ms(4.26e12) == pytest.approx(0.2266, abs=1e-3)
    assert {row["16-bit choice"] for row in hardware.generations()} == {"bfloat16", "float16", "float32"}
