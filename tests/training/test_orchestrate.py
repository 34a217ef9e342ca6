"""The plan of a run: what starts when, and what a stage is told. A wrong plan wastes minutes of a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from indextts.training import orchestrate
from indextts.training.orchestrate import Conductor, Job
from indextts.training.parts import part_path, save_part


def conductor(tmp_path: Path, *arguments: str, source: str = "synth") -> Conductor:
    parser = argparse.ArgumentParser()
    orchestrate.add_options(parser)
    (tmp_path / source).mkdir(exist_ok=True)
    fixed = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), f"--{source}", str(tmp_path / source)]
    return Conductor(parser.parse_args([*fixed, *arguments]))


def option(job: Job, name: str) -> str:
    return job.arguments[job.arguments.index(name) + 1]


def test_the_front_half_is_alone_before_the_vocoder_begins(tmp_path: Path) -> None:
    jobs = {job.name: job for job in conductor(tmp_path, "--minutes", "10", "--lexicon", "words.gz", "--faithful").jobs}
    assert list(jobs) == ["data", "encoder", "speaker", "codec", "code", "gpt", "s2mel", "vocoder"]
    assert jobs["vocoder"].after == ("codec", "speaker")
    assert jobs["speaker"].after == ("encoder",)
    assert 120 <= float(option(jobs["encoder"], "--seconds")) <= 180
    front = float(option(jobs["encoder"], "--seconds")) + float(option(jobs["codec"], "--seconds"))
    assert float(option(jobs["gpt"], "--seconds")) < float(option(jobs["s2mel"], "--plan")) < 600 - front
    assert option(jobs["gpt"], "--lexicon") == option(jobs["s2mel"], "--lexicon") == "words.gz"
    assert "--faithful" in jobs["code"].arguments


def test_a_second_gpu_has_the_vocoder_from_the_beginning_and_the_coding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrate, "_gpus", lambda: 2)
    jobs = {job.name: job for job in conductor(tmp_path, "--minutes", "10").jobs}
    assert jobs["vocoder"].after == ()
    assert {name for name, job in jobs.items() if job.gpu == 1} == {"vocoder", "code"}
    assert float(option(jobs["vocoder"], "--plan")) > float(option(jobs["s2mel"], "--plan"))
    seen: list[str] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(orchestrate.subprocess, "Popen", lambda *_, env, **__: seen.append(env["CUDA_VISIBLE_DEVICES"]))
    made = conductor(tmp_path, "--minutes", "10")
    for job in made.jobs:
        made._start(job)
    assert seen == ["6" if job.gpu else "4" for job in made.jobs]


def test_a_language_model_that_goes_on_plans_from_where_it_is(tmp_path: Path) -> None:
    save_part(tmp_path / "out", "gpt", {"gpt.x": torch.zeros(1)}, seconds=500.0)
    fresh, more = (
        {job.name: job for job in conductor(tmp_path, "--stages", "gpt", "s2mel", *extra).jobs}["gpt"] for extra in (["--afresh"], [])
    )
    assert float(option(more, "--plan")) == pytest.approx(float(option(fresh, "--plan")) + 500, abs=1)
    assert option(more, "--seconds") == option(fresh, "--seconds")


def test_a_run_of_the_vocoder_alone_neither_codes_nor_waits(tmp_path: Path) -> None:
    jobs = {job.name: job for job in conductor(tmp_path, "--stages", "vocoder").jobs}
    assert list(jobs) == ["data", "vocoder"]
    assert jobs["vocoder"].after == ()


def test_rates_can_rise_again_on_another_day(tmp_path: Path) -> None:
    for job in conductor(tmp_path, "--stages", "vocoder", "s2mel", "--afresh", "--rate", "0.4").jobs[1:]:
        assert "--afresh" in job.arguments
        assert option(job, "--rate") == "0.4"
    assert not any("--afresh" in job.arguments for job in conductor(tmp_path).jobs)


def test_runs_that_share_their_speech_keep_it_and_its_codes(tmp_path: Path) -> None:
    shard, code = tmp_path / "speech/0000.npz", tmp_path / "work/coded/0000.npz"
    for path in (shard, code):
        path.parent.mkdir(parents=True)
        path.touch()
    later = conductor(tmp_path, "--stages", "vocoder", "code", source="speech")
    assert [job.name for job in later.jobs] == ["code", "vocoder"]
    assert option(later.jobs[0], "--shards") == str(shard.parent)
    assert code.exists()
    conductor(tmp_path, "--stages", "codec", "gpt", source="speech")  # a new codec: its codes mean something else
    assert shard.exists()
    assert not code.exists()


def test_a_voice_without_a_trained_vocoder_has_no_such_stage(tmp_path: Path) -> None:
    assert "vocoder" not in [job.name for job in conductor(tmp_path, "--size", "starter").jobs]


def test_a_second_run_keeps_the_front_half(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("encoder", "codec", "speaker"):
        part_path(tmp_path / "out", name).touch()
    second = conductor(tmp_path, "--stages", "encoder", "codec", "speaker", "gpt")
    assert [job.name for job in second.jobs] == ["data", "code", "gpt"]
    assert part_path(second.parts, "encoder").exists()


def test_jobs_wait_for_those_before_and_a_failed_one_is_tried_without_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = conductor(tmp_path)
    started: list[str] = []
    monkeypatch.setattr(made, "_start", lambda job: started.append(job.name))
    for job in made.jobs:
        made._tend(job)
    assert started == ["data", "encoder", "codec", "code", "gpt", "s2mel"]
    jobs = {job.name: job for job in made.jobs}
    for name in ("encoder", "codec"):
        jobs[name].status = 0
    made._tend(jobs["speaker"])
    made._tend(jobs["vocoder"])
    assert started[-1] == "speaker"

    class Failed:
        def poll(self) -> int:
            return 1

    jobs["gpt"].process = Failed()  # type: ignore[assignment]
    made._tend(jobs["gpt"])
    assert started[-1] == "gpt"
    assert "--no-replay" in jobs["gpt"].arguments
