"""The whole training in one command with a time limit: every stage is a process, and each starts when what it needs is there.

Data are made on all cores from the first second on. The front half has the accelerator to itself: first the encoder, then codec and
speaker encoder; after it language model, flow matching and vocoder share what is left. With a second GPU the vocoder has that one from the
beginning, and shares it with nobody but the coding. Stages that share a GPU run side by side on it (:mod:`indextts.training.sharing`).
``--stages`` leaves stages out, so that a run can be given to one of them alone. Parts are copied to the output folder as they are saved,
so a run that is killed loses a minute. A second run with the same output folder (or ``--resume``) keeps the front half as it is, since
codes must not change their meaning, and goes on with the rest on fresh text.

``--speech`` takes speech that the sub-command ``data`` makes or has made, so that runs one after the other share it and its codes.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from indextts.training.bundle import unpack_bundle
from indextts.training.make_data import STOP_FILE
from indextts.training.parts import NAMES, load_part, part_path
from indextts.training.sharing import GpuSharing
from indextts.training.sizes import SIZES

logger = logging.getLogger(__name__)

# Shares of the time limit (a fresh run) and most seconds that the front half may take, measured from when its input is there.
_SHARES = {"encoder": (0.24, 130.0), "speaker": (0.13, 70.0), "codec": (0.13, 70.0)}
STAGES = ("encoder", "codec", "speaker", "code", "gpt", "s2mel", "vocoder")
# Who must be finished before a job starts; the others start at once, get ready, and wait for the parts that they read.
_AFTER = {"speaker": ("encoder",), "vocoder": ("codec", "speaker")}
_SECOND_GPU = ("vocoder", "code")  # who goes there, if there is one
_DATA_SHARE = 0.6
_ENDING_S = 24.0  # samples, last copy
_START_S = 45.0  # of processes, and until there is speech
_GPT_SHARE = 0.82  # of the time after the front half: then the others have the GPU
_PRECISION = {"encoder": "bf16", "codec": "bf16", "speaker": "bf16", "gpt": "bf16", "s2mel": "bf16", "vocoder": "fp16"}
_STATUS_EVERY_S, _COPY_EVERY_S = 20.0, 40.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``all``."""
    parser.add_argument(
        "--out", type=Path, required=True, help="where the parts and logs.zip go, and where an earlier run's parts are found"
    )
    parser.add_argument("--resume", type=Path, help="folder of an earlier run's parts, if not --out")
    parser.add_argument("--work", type=Path, default=Path("/tmp/indextts-training"), help="scratch folder on a fast disk")
    speech = parser.add_mutually_exclusive_group(required=True)
    speech.add_argument("--synth", type=Path, help="bundle of synthesisers (archive or folder): speech is made")
    speech.add_argument("--speech", type=Path, help="folder of shards from the sub-command data, which may still be at work; none is made")
    parser.add_argument("--corpus", type=Path, help="sentences, from the sub-command text")
    parser.add_argument(
        "--lexicon", type=Path, help="lexicon.txt.gz of the voice, from the sub-command lexicon; else every word is spelled"
    )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to do in this run; gpt and s2mel also code what is new"
    )
    parser.add_argument("--absolute-pitch", action="store_true", help="codes also say how high a voice is, which emotions need")
    parser.add_argument("--faithful", action="store_true", help="codes agree with the phones that were spoken, whatever the encoder hears")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit of everything")
    parser.add_argument("--hours", type=float, default=160.0, help="most speech to make")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 4), help="processes that make speech")
    parser.add_argument("--size", default="small")
    parser.add_argument("--seed", type=int, default=1, help="give every run another one: other sentences are spoken")
    parser.add_argument(
        "--plan", default="", help="planned training seconds, such as encoder=110,gpt=900,s2mel=900 (default: what the time allows)"
    )
    parser.add_argument("--batch", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=1.0, help="factor on all learning rates")
    parser.add_argument("--afresh", action="store_true", help="count the planned times from now, whatever the resumed runs took")
    parser.add_argument("--device")
    parser.add_argument("--no-mps", action="store_true", help="let the stages take turns on a GPU instead of sharing it at any moment")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="for all stages (default: each one's own)")
    parser.add_argument(
        "--latents-seconds",
        type=float,
        default=0.0,
        help="end the language model so long before the end, and go on with its latents in flow matching",
    )
    parser.add_argument("--shard-seconds", type=float, default=480.0)


