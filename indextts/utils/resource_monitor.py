"""How full and how busy the GPUs are, and how much memory this process holds.

Sources, best first: NVML, which sees every process, opens no CUDA context and knows load, temperature and power; torch; nothing.
NVML numbers the cards of the machine while torch numbers what ``CUDA_VISIBLE_DEVICES`` leaves visible, possibly in another order,
so devices are matched by UUID. Whatever NVML refuses or gets wrong is None or comes from torch; no function here raises for it.

Memory is in MiB. All functions may be called from any thread.
"""

from __future__ import annotations

import importlib
import logging
import math
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from indextts.utils.gpu_config import MIB, check_device_id

logger = logging.getLogger(__name__)

# NVML counts memory that the driver keeps for itself; a MIG slice, which NVML may report as its whole card, differs far more.
_SAME_MEMORY = 0.1


@dataclass(frozen=True)
class GPUStats:
    """One reading of one GPU; None where the card, the driver or a missing NVML does not tell."""

    name: str
    used_memory_mb: float
    total_memory_mb: float
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None

    @property
    def memory_percent(self) -> float:
        """Used memory as a percentage of the total."""
        return 100 * self.used_memory_mb / self.total_memory_mb if self.total_memory_mb else 0.0


class ResourceMonitor:
    """Reads the GPUs. Instances share one connection to NVML, opened at the first reading."""

    def get_gpu_stats(self, device_id: int = 0) -> GPUStats | None:
        """A reading of torch's device ``device_id``, or None if there is no such device."""
        import torch

        if not torch.cuda.is_available() or not 0 <= device_id < torch.cuda.device_count():
            return None
        properties = torch.cuda.get_device_properties(device_id)
        handles = _NVML.find(str(properties.uuid))
        used, total = self._memory(device_id, properties.total_memory, handles)
        if handles is None:
            return GPUStats(properties.name, used / MIB, total / MIB)
        power_mw = _plausible(_NVML.ask("nvmlDeviceGetPowerUsage", handles.board), 1e7)
        return GPUStats(
            name=properties.name,
            used_memory_mb=used / MIB,
            total_memory_mb=total / MIB,
            utilization_percent=_plausible(getattr(_NVML.ask("nvmlDeviceGetUtilizationRates", handles.device), "gpu", None), 100),
            temperature_c=_plausible(_NVML.ask("nvmlDeviceGetTemperature", handles.board, _NVML_TEMPERATURE_GPU), 200),
            power_w=None if power_mw is None else power_mw / 1000,
        )

    @staticmethod
    def _memory(device_id: int, expected_total: int, handles: _Handles | None) -> tuple[float, float]:
        """Used and total bytes: NVML's if they can be this device's, else torch's."""
        if handles is not None:
            memory = _NVML.ask("nvmlDeviceGetMemoryInfo", handles.device)
            total = _plausible(getattr(memory, "total", None), math.inf)
            used = _plausible(getattr(memory, "used", None), total or 0)
            if total and used is not None and abs(total - expected_total) <= _SAME_MEMORY * expected_total:
                return used, total
        import torch

        try:
            free, total_bytes = torch.cuda.mem_get_info(device_id)
        except RuntimeError as error:  # no room left even for a CUDA context
            logger.debug("torch cannot tell the free memory of device %d: %s", device_id, error)
            return torch.cuda.memory_reserved(device_id), expected_total
        return total_bytes - free, total_bytes


def get_vram_summary(device_id: int = 0) -> tuple[float, float, float]:
    """``(used_mb, total_mb, percent)`` of a device, all processes together; zeros on a machine without a CUDA GPU.

    Errors: ``ValueError`` for a device that does not exist beside those that do.
    """
    check_device_id(device_id)
    stats = ResourceMonitor().get_gpu_stats(device_id)
    if stats is None:
        return 0.0, 0.0, 0.0
    return round(stats.used_memory_mb, 1), round(stats.total_memory_mb, 1), stats.memory_percent


def set_next_inference_mb(device_id: int, mb: float) -> None:
    """Register what the next inference on a device will need on top of the loaded weights; the engine calls this.

    Errors: ``ValueError`` unless ``mb`` is a finite number >= 0.
    """
    if not (math.isfinite(mb) and mb >= 0):
        raise ValueError(f"the next inference cannot need {mb} MiB; pass a finite number >= 0")
    with _needs_lock:
        _needs[device_id] = float(mb)


def get_next_inference_mb(device_id: int = 0) -> float:
    """What :func:`set_next_inference_mb` registered for a device, in MiB; 0 if nothing."""
    with _needs_lock:
        return _needs.get(device_id, 0.0)


