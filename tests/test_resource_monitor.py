"""Memory and load figures: a wrong card's figures, or an exception from a monitor, would spoil a run that works."""

from __future__ import annotations

import dataclasses
import mmap
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from indextts.utils import resource_monitor
from indextts.utils.resource_monitor import (
    GPUStats,
    ResourceMonitor,
    get_next_inference_mb,
    get_process_memory_mb,
    get_vram_summary,
    predict_oom_risk,
    set_next_inference_mb,
)

MIB = 1024**2
GIB = 1024**3


class Card(SimpleNamespace):
    """One card as NVML sees it."""

    def __init__(self, uuid: str, used: float, total: float = 80 * GIB, slices: tuple[Card, ...] = (), **answers: Any) -> None:
        defaults = {"load": 37, "celsius": 61, "milliwatts": 345_600}
        super().__init__(uuid=uuid, used=int(used), total=int(total), slices=slices, **{**defaults, **answers})


class FakeNVML:
    """Stands for ``pynvml``; a name in ``broken`` raises when called."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: Card, broken: tuple[str, ...] = (), bytes_uuid: bool = False) -> None:
        self.cards, self.broken, self.bytes_uuid, self.starts = cards, broken, bytes_uuid, 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.broken:
            raise RuntimeError(f"{name}: Not Supported")
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:  # noqa: N802 (NVML's names)
        self.starts += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        return self.cards[index]

    def nvmlDeviceGetUUID(self, card: Card) -> str | bytes:  # noqa: N802
        return card.uuid.encode() if self.bytes_uuid else card.uuid

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return 7 if card.slices else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, slot: int) -> Card:  # noqa: N802
        return card.slices[slot]  # as NVML: an error for an empty slot

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        return SimpleNamespace(used=card.used, total=card.total, free=card.total - card.used)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=card.load, memory=5)

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> int:  # noqa: N802
        assert sensor == self.NVML_TEMPERATURE_GPU
        return card.celsius

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:  # noqa: N802
        return card.milliwatts


EVERY_CALL = [name for name in vars(FakeNVML) if name.startswith("nvml")]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_monitor, "_NVML", resource_monitor._NvmlConnection())
    monkeypatch.setattr(resource_monitor, "_needs", {})


def machine(
    monkeypatch: pytest.MonkeyPatch,
    nvml: FakeNVML | None,
    visible: dict[str, float],
    used: float = 7 * GIB,
    reserved: float = 0,
    allocated: float = 0,
) -> None:
    """Torch sees ``visible`` (bare UUID -> total bytes), in that order, each ``used`` full; ``nvml`` sees what it likes."""
    cards = [SimpleNamespace(name=f"Card {uuid}", uuid=uuid, total_memory=int(total)) for uuid, total in visible.items()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: cards[i])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (cards[i].total_memory - int(used), cards[i].total_memory))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda i: int(reserved))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda i: int(allocated))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def stats(device_id: int = 0) -> GPUStats:
    found = ResourceMonitor().get_gpu_stats(device_id)
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------------------- no GPU


def test_without_a_gpu_zeros_and_no_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNVML(Card("GPU-a", GIB))
    machine(monkeypatch, nvml, {})
    assert get_vram_summary() == (0, 0, 0)
    assert get_vram_summary(device_id=1) == (0, 0, 0)
    set_next_inference_mb(0, 1e9)
    assert predict_oom_risk() is False
    assert ResourceMonitor().get_gpu_stats(0) is None
    assert nvml.starts == 0


def test_process_memory_is_this_processs_and_grows_with_it() -> None:
    before = get_process_memory_mb()
    assert 5 < before < 100_000
    with mmap.mmap(-1, 64 * MIB) as block:  # fresh pages, where a bytearray may get what was freed before
        block.write(b"\x01" * (64 * MIB))
        assert 50 < get_process_memory_mb() - before < 200


def test_process_memory_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    current = get_process_memory_mb()
    monkeypatch.setattr(resource_monitor.Path, "exists", lambda self: False)
    assert get_process_memory_mb() >= current * 0.9  # the peak, in the same unit
    monkeypatch.setattr(sys, "platform", "darwin")
    assert get_process_memory_mb() < current  # macOS counts bytes where Linux counts KiB


# ------------------------------------------------------------------------------------------------------------ reading


def test_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNVML(Card("GPU-a", 8 * GIB))
    machine(monkeypatch, nvml, {"a": 79.2 * GIB})
    reading = stats()
    assert reading == GPUStats("Card a", 8192, 81920, 37, 61, 345.6)
    assert reading.memory_percent == pytest.approx(10)
    assert get_vram_summary() == (8192, 81920, pytest.approx(10))
    with pytest.raises(dataclasses.FrozenInstanceError):
        reading.used_memory_mb = 0  # type: ignore[misc]
    assert nvml.starts == 1, "NVML is started once for all readings"


@pytest.mark.parametrize("bytes_uuid", [False, True])
def test_cards_are_matched_by_uuid_not_by_number(monkeypatch: pytest.MonkeyPatch, bytes_uuid: bool) -> None:
    # CUDA_VISIBLE_DEVICES=2,0: torch's first device is the machine's third.
    nvml = FakeNVML(Card("GPU-AA", 1 * GIB), Card("GPU-bb", 2 * GIB), Card("GPU-cc", 3 * GIB), bytes_uuid=bytes_uuid)
    machine(monkeypatch, nvml, {"cc": 80 * GIB, "aa": 80 * GIB})
    assert [stats(i).used_memory_mb for i in range(2)] == [3072, 1024]
    assert ResourceMonitor().get_gpu_stats(2) is None
    assert ResourceMonitor().get_gpu_stats(-1) is None


@pytest.mark.parametrize("device_id", [2, -1])
def test_a_wrong_device_is_named_where_there_are_right_ones(monkeypatch: pytest.MonkeyPatch, device_id: int) -> None:
    machine(monkeypatch, None, {"a": GIB, "b": GIB})
    for ask in (get_vram_summary, predict_oom_risk):
        with pytest.raises(ValueError, match=r"0 \(Card a\), 1 \(Card b\)"):
            ask(device_id)


def mig_machine() -> FakeNVML:
    small = Card("MIG-s1", 1 * GIB, 10 * GIB, load=None)
    large = Card("MIG-s2", 5 * GIB, 20 * GIB, load=None)
    return FakeNVML(Card("GPU-board", 30 * GIB, 80 * GIB, slices=(small, large), load=None, celsius=70))


def test_a_mig_slice_shows_its_own_memory_and_its_boards_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mig_machine(), {"s2": 19.6 * GIB})
    reading = stats()
    assert (reading.used_memory_mb, reading.total_memory_mb) == (5 * 1024, 20 * 1024)
    assert (reading.utilization_percent, reading.temperature_c) == (None, 70)


def test_a_mig_slice_known_by_its_boards_uuid_does_not_show_the_boards_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, mig_machine(), {"board": 20 * GIB}, used=4 * GIB)
    reading = stats()
    assert (reading.used_memory_mb, reading.total_memory_mb) == (4 * 1024, 20 * 1024)


# ----------------------------------------------------------------------------------------------- NVML absent or wrong


def test_without_nvml_torchs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, None, {"a": 80 * GIB})
    assert stats() == GPUStats("Card a", 7 * 1024, 80 * 1024, None, None, None)


def test_a_card_that_nvml_does_not_list(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, FakeNVML(Card("GPU-other", GIB)), {"a": 80 * GIB})
    assert stats() == GPUStats("Card a", 7 * 1024, 80 * 1024, None, None, None)


@pytest.mark.parametrize("call", EVERY_CALL)
def test_any_nvml_call_may_fail(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    machine(monkeypatch, FakeNVML(Card("GPU-a", 8 * GIB), broken=(call,)), {"a": 80 * GIB})
    reading = stats()
    assert reading.used_memory_mb in (8 * 1024, 7 * 1024)  # NVML's or torch's
    assert reading.total_memory_mb == 80 * 1024
    assert get_vram_summary()[0] == reading.used_memory_mb
    assert predict_oom_risk() is False
    lost = {
        "nvmlDeviceGetUtilizationRates": "utilization_percent",
        "nvmlDeviceGetTemperature": "temperature_c",
        "nvmlDeviceGetPowerUsage": "power_w",
    }
    if call in lost:
        others = [getattr(reading, name) for name in lost.values() if name != lost[call]]
        assert getattr(reading, lost[call]) is None
        assert None not in others


def test_all_nvml_calls_may_fail_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNVML(Card("GPU-a", 8 * GIB))
    machine(monkeypatch, nvml, {"a": 80 * GIB})
    assert stats().used_memory_mb == 8 * 1024
    nvml.broken = tuple(EVERY_CALL)  # the driver went away
    assert stats() == GPUStats("Card a", 7 * 1024, 80 * 1024, None, None, None)


@pytest.mark.parametrize(
    "card",
    [
        Card("GPU-a", 8 * GIB, 0),
        Card("GPU-a", 8 * GIB, 3 * GIB),
        Card("GPU-a", -1),
        Card("GPU-a", 81 * GIB),
        Card("GPU-a", 2**64 - 1),
        Card("GPU-a", GIB, 2**64 - 1),
    ],
)
def test_impossible_memory_is_not_believed(monkeypatch: pytest.MonkeyPatch, card: Card) -> None:
    machine(monkeypatch, FakeNVML(card), {"a": 80 * GIB})
    assert (stats().used_memory_mb, stats().total_memory_mb) == (7 * 1024, 80 * 1024)


def test_impossible_sensors_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lying = Card("GPU-a", GIB, load=65535, celsius=float("nan"), milliwatts=2**32 - 1)
    machine(monkeypatch, FakeNVML(lying), {"a": 80 * GIB})
    assert stats() == GPUStats("Card a", 1024, 80 * 1024, None, None, None)


def test_a_card_too_full_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(device_id: int) -> tuple[int, int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    machine(monkeypatch, None, {"a": 80 * GIB}, reserved=2 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    assert stats() == GPUStats("Card a", 2 * 1024, 80 * 1024)


def test_many_threads_start_nvml_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNVML(Card("GPU-a", 8 * GIB))
    machine(monkeypatch, nvml, {"a": 80 * GIB})
    together = threading.Barrier(8)

    def read(_: int) -> float:
        together.wait()
        return stats().used_memory_mb

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {8 * 1024}
    assert nvml.starts == 1


# ----------------------------------------------------------------------------------------------------------- OOM risk


@pytest.mark.parametrize(
    ("used_gib", "need_gib", "threshold", "risk"),
    [
        (8, 0, 90, False),
        (72, 0, 90, True),
        (71.9, 0, 90, False),
        (8, 63.9, 90, False),
        (8, 64, 90, True),
        (8, 64, 95, False),
        (0, 0, 0, True),
    ],
)
def test_risk_is_use_plus_need_against_the_threshold(
    monkeypatch: pytest.MonkeyPatch, used_gib: float, need_gib: float, threshold: float, risk: bool
) -> None:
    machine(monkeypatch, FakeNVML(Card("GPU-a", used_gib * GIB)), {"a": 80 * GIB})
    set_next_inference_mb(0, need_gib * 1024)
    assert predict_oom_risk(0, threshold_percent=threshold) is risk


def test_memory_that_torch_holds_ready_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # 70 of 80 GiB in use, of which torch holds 10 unused: an inference that needs 8 takes nothing new.
    machine(monkeypatch, FakeNVML(Card("GPU-a", 70 * GIB)), {"a": 80 * GIB}, reserved=60 * GIB, allocated=50 * GIB)
    set_next_inference_mb(0, 8 * 1024)
    assert predict_oom_risk() is False
    set_next_inference_mb(0, 12 * 1024)
    assert predict_oom_risk() is True


def test_needs_are_kept_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, FakeNVML(Card("GPU-a", GIB), Card("GPU-b", GIB)), {"a": 80 * GIB, "b": 80 * GIB})
    set_next_inference_mb(1, 79 * 1024)
    assert (get_next_inference_mb(0), get_next_inference_mb(1)) == (0, 79 * 1024)
    assert (predict_oom_risk(0), predict_oom_risk(1)) == (False, True)


@pytest.mark.parametrize("mb", [-1, float("nan"), float("inf")])
def test_an_impossible_need_is_refused(mb: float) -> None:
    with pytest.raises(ValueError, match="MiB"):
        set_next_inference_mb(0, mb)


@pytest.mark.parametrize("threshold", [-1, 101, float("nan")])
def test_an_impossible_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold_percent"):
        predict_oom_risk(threshold_percent=threshold)


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    torch.cuda.empty_cache()
    before = stats()
    block = torch.ones(512 * MIB, dtype=torch.uint8, device="cuda")
    after = stats()
    assert after.name == torch.cuda.get_device_name(0)
    assert 400 < after.used_memory_mb - before.used_memory_mb < 2500  # the first use also opens a CUDA context
    assert after.total_memory_mb == pytest.approx(torch.cuda.mem_get_info(0)[1] / MIB, rel=0.1)
    used, total, percent = get_vram_summary(0)
    assert percent == pytest.approx(100 * used / total, abs=0.1)
    set_next_inference_mb(0, total)
    assert predict_oom_risk(0)
    set_next_inference_mb(0, 0)
    del block
