"""GPU settings: a wrong row gives a card a number format it lacks, or leaves its speed unused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from indextts.utils.gpu_config import GPUConfig, GPUList

BACKENDS = torch.backends.cuda


@pytest.fixture(autouse=True)
def switches_restored() -> Iterator[None]:
    before = (
        BACKENDS.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        BACKENDS.flash_sdp_enabled(),
        BACKENDS.mem_efficient_sdp_enabled(),
        BACKENDS.math_sdp_enabled(),
    )
    yield
    BACKENDS.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[:3]
    BACKENDS.enable_flash_sdp(before[3])
    BACKENDS.enable_mem_efficient_sdp(before[4])
    BACKENDS.enable_math_sdp(before[5])


def pretend(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """Cards of these capabilities as torch would show them."""
    cards = [SimpleNamespace(name=f"Card <{i}>", major=a, minor=b, total_memory=(24 << 30) + i) for i, (a, b) in enumerate(capabilities)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])


def with_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_func = lambda q, k, v: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def without_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)


# capability, architecture, bf16, fp16, tf32, flash attention, transformer engine, best 16-bit type
ROWS = [
    ((12, 1), "Blackwell", True, False, True, True, True, "bfloat16"),
    ((12, 0), "Blackwell", True, False, True, True, True, "bfloat16"),
    ((10, 0), "Blackwell", True, False, True, True, True, "bfloat16"),
    ((9, 0), "Hopper", True, False, True, True, True, "bfloat16"),
    ((8, 9), "Ada Lovelace", True, True, True, True, False, "bfloat16"),
    ((8, 8), "Ampere", True, True, True, True, False, "bfloat16"),
    ((8, 6), "Ampere", True, True, True, True, False, "bfloat16"),
    ((8, 0), "Ampere", True, True, True, True, False, "bfloat16"),
    ((7, 5), "Turing", False, True, False, False, False, "float16"),
    ((7, 2), "Volta", False, True, False, False, False, "float16"),
    ((7, 0), "Volta", False, True, False, False, False, "float16"),
    ((6, 1), "Legacy", False, False, False, False, False, "float32"),
    ((3, 5), "Legacy", False, False, False, False, False, "float32"),
]


@pytest.mark.parametrize(("capability", "architecture", "bf16", "fp16", "tf32", "flash", "engine", "dtype"), ROWS)
def test_table(
    capability: tuple[int, int], architecture: str, bf16: bool, fp16: bool, tf32: bool, flash: bool, engine: bool, dtype: str
) -> None:
    settings = GPUConfig.get_optimal_settings(capability)
    assert settings["architecture"] == architecture
    assert (settings["use_bf16"], settings["use_fp16"], settings["use_tf32"]) == (bf16, fp16, tf32)
    assert (settings["use_flash_attn"], settings["use_transformer_engine"]) == (flash, engine)
    assert settings["cudnn_benchmark"] is True
    assert settings["channels_last"] is (capability >= (9, 0))
    assert settings["preferred_dtype"] == dtype
    assert isinstance(getattr(torch, dtype), torch.dtype)
    assert ("build from source" in settings["flash_attn_note"]) == (architecture == "Blackwell")


def test_the_table_is_not_shared_between_callers() -> None:
    GPUConfig.get_optimal_settings((9, 0))["use_bf16"] = False
    assert GPUConfig.get_optimal_settings((9, 0))["use_bf16"] is True


@pytest.mark.parametrize("capability", [8.6, None, (8,), (8, 0, 1), (-1, 0), ("a", "b")])
def test_what_is_no_capability_is_refused(capability: object) -> None:
    with pytest.raises(ValueError, match="compute capability"):
        GPUConfig.get_optimal_settings(capability)  # type: ignore[arg-type]


def test_without_a_gpu_everything_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    settings = GPUConfig.apply_optimal_settings()
    assert settings["architecture"] == "CPU"
    assert not any(value for value in settings.values() if isinstance(value, bool))
    assert settings["preferred_dtype"] == "float32"
    assert GPUConfig.list_available_gpus() == []
    assert not torch.backends.cudnn.benchmark
    assert BACKENDS.flash_sdp_enabled(), "attention on the CPU must keep its fast kernel"


@pytest.mark.parametrize(("capability", "modern"), [((9, 0), True), ((8, 0), True), ((7, 5), False), ((6, 1), False)])
def test_switches_follow_the_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], modern: bool) -> None:
    pretend(monkeypatch, capability)
    without_flash_attn(monkeypatch)
    BACKENDS.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not modern
    torch.backends.cudnn.benchmark = False
    BACKENDS.enable_flash_sdp(not modern)
    BACKENDS.enable_mem_efficient_sdp(False)
    GPUConfig.apply_optimal_settings()
    assert BACKENDS.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is modern
    assert BACKENDS.flash_sdp_enabled() is modern
    assert torch.backends.cudnn.benchmark
    assert BACKENDS.mem_efficient_sdp_enabled(), "the fallback without flash attention"


def test_both_tf32_interfaces_of_torch_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch raises when one reads a switch through one interface that was written through the other; torch.compile reads both.
    pretend(monkeypatch, (9, 0))
    without_flash_attn(monkeypatch)
    BACKENDS.matmul.fp32_precision = "ieee"  # a user's own earlier choice, by the newer interface
    GPUConfig.apply_optimal_settings()
    assert BACKENDS.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.get_float32_matmul_precision() == "high"
    pretend(monkeypatch, (7, 0))
    GPUConfig.apply_optimal_settings()
    assert BACKENDS.matmul.fp32_precision != "tf32"
    assert torch.get_float32_matmul_precision() == "highest"


def test_flash_attention_needs_card_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0), (7, 5))
    without_flash_attn(monkeypatch)
    assert not GPUConfig.check_flash_attention()
    assert not GPUConfig.apply_optimal_settings(0)["use_flash_attn"]
    with_flash_attn(monkeypatch)
    assert GPUConfig.check_flash_attention()
    assert GPUConfig.apply_optimal_settings(0)["use_flash_attn"]
    assert not GPUConfig.apply_optimal_settings(1)["use_flash_attn"]


def test_a_broken_flash_attention_is_reported_not_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    folder = tmp_path / "flash_attn"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not GPUConfig.check_flash_attention()
    assert "undefined symbol" in caplog.text


def test_a_source_folder_named_flash_attn_is_not_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert not GPUConfig.check_flash_attention()


def test_transformer_engine_only_where_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    pretend(monkeypatch, (9, 0), (8, 9))
    without_flash_attn(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not GPUConfig.apply_optimal_settings(0)["use_transformer_engine"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert GPUConfig.apply_optimal_settings(0)["use_transformer_engine"]
    assert not GPUConfig.apply_optimal_settings(1)["use_transformer_engine"]


@pytest.mark.parametrize("device_id", [2, -1, "cuda:0", True, 0.0])
def test_a_device_that_does_not_exist_lists_those_that_do(monkeypatch: pytest.MonkeyPatch, device_id: int) -> None:
    pretend(monkeypatch, (9, 0), (7, 5))
    with pytest.raises(ValueError, match=r"0 \(Card <0>\), 1 \(Card <1>\)"):
        GPUConfig.apply_optimal_settings(device_id)


def test_list_is_plain_data_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    pretend(monkeypatch, (9, 0), (7, 5))
    gpus = GPUConfig.list_available_gpus()
    assert json.loads(json.dumps(gpus)) == [
        {
            "index": 0,
            "name": "Card <0>",
            "compute_capability": "9.0",
            "architecture": "Hopper",
            "memory_mb": 24576,
            "bf16": True,
            "flash_attention": True,
        },
        {
            "index": 1,
            "name": "Card <1>",
            "compute_capability": "7.5",
            "architecture": "Turing",
            "memory_mb": 24576,
            "bf16": False,
            "flash_attention": False,
        },
    ]
    lines = repr(gpus).splitlines()
    assert [line.split()[0] for line in lines] == ["index", "0", "1"]
    assert lines[1].endswith("yes")
    shown = gpus._repr_html_()
    assert shown.count("<tr>") == 3
    assert "Card &lt;0&gt;" in shown
    assert repr(GPUList()) == "no CUDA GPU"
    assert "no CUDA GPU" in GPUList()._repr_html_()


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    settings = GPUConfig.apply_optimal_settings(0)
    major, _ = torch.cuda.get_device_capability(0)
    assert settings["use_bf16"] == settings["use_tf32"] == (major >= 8)
    assert torch.backends.cudnn.benchmark
    (gpu, *_) = GPUConfig.list_available_gpus()
    assert gpu["name"] == torch.cuda.get_device_name(0)
    half = getattr(torch, settings["preferred_dtype"])
    assert torch.ones(8, 8, device="cuda", dtype=half).matmul(torch.ones(8, 8, device="cuda", dtype=half)).eq(8).all()
