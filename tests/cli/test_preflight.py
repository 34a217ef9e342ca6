"""If this fails, ``indextts info`` calls a broken installation sound, or does not say how to mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from indextts import IndexTTS2, __version__, preflight
from indextts.preflight import Check, Preflight
from tests.cli.conftest import Run
from tests.release.damage import edit_config, replace


def check(report: Preflight, name: str) -> Check:
    (found,) = [check for check in report.checks if check.name == name]
    return found


def weights(folder: Path) -> list[Check]:
    return [check for check in sound(preflight.preflight(folder)).checks if check.name == "weights"]


def sound(report: Preflight) -> Preflight:
    """What holds for every report, whatever it finds."""
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    for line in report.checks:
        assert line.passed in (True, False, None)
        assert line.name
        assert line.finding
        assert line.remedy or line.passed is not False, f"{line.name}: FAIL without a remedy"
        assert "\n" not in line.finding + line.remedy
    text = str(report).splitlines()
    start = text.index("") + 1
    shown = [line for line in text[start:] if not line.startswith("       -> ")]
    assert [line[:4].strip() for line in shown] == [{True: "ok", False: "FAIL", None: "-"}[line.passed] for line in report.checks]
    assert len(text) - start - len(shown) == sum(line.passed is False for line in report.checks), "one remedy for each FAIL"
    return report


def test_sound_release(run: Run, release: Path) -> None:
    (line,) = weights(release)
    assert line.passed is True
    assert str(release) in line.finding
    code, out, err = run("info", "--model-dir", release)
    assert (code, err) == (0, "")
    assert f"weights: random-small (version 2.0) in {release}\n" in out
    assert "\nok   weights: " in out


def test_json(run: Run, release: Path) -> None:
    code, out, err = run("info", "--json", "--model-dir", release)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["versions"]["indextts2-lab"] == __version__
    assert {"python", "torch", "cuda", "transformers"} <= report["versions"].keys()
    assert report["checks"][-1]["passed"] is True
    assert {tuple(line) for line in report["checks"]} == {("name", "passed", "finding", "remedy")}


def test_without_any_weights_the_exit_code_is_0_and_the_remedy_is_there(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("indextts.release.find._REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr("indextts.release.find._PACKAGE", tmp_path / "package")
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert "weights: none\n" in out
    assert "\nFAIL weights: " in out
    assert out.endswith("       -> indextts download --dir checkpoints\n")
    assert json.loads(run("info", "--json")[1])["weights"] == "none"


def test_incomplete_release(release: Path) -> None:
    (release / "s2mel.pth").unlink()
    shutil.rmtree(release / "hf_cache" / "bigvgan")
    (line,) = weights(release)
    assert line.passed is False
    assert "s2mel.pth" in line.finding
    assert "bigvgan_generator.pt" in line.finding
    assert line.remedy == f"indextts download --dir {release}"


@pytest.mark.parametrize(
    ("name", "damage", "finding"),
    [
        ("gpt.pth", lambda data: data[: len(data) // 2], "truncated"),
        ("s2mel.pth", lambda data: b"<html>not found</html>", "web page"),
        ("feat1.pt", lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("hf_cache/semantic_codec_model.safetensors", lambda data: data[:-1], "truncated"),
        ("bpe.model", lambda data: data[:50], "SentencePiece"),
        ("hf_cache/bigvgan/config.json", lambda data: b"{", "cannot be read"),
    ],
)
def test_damaged_files_are_named_each_with_its_remedy(release: Path, name: str, damage: Callable[[bytes], bytes], finding: str) -> None:
    replace(release / name, damage((release / name).read_bytes()))
    (line,) = weights(release)
    assert line.passed is False
    assert str(release / name) in line.finding
    assert finding in line.finding
    assert f"indextts download --dir {release}" in line.remedy


@pytest.mark.parametrize(
    ("change", "finding"),
    [({"version": 2.5}, "only release 2.0 is supported"), ({"gpt": {"heads": 7}}, "gpt.heads"), ({"gpt": 3}, "section gpt")],
)
def test_configuration_that_cannot_be_used(release: Path, change: dict[str, Any], finding: str) -> None:
    edit_config(release, **change)
    (line,) = weights(release)
    assert line.passed is False
    assert finding in line.finding
    assert "--model-dir" in line.remedy


def test_configuration_that_is_no_yaml(release: Path) -> None:
    replace(release / "config.yaml", b"gpt: [1,\n  two: {")
    (line,) = weights(release)
    assert "config.yaml is not valid YAML" in line.finding


def test_nothing_is_loaded_fetched_or_written(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(IndexTTS2, "__init__", None)
    monkeypatch.setattr("indextts.release.hub.Hub.__init__", None)
    before = sorted(release.rglob("*"))
    sound(preflight.preflight(release))
    sound(preflight.preflight(release.parent / "nowhere"))
    assert sorted(release.rglob("*")) == before
    assert not list(Path.cwd().iterdir())


# ----------------------------------------------------------------------------------------------------------------- GPUs


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    *,
    used_mb: float = 1000.0,
    degrees: float | None = 50.0,
    flash: bool = False,
    computes: bool = True,
) -> None:
    """A GPU with 24 GB."""
    total = 24 * 1024.0
    properties = SimpleNamespace(name="Pretended GPU", major=capability[0], minor=capability[1], total_memory=int(total) * 2**20)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda *_: properties)
    monkeypatch.setattr("indextts.utils.gpu_config.GPUConfig.check_flash_attention", lambda: flash)
    monkeypatch.setattr("indextts.utils.resource_monitor.get_vram_summary", lambda *_: (used_mb, total, 100 * used_mb / total))
    stats = SimpleNamespace(temperature_c=degrees)
    monkeypatch.setattr("indextts.utils.resource_monitor.ResourceMonitor.get_gpu_stats", lambda *_: stats)
    monkeypatch.setattr(preflight, "_can_compute", lambda _: computes)


def test_no_gpu_is_no_failure(monkeypatch: pytest.MonkeyPatch, release: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    report = sound(preflight.preflight(release))
    assert {line.passed for line in report.checks if line.name != "weights"} == {None}
    assert "GPU: none; the CPU is used" in str(report)


def test_good_gpu(monkeypatch: pytest.MonkeyPatch, release: Path) -> None:
    pretend(monkeypatch, (8, 6), flash=True)
    report = sound(preflight.preflight(release))
    assert all(line.passed for line in report.checks)
    assert len(report.checks) == 7
    assert check(report, "GPU architecture").finding == "Ampere (sm_86)"
    assert check(report, "mixed precision").finding == "bf16"
    assert "GPU index 0, name Pretended GPU" in str(report)


def test_older_gpus_run_in_fp16_or_not_at_all(monkeypatch: pytest.MonkeyPatch, release: Path) -> None:
    pretend(monkeypatch, (7, 5))
    report = sound(preflight.preflight(release))
    assert check(report, "mixed precision").finding == "fp16"
    assert check(report, "flash attention").passed is None
    pretend(monkeypatch, (6, 1))
    report = sound(preflight.preflight(release))
    assert check(report, "GPU architecture").passed is False
    assert check(report, "mixed precision").passed is False


@pytest.mark.parametrize(
    ("trouble", "name", "remedy"),
    [
        ({"used_mb": 20_000.0}, "GPU memory", "close other programs"),
        ({"degrees": 91.0}, "temperature", "cool"),
        ({"flash": False}, "flash attention", "indextts2-lab[flashattn]"),
        ({"computes": False}, "CUDA and driver", "driver"),
    ],
)
def test_trouble_is_a_failure_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, release: Path, trouble: dict[str, Any], name: str, remedy: str
) -> None:
    pretend(monkeypatch, (8, 9), **{"flash": True, **trouble})
    report = sound(preflight.preflight(release))
    assert [line.name for line in report.checks if line.passed is False] == [name]
    assert remedy in check(report, name).remedy


def test_unknown_temperature_is_not_judged(monkeypatch: pytest.MonkeyPatch, release: Path) -> None:
    pretend(monkeypatch, (9, 0), flash=True, degrees=None)
    assert check(sound(preflight.preflight(release)), "temperature").passed is None