@dataclass
class Job:
    """One stage's process; it waits by itself for the parts and data that it needs."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    status: int | None = None
    tries: int = 0
    after: tuple[str, ...] = ()  # jobs that must have ended before
    gpu: int = 0  # which of those that may be used


def run(options: argparse.Namespace) -> None:
    """Run all stages; always ends within the time limit with the parts and ``logs.zip`` in ``--out``."""
    Conductor(options).run()


class Conductor:
    """Starts, watches, restarts and ends the stages' processes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began = time.monotonic()
        self.limit = 60.0 * options.minutes
        self.work: Path = options.work
        self.parts, self.logs, self.shards = self.work / "parts", self.work / "logs", options.speech or self.work / "shards"
        self._gpt_done = self.work / "gpt-done"
        self._gpt_done.unlink(missing_ok=True)
        # Codes stay valid as long as the front half stays as it is, and only for the same speech.
        kept = {self.shards, self.work / "coded"} if options.speech and not {"encoder", "codec", "speaker"} & set(options.stages) else set()
        for folder in (self.parts, self.logs, self.work / "shards", self.work / "coded"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.parts, self.logs, self.shards, options.out):
            folder.mkdir(parents=True, exist_ok=True)
        self._take_over()
        self.gpus = _gpus() if options.device is None else 1
        self._sharing, self._shared = GpuSharing(self.work), dict[str, str]()
        self.jobs = self._plan()
        self._copied = self._told = time.monotonic()
        self._stopped = False

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def _take_over(self) -> None:
        """Parts and curves of an earlier run."""
        source = self.options.resume or self.options.out
        for name in NAMES:
            if part_path(source, name).is_file():
                shutil.copy(part_path(source, name), part_path(self.parts, name))
                logger.info("found part %s", name)
        if (source / "logs.zip").is_file():
            with zipfile.ZipFile(source / "logs.zip") as archive:
                archive.extractall(self.logs)

    def _plan(self) -> list[Job]:
        options, limit = self.options, self.limit
        end = time.time() + limit - _ending(limit)
        jobs = [] if options.speech else [Job("data", self._data())]
        plans = self._plans()
        jobs += [Job(name, self._stage(name, plans[name], end, plans[name])) for name in _SHARES if name in plans]
        more = {"code": ["--faithful"] if options.faithful else []}
        more["gpt"] = more["s2mel"] = ["--lexicon", str(options.lexicon)] if options.lexicon else []
        if options.latents_seconds:
            more["s2mel"] = [*more["s2mel"], "--latents-from", str(self._gpt_done)]
        if {"code", "gpt", "s2mel"} & set(options.stages):
            jobs.append(Job("code", [*self._stage("code", limit, end, limit), *more["code"]]))
        for name in ("gpt", "s2mel", "vocoder"):
            if name in plans:
                # The language model ends with its plan, and leaves the GPU to the others.
                seconds = plans[name] - self._trained_s(name) if name == "gpt" and "gpt=" not in options.plan else limit
                until = end - options.latents_seconds if name == "gpt" else end
                jobs.append(Job(name, [*self._stage(name, seconds, until, plans[name]), *more.get(name, [])]))
        present = {job.name for job in jobs}
        for job in jobs:
            if self.gpus > 1 and job.name in _SECOND_GPU:
                job.gpu = 1
            job.after = tuple(name for name in _AFTER.get(job.name, ()) if name in present and not job.gpu)
        return jobs

    def _plans(self) -> dict[str, float]:
        """Planned training seconds of the stages of this run, all runs of a stage together."""
        options, limit = self.options, self.limit
        plans = {
            name: min(share * limit, most)
            for name, (share, most) in _SHARES.items()
            if name in options.stages and not part_path(self.parts, name).is_file()
        }
        rest = limit - _ending(limit)
        front = sum(plans.get(name, 0.0) for name in ("encoder", "codec")) + min(_START_S, 0.1 * limit)
        back = [name for name in ("gpt", "s2mel", "vocoder") if name in options.stages]
        if not SIZES[options.size]().config.vocoder.has_weights and "vocoder" in back:
            back.remove("vocoder")
        for name in back:
            seconds = rest if name == "vocoder" and self.gpus > 1 else rest - front
            plans[name] = (_GPT_SHARE if name == "gpt" and len(back) > 1 else 1.0) * seconds + self._trained_s(name)
        wanted = {key: float(value) for key, value in (item.split("=") for item in options.plan.split(",") if item)}
        return plans | {name: seconds for name, seconds in wanted.items() if name in plans}

    def _trained_s(self, name: str) -> float:
        """Seconds that earlier runs trained a part, as far as they count."""
        if self.options.afresh or not part_path(self.parts, name).is_file():
            return 0.0
        return float(load_part(self.parts, name)[1].get("seconds", 0.0))

    def _data(self) -> list[str]:
        options = self.options
        synth = options.synth if options.synth.is_dir() else unpack_bundle(options.synth, self.work / "synth")
        return [
            "data", "--shards", str(self.shards), "--synth", str(synth), "--workers", str(options.workers), "--hours", str(options.hours),
            "--seconds", str(_DATA_SHARE * self.limit), "--shard-seconds", str(options.shard_seconds), "--seed", str(options.seed),
            *(["--corpus", str(options.corpus)] if options.corpus else []),
        ]  # fmt: skip

    def _stage(self, name: str, seconds: float, end: float, plan: float) -> list[str]:
        options = self.options
        return [
            name, "--parts", str(self.parts), "--shards", str(self.shards), "--coded", str(self.work / "coded"), "--logs", str(self.logs),
            "--seconds", f"{seconds:.1f}", "--until", f"{end:.1f}", "--plan", f"{plan:.1f}", "--size", options.size,
            "--batch", str(options.batch), "--seed", str(options.seed), "--precision", options.precision or _PRECISION.get(name, "fp32"),
            "--save-every", str(min(60.0, self.limit / 8)), "--wait", f"{self.limit:.0f}", "--rate", str(options.rate),
            *(["--afresh"] if options.afresh else []),
            *(["--device", options.device] if options.device else []), *(["--absolute-pitch"] if options.absolute_pitch else []),
        ]  # fmt: skip

    # --------------------------------------------------------------------------------------------------------------- run

    def run(self) -> None:
        """Until the limit, or until every job is done."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stopped", True))
        try:
            for job in self.jobs:
                if job.name == "data":
                    self._tend(job)
            if self.options.device != "cpu" and _gpus() and not self.options.no_mps:
                self._shared = self._sharing.start()
            while not self._stopped and self.elapsed < self.limit - 0.6 * _ending(self.limit):
                for job in self.jobs:
                    self._tend(job)
                self._copy_parts()
                self._tell()
                if all(job.status is not None for job in self.jobs if job.name != "data"):
                    break
                time.sleep(0.5)
            self._render()
        finally:
            if not self.options.speech:
                (self.shards / STOP_FILE).touch()
            for job in self.jobs:
                _end(job)
            self._sharing.stop()
            self._copy_parts(now=True)
            self._pack_logs()
            logger.info(
                "finished after %.0f s; in %s: %s", self.elapsed, self.options.out, sorted(p.name for p in self.options.out.iterdir())
            )

    def _tend(self, job: Job) -> None:
        if job.status is not None:
            return
        if job.process is None:
            if all(other.status is not None for other in self.jobs if other.name in job.after):
                self._start(job)
            return
        status = job.process.poll()
        if status is None:
            return
        logger.info("%s ended with status %d at %.0f s", job.name, status, self.elapsed)
        if status != 0 and job.tries < 2 and self.elapsed < 0.8 * self.limit:
            logger.warning("%s failed:\n%s", job.name, self._tail(job, 12))
            if job.name in STAGES and "--no-replay" not in job.arguments:
                job.arguments.append("--no-replay")  # a failed recording can leave the device's state unusable
            self._start(job)
            return
        if status != 0:
            logger.error("%s failed for good:\n%s", job.name, self._tail(job, 25))
        job.status = status
        if job.name == "data":
            (self.shards / STOP_FILE).touch()  # also when it failed: the coding stage may end when it has seen all
        elif job.name == "gpt" and status == 0:
            self._gpt_done.touch()

    def _start(self, job: Job) -> None:
        job.tries += 1
        environment = {
            **os.environ,
            **self._shared,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        }
        if self.gpus > 1:
            usable = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = usable[job.gpu]
        with (self.logs / f"{job.name}.log").open("ab") as log:
            job.process = subprocess.Popen(
                [sys.executable, "-m", "indextts.training", *job.arguments], stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        logger.info("%s started at %.0f s", job.name, self.elapsed)

    def _tail(self, job: Job, lines: int) -> str:
        path = self.logs / f"{job.name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.is_file() else ""

    def _render(self) -> None:
        """Sample sentences, if all parts are there and time is left."""
        left = self.limit - self.elapsed - 2.0
        coded = any(job.name == "code" for job in self.jobs)
        if coded and all(part_path(self.parts, name).is_file() for name in NAMES[:-1]) and left > 3:
            for job in self.jobs:
                if job.status is None and job.process is not None and job.name not in ("data", "code"):
                    _wait(job.process, 0.3 * left)
            arguments = self._stage("samples", left, time.time() + left, left)
            arguments += ["--lexicon", str(self.options.lexicon)] if self.options.lexicon else []
            job = Job("samples", arguments)
            self._start(job)
            assert job.process is not None
            _wait(job.process, self.limit - self.elapsed - 1.5)
            self.jobs.append(job)

    # ------------------------------------------------------------------------------------------------------ what comes back

    def _copy_parts(self, now: bool = False) -> None:
        if not now and time.monotonic() - self._copied < min(_COPY_EVERY_S, self.limit / 10):
            return
        self._copied = time.monotonic()
        for name in NAMES:
            source, target = part_path(self.parts, name), part_path(self.options.out, name)
            if source.is_file() and (not target.is_file() or source.stat().st_mtime > target.stat().st_mtime):
                passing = self.work / f"{name}.copy"
                shutil.copy(source, passing)
                shutil.move(passing, target)
        self._pack_logs()

    def _pack_logs(self) -> None:
        passing = self.work / "logs.zip"
        with zipfile.ZipFile(passing, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(self.logs.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(self.logs))
        shutil.move(passing, self.options.out / "logs.zip")

    def _tell(self) -> None:
        if time.monotonic() - self._told < _STATUS_EVERY_S:
            return
        self._told = time.monotonic()
        shards = len(list(self.shards.glob("*.npz")))
        coded = len(list((self.work / "coded").glob("*.npz")))
        logger.info("%.0f s: %d shards, %d coded", self.elapsed, shards, coded)
        for job in self.jobs:
            if job.process is not None and job.status is None and job.name not in ("data", "code"):
                line = self._tail(job, 1)
                if line:
                    logger.info("  %s", line[9:150])


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _ending(limit: float) -> float:
    """Seconds kept at the end of a run of ``limit`` seconds."""
    return min(_ENDING_S, 0.2 * limit)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(max(0.1, seconds))
    except subprocess.TimeoutExpired:
        logger.warning("process %d is late", process.pid)


def _end(job: Job) -> None:
    """End a process with its children."""
    if job.process is None or job.process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(job.process.pid, number)
            job.process.wait(1.0)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return