def predict_oom_risk(device_id: int = 0, threshold_percent: float = 90) -> bool:
    """Whether memory in use plus the registered need of the next inference reaches ``threshold_percent`` of the device.

    Memory that torch holds but does not use is reused by the next inference, so it counts once. False without a CUDA GPU.

    Errors: ``ValueError`` for a threshold outside 0 to 100, or a device that does not exist.
    """
    if not 0 <= threshold_percent <= 100:
        raise ValueError(f"threshold_percent is {threshold_percent}; it must be from 0 to 100")
    used_mb, total_mb, _ = get_vram_summary(device_id)
    if not total_mb:
        return False
    import torch

    reusable_mb = (torch.cuda.memory_reserved(device_id) - torch.cuda.memory_allocated(device_id)) / MIB
    wanted_mb = max(0.0, get_next_inference_mb(device_id) - reusable_mb)
    return 100 * (used_mb + wanted_mb) / total_mb >= threshold_percent


def get_process_memory_mb() -> float:
    """Memory of this process in RAM (resident set); the highest so far where the system tells no more, as on macOS."""
    if sys.platform == "win32":
        return _working_set() / MIB
    import resource

    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB elsewhere


if sys.platform == "win32":

    def _working_set() -> int:
        """Bytes in RAM: ``WorkingSetSize`` of Windows' ``PROCESS_MEMORY_COUNTERS``."""
        import ctypes

        class Counters(ctypes.Structure):
            _fields_ = (
                ("cb", ctypes.c_uint32),
                ("page_faults", ctypes.c_uint32),
                ("peak_working_set", ctypes.c_size_t),
                ("working_set", ctypes.c_size_t),
                ("others", ctypes.c_size_t * 6),
            )

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel32 = ctypes.windll.kernel32
        kernel32.GetCurrentProcess.restype = ctypes.c_void_p
        kernel32.K32GetProcessMemoryInfo(ctypes.c_void_p(kernel32.GetCurrentProcess()), ctypes.byref(counters), counters.cb)
        return int(counters.working_set)


def _plausible(value: Any, highest: float) -> float | None:
    """``value`` as a number if it is one from 0 to ``highest``; drivers mark "unknown" with huge ones."""
    if isinstance(value, (int, float)) and 0 <= value <= highest:
        return float(value)
    return None


class _Handles(NamedTuple):
    device: Any  # the card, or a MIG slice of it: memory and load
    board: Any  # the card: temperature and power


_NVML_TEMPERATURE_GPU = 0


class _NvmlConnection:
    """NVML, imported and initialised at most once; absent for good if that fails."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._module: Any = None
        self._handles: dict[str, _Handles] | None = None

    def find(self, uuid: str) -> _Handles | None:
        """Handles of the device with torch's ``uuid``."""
        with self._lock:
            if self._handles is None:
                self._handles = self._open()
            return self._handles.get(_bare_uuid(uuid))

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of an NVML function, or None if it fails in any way."""
        try:
            return getattr(self._module, function)(*arguments)
        except Exception as error:  # NVMLError, a missing function, a fault of the binding
            logger.debug("%s: %s", function, error)
            return None

    def _open(self) -> dict[str, _Handles]:
        try:
            self._module = importlib.import_module("pynvml")
            self._module.nvmlInit()
        except Exception as error:  # not installed, no driver, no permission
            logger.debug("NVML is not available: %s", error)
            return {}
        found = {}
        for index in range(self.ask("nvmlDeviceGetCount") or 0):
            board = self.ask("nvmlDeviceGetHandleByIndex", index)
            if board is None:
                continue
            found[_bare_uuid(self.ask("nvmlDeviceGetUUID", board))] = _Handles(board, board)
            for slot in range(self.ask("nvmlDeviceGetMaxMigDeviceCount", board) or 0):
                piece = self.ask("nvmlDeviceGetMigDeviceHandleByIndex", board, slot)
                if piece is not None:
                    found[_bare_uuid(self.ask("nvmlDeviceGetUUID", piece))] = _Handles(piece, board)
        found.pop("", None)
        return found


def _bare_uuid(uuid: Any) -> str:
    """``GPU-1234...`` (NVML; bytes in old bindings) and ``1234...`` (torch) alike."""
    text = uuid.decode() if isinstance(uuid, bytes) else str(uuid or "")
    return text.lower().removeprefix("gpu-").removeprefix("mig-")


_NVML = _NvmlConnection()
_needs: dict[int, float] = {}
_needs_lock = threading.Lock()
