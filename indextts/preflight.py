"""``indextts info``: what this machine has, which weights are found, and a checklist with a verdict and a remedy for each line."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from indextts import __version__

ENOUGH_VRAM_MB = 8 * 1024
MOST_DEGREES_C = 85


@dataclass(frozen=True)
class Check:
    """One line of the checklist; ``passed`` is None where it does not apply to this machine."""

    name: str
    passed: bool | None
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Preflight:
    """The report; ``str()`` is what the command prints."""

    versions: dict[str, str]
    gpus: list[dict[str, Any]]
    settings: dict[str, Any]
    weights: str
    checks: list[Check] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)

    def __str__(self) -> str:
        marks = {True: "ok  ", False: "FAIL", None: "-   "}
        lines = ["  ".join(f"{name} {version}" for name, version in self.versions.items())]
        if not self.gpus:
            lines.append("GPU: none; the CPU is used")
        lines += ["GPU " + ", ".join(f"{key} {value}" for key, value in gpu.items()) for gpu in self.gpus]
        lines.append("settings: " + ", ".join(f"{key} {value}" for key, value in self.settings.items()))
        lines += [f"weights: {self.weights}", ""]
        for check in self.checks:
            lines.append(f"{marks[check.passed]} {check.name}: {check.finding}")
            if check.passed is False and check.remedy:
                lines.append(f"       -> {check.remedy}")
        return "\n".join(lines)


def preflight(model_dir: str | Path | None = None) -> Preflight:
    """Look at GPU, settings and weights; nothing is loaded and nothing is fetched."""
    import torch

    from indextts.utils.gpu_config import GPUConfig

    gpus = [dict(gpu) for gpu in GPUConfig.list_available_gpus()]
    settings = dict(GPUConfig.get_optimal_settings(_capability(torch))) if gpus else {"architecture": "CPU", "precision": "fp32"}
    weights, weight_checks = _weights(model_dir)
    versions = {
        "indextts2-lab": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "transformers": metadata.version("transformers"),  # importing it takes seconds
    }
    return Preflight(versions, gpus, settings, weights, [*_gpu_checks(torch, bool(gpus)), *weight_checks])


def _capability(torch: Any) -> tuple[int, int]:
    return torch.cuda.get_device_capability(0)


def _gpu_checks(torch: Any, present: bool) -> list[Check]:
    from indextts.utils.gpu_config import GPUConfig
    from indextts.utils.resource_monitor import ResourceMonitor, get_vram_summary

    if not present:
        finding = "no GPU is visible to torch"
        remedy = "on a machine that has one: install the driver (nvidia-smi must list it) and a CUDA build of torch"
        names = ("mixed precision", "flash attention", "GPU memory", "CUDA and driver", "temperature")
        return [Check("GPU architecture", None, finding, remedy), *(Check(name, None, "needs a GPU") for name in names)]
    capability = _capability(torch)
    best = GPUConfig.get_optimal_settings(capability)
    used, total, percent = get_vram_summary(0)
    stats = ResourceMonitor().get_gpu_stats(0)
    sixteen_bit = best["use_bf16"] or best["use_fp16"]
    flash_fits = capability >= (8, 0)
    checks = [
        Check(
            "GPU architecture", best["architecture"] != "Legacy", f"{best['architecture']} (sm_{capability[0]}{capability[1]})", "too old"
        ),
        Check(
            "mixed precision",
            sixteen_bit,
            "bf16" if best["use_bf16"] else "fp16" if best["use_fp16"] else "fp32 only",
            "use_fp16=True has no effect",
        ),
        Check(
            "flash attention",
            GPUConfig.check_flash_attention() if flash_fits else None,
            "installed"
            if GPUConfig.check_flash_attention()
            else "not installed; torch's own attention is used"
            if flash_fits
            else "needs sm_80",
            "pip install 'indextts2-lab[flashattn]' (optional)",
        ),
        Check(
            "GPU memory",
            total - used >= ENOUGH_VRAM_MB,
            f"{total - used:.0f} of {total:.0f} MB free ({percent:.0f} % used)",
            "close other programs on the GPU, or use precision='bf16' and fewer beams",
        ),
        Check("CUDA and driver", _can_compute(torch), f"torch built for CUDA {torch.version.cuda}", "update the driver: see nvidia-smi"),
    ]
    degrees = stats.temperature_c if stats else None
    cool = None if degrees is None else degrees < MOST_DEGREES_C
    checks.append(
        Check("temperature", cool, "not known" if degrees is None else f"{degrees:.0f} C", "let it cool: a hot GPU slows itself down")
    )
    return checks


def _can_compute(torch: Any) -> bool:
    try:
        return bool((torch.ones(2, device="cuda") + 1).sum().item() == 4)
    except RuntimeError:
        return False


def _weights(model_dir: str | Path | None) -> tuple[str, list[Check]]:
    from indextts.config import ConfigError
    from indextts.release import find_release, verify_release
    from indextts.release.layout import download_command

    try:
        release = find_release(model_dir)
    except ConfigError as error:
        return "none", [Check("weights", False, _one_line(error), "correct that file, or name another folder with --model-dir")]
    except (OSError, ValueError, RuntimeError) as error:
        return "none", [Check("weights", False, _one_line(error), download_command(Path(model_dir or "checkpoints")))]
    problems = verify_release(release)
    checks = [Check("weights", True, f"{release.config.name} in {release.model_dir}")] if not problems else []
    checks += [Check("weights", False, _one_line(f"{problem.path}: {problem.problem}"), problem.remedy) for problem in problems]
    return f"{release.config.name} (version {release.config.version}) in {release.model_dir}", checks


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
