"""The optimisation guide's code (``guide_code.py``): what its readers typed must run here unchanged.

The blocks stand as in the guide; only its ``...`` (arguments left out) is filled in. They run in a folder that holds a release with
random small weights in ``checkpoints/`` and a clip ``reference.wav``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.release import write_random_release
from tests.guide_code import (
    AMP,
    AUTOMATIC,
    AUTOMATIC_EVICTION,
    BENCHMARK,
    BOTTLENECK,
    COMPARISON,
    COMPILE,
    CUDNN,
    DEEPSPEED,
    DEVICE,
    FIRST_GPU,
    FLASH,
    GRAPHS,
    GROUPING,
    MANUAL,
    MANUAL_CACHE,
    MANUAL_PRECISION,
    MEMORY,
    NO_GRAPHS,
    PRECISION,
    PROFILER,
    TELEMETRY,
    VRAM,
)

CUDA = torch.cuda.is_available()
PROMPT = 'spk_audio_prompt="reference.wav", max_mel_tokens=12, diffusion_steps=2'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guide")
    write_random_release(path / "checkpoints", "small")
    import soundfile

    rate, samples = made_up_clip(1.5)
    soundfile.write(path / "reference.wav", samples, rate)
    return path


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[IndexTTS2]:
    with IndexTTS2(model_dir=folder / "checkpoints") as tts:
        yield tts


@pytest.fixture(autouse=True)
def _random_voices_may_run_on() -> Iterator[None]:
    """Random weights rarely stop by themselves, which is warned of and does not matter here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        yield


def run(block: str, **names: Any) -> dict[str, Any]:
    """Execute a block; the names it leaves behind."""
    scope = {"IndexTTS2": IndexTTS2, **names}
    exec(compile(block.replace(", ...)", f", {PROMPT})"), "guide", "exec"), scope)
    made = scope.get("tts")
    if made is not None and made is not names.get("tts"):
        made.close()
    return scope


def test_automatic_configuration() -> None:
    assert run(AUTOMATIC)["tts"].release.model_dir.name == "checkpoints"


def test_manual_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    from indextts.utils.gpu_config import GPUConfig

    expected = {"use_bf16", "use_fp16", "use_tf32", "use_flash_attn", "cudnn_benchmark", "architecture"}
    assert expected <= run(MANUAL)["settings"].keys()
    assert "Applied settings" in capsys.readouterr().out
    if not CUDA:
        assert GPUConfig.apply_optimal_settings()["architecture"] == "CPU"


@pytest.mark.gpu
def test_per_architecture_settings() -> None:
    assert str(run(FIRST_GPU)["tts"].device) == "cuda:0"


@pytest.mark.skipif(CUDA, reason="has the GPU that must be missing")
def test_a_missing_gpu_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="this machine has: cpu"):
        run(FIRST_GPU)


def test_flash_attention_check(capsys: pytest.CaptureFixture[str]) -> None:
    run(FLASH)
    assert capsys.readouterr().out.strip() in ("Flash Attention available: True", "Flash Attention available: False")


def test_the_flash_attention_extra_exists() -> None:
    from importlib.metadata import metadata

    assert "flashattn" in metadata("indextts2-lab").get_all("Provides-Extra")


def test_cache_constants() -> None:
    from indextts import infer_v2_modded

    assert infer_v2_modded.MAX_CACHE_SIZE_MB == 2048
    assert infer_v2_modded.CACHE_CHECK_INTERVAL == 5


