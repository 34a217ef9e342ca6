"""Installing and importing: a dependency listed in one place only breaks somebody's environment; a heavy import, every start."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import indextts

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"lab", "flashattn", "deepspeed", "cluster", "train", "test", "dev"}
HEAVY = ("torch", "torchaudio", "transformers", "numpy", "soundfile", "huggingface_hub", "yaml", "pynvml")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def canonical(requirements: list[str]) -> list[tuple[str, frozenset[str], str]]:
    parsed = [Requirement(text) for text in requirements]
    return sorted((item.name.lower(), frozenset(item.extras), str(item.specifier)) for item in parsed)


def test_environment_yml_holds_the_projects_dependencies(project: dict[str, Any]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    python, pip, section = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    *listed, package = section["pip"]
    assert package == "-e ."
    extras = project["optional-dependencies"]
    assert canonical(listed) == canonical([*project["dependencies"], *extras["lab"], *extras["test"]])


def test_every_extra_exists(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert set(extras) == EXTRAS
    assert all(canonical(requirements) for requirements in extras.values())


def test_no_requirement_twice(project: dict[str, Any]) -> None:
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        names = [name for name, _, _ in canonical(requirements)]
        assert len(names) == len(set(names))


def test_versions_agree(project: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", indextts.__version__)
    assert "version" in project["dynamic"], "pyproject.toml takes the version from the package"
    try:
        installed = metadata.version("indextts2-lab")
    except metadata.PackageNotFoundError:
        pytest.skip("indextts is not installed here")
    assert installed == indextts.__version__


def test_commands_exist(project: dict[str, Any]) -> None:
    for entry in project["scripts"].values():
        module, function = entry.split(":")
        assert callable(getattr(import_module(module), function))


def test_the_licence_is_the_one_declared(project: dict[str, Any]) -> None:
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 The indextts2-lab authors" in text


def fresh(code: str) -> str:
    """Output of a fresh interpreter in the repository's root."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert fresh(f"import sys, indextts; dir(indextts); print(*[name for name in {HEAVY} if name in sys.modules])") == ""


def test_importing_the_package_takes_no_time() -> None:
    code = "import time; start = time.perf_counter(); import indextts; print(time.perf_counter() - start)"
    assert min(float(fresh(code)) for _ in range(5)) < 0.2


def test_loading_a_system_imports_neither_transformers_nor_the_compiler(tmp_path: Path) -> None:
    code = f"""import sys
from indextts import IndexTTS2
from indextts.release import write_random_release
write_random_release({str(tmp_path / "release")!r})
for tts in (IndexTTS2.from_random("small", device="cpu"), IndexTTS2(model_dir={str(tmp_path / "release")!r}, device="cpu")):
    tts.close()
print(*[name for name in ("torch", "transformers", "torch._dynamo") if name in sys.modules])"""
    assert fresh(code) == "torch"


def test_the_settings_table_needs_no_torch() -> None:
    code = "import sys; from indextts import GPUConfig; GPUConfig.get_optimal_settings((8, 6)); print('torch' in sys.modules)"
    assert fresh(code) == "False"


def test_lazy_names_are_listed_and_resolve() -> None:
    from indextts.utils.gpu_config import GPUConfig

    assert {"IndexTTS2", "GPUConfig", "__version__"} <= set(dir(indextts))
    assert indextts.GPUConfig is GPUConfig
    with pytest.raises(AttributeError, match="IndexTTS3"):
        _ = indextts.IndexTTS3  # type: ignore[attr-defined]


def test_the_guides_module_has_its_live_settings() -> None:
    from indextts import infer_v2_modded

    assert (infer_v2_modded.MAX_CACHE_SIZE_MB, infer_v2_modded.CACHE_CHECK_INTERVAL) == (2048, 5)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = infer_v2_modded.no_such_name