def test_automatic_eviction(engine: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indextts.infer_v2_modded.MAX_CACHE_SIZE_MB", 0)
    monkeypatch.setattr("indextts.infer_v2_modded.CACHE_CHECK_INTERVAL", 2)
    before = engine.reference_cache.evictions
    for _ in range(3):
        run(AUTOMATIC_EVICTION, tts=engine)
    assert engine.reference_cache.evictions > before


def test_manual_cache_management(engine: IndexTTS2) -> None:
    run(AUTOMATIC_EVICTION, tts=engine)
    assert run(MANUAL_CACHE, tts=engine)["cache_mb"] > 0
    assert engine._get_cache_memory_mb() == 0


def test_cache_types(engine: IndexTTS2) -> None:
    run(AUTOMATIC_EVICTION, tts=engine)
    for name in ("cache_spk_cond", "cache_emo_cond", "cache_s2mel_style", "cache_s2mel_prompt", "cache_mel"):
        assert torch.is_tensor(getattr(engine, name)), name


def test_vram_monitoring(engine: IndexTTS2) -> None:
    scope = run(VRAM, tts=engine)
    assert scope["total_mb"] > 0 if CUDA else (scope["used_mb"], scope["total_mb"], scope["risk"]) == (0, 0, False)


def test_cuda_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    tts = run(GRAPHS)["tts"]
    assert tts.cuda_graphs_available is CUDA
    assert ("enabled successfully" in capsys.readouterr().out) is CUDA


def test_disabling_cuda_graphs(engine: IndexTTS2) -> None:
    run(NO_GRAPHS, tts=engine)
    assert not engine.cuda_graphs_enabled


def test_enabling_mixed_precision(capsys: pytest.CaptureFixture[str]) -> None:
    run(PRECISION)
    assert "Active dtype: " in capsys.readouterr().out
    if not CUDA:
        with IndexTTS2(use_fp16=True) as tts:
            assert tts.dtype is None


def test_manual_precision() -> None:
    assert run(MANUAL_PRECISION)["tts"].settings.precision == "fp32"


def test_automatic_mixed_precision(engine: IndexTTS2) -> None:
    layer = torch.nn.Linear(2, 2, device=engine.device)
    scope = run(AMP, torch=torch, self=engine, device=engine.device, model=layer, input=torch.zeros(1, 2, device=engine.device))
    assert scope["output"].shape == (1, 2)


def test_telemetry(engine: IndexTTS2, capsys: pytest.CaptureFixture[str]) -> None:
    block = TELEMETRY.replace('output_path="output.wav"\n', f'output_path="output.wav", {PROMPT.split(", ", 1)[1]}\n')
    assert run(block, tts=engine)["output_path"] == "output.wav"
    assert Path("output.wav").stat().st_size > 44
    assert "Real-Time Factor (RTF): " in capsys.readouterr().out
    assert engine.last_rtf == pytest.approx(engine.last_total_time / engine.last_audio_duration)


def test_bottleneck_identification(engine: IndexTTS2) -> None:
    scope = run(BOTTLENECK, tts=engine)
    assert 0 < scope["gpt_pct"] + scope["s2mel_pct"] + scope["bigvgan_pct"] <= 100


def test_batching_helper() -> None:
    assert run(GROUPING)["batches"] == [[1], [0], [2]]


def test_the_parallel_interface_is_where_the_guide_says() -> None:
    root = Path(__file__).resolve().parents[1]
    shown = subprocess.run([sys.executable, str(root / "webui_parallel.py"), "--help"], capture_output=True, text=True, check=True)
    assert "usage: indextts app" in shown.stdout


def test_torch_compile_is_a_switch() -> None:
    assert run(COMPILE)["tts"].settings.use_torch_compile


@pytest.mark.slow
def test_torch_compile_speaks_the_same(engine: IndexTTS2) -> None:
    call = {"spk_audio_prompt": "reference.wav", "text": "Test", "max_mel_tokens": 12, "diffusion_steps": 2, "seed": 1}
    _, plain = engine.infer(**call)
    engine.use_torch_compile = True
    try:
        _, compiled = engine.infer(**call)
    finally:
        engine.use_torch_compile = False
    assert abs(plain.astype(int) - compiled.astype(int)).max() <= 4


@pytest.mark.skipif("deepspeed" in os.environ.get("INDEXTTS_TEST_EXTRAS", ""), reason="DeepSpeed is installed")
def test_deepspeed_asked_for_and_missing_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="DeepSpeed was asked for but is not installed") as caught:
        run(DEEPSPEED)
    assert len(caught) == 1
    monkeypatch.setenv("INDEXTTS_USE_DEEPSPEED", "1")
    with pytest.warns(UserWarning, match="DeepSpeed"):
        run(AUTOMATIC)
    monkeypatch.setenv("INDEXTTS_USE_DEEPSPEED", "0")
    run(AUTOMATIC)


def test_cudnn_autotuner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    run(CUDNN)
    assert torch.backends.cudnn.benchmark is True


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_profiler(engine: IndexTTS2) -> None:
    assert run(PROFILER, tts=engine)["prof"].key_averages()


@pytest.mark.gpu
def test_memory_profiling(engine: IndexTTS2) -> None:
    assert run(MEMORY, tts=engine)["peak_mb"] > 0


def test_standard_benchmark(engine: IndexTTS2, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run(BENCHMARK, tts=engine)["times"]) == 10
    assert "Mean: " in capsys.readouterr().out


def test_comparative_benchmark() -> None:
    tts = run(COMPARISON, mean_time=1.0, rtf=1.0)["tts"]
    assert tts.name == "FP16 optimized"


@pytest.mark.gpu
def test_gpu_utilisation(engine: IndexTTS2) -> None:
    assert run(DEVICE, tts=engine)["stats"].name


@pytest.mark.skipif(CUDA, reason="has a GPU")
def test_there_are_no_gpu_figures_without_a_gpu() -> None:
    from indextts.utils.resource_monitor import ResourceMonitor

    assert ResourceMonitor().get_gpu_stats(0) is None
