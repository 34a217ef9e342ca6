"""What each GPU generation can do, and torch's switches set to match.

| compute capability | architecture | bf16 | fp16 | TF32 | flash attention | transformer engine | vocoder: channels last |
|---|---|---|---|---|---|---|---|
| 10.0 and newer | Blackwell | yes | no | yes | yes, built from source | if importable | in 16 bits |
| 9.x | Hopper | yes | no | yes | yes | if importable | in 16 bits |
| 8.9 | Ada Lovelace | yes, preferred | yes | yes | yes | no | no |
| 8.0 to 8.8 | Ampere | yes | yes | yes | yes | no | no |
| 7.5 | Turing | no | yes | no | no | no | no |
| 7.0, 7.2 | Volta | no | yes | no | no | no | no |
| older | Legacy | no | no | no | no | no | no |

The last column is where it was measured to pay: on an H200 the vocoder takes 8.7 instead of 10.7 ms. Older cards were not measured.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import logging
from typing import NamedTuple, TypedDict

logger = logging.getLogger(__name__)

MIB = 1024**2


class GPUSettings(TypedDict):
    """What to use on a device. ``preferred_dtype`` is the name of a torch dtype: the best 16-bit type, else ``float32``.

    ``channels_last``: the order in memory that suits the vocoder's convolutions in 16 bits.
    """

    architecture: str
    use_bf16: bool
    use_fp16: bool
    use_tf32: bool
    use_flash_attn: bool
    flash_attn_note: str
    use_transformer_engine: bool
    cudnn_benchmark: bool
    channels_last: bool
    preferred_dtype: str


class GPUInfo(TypedDict):
    """One visible CUDA device; ``index`` is torch's, memory is in MiB, the last two say what the card supports."""

    index: int
    name: str
    compute_capability: str
    architecture: str
    memory_mb: int
    bf16: bool
    flash_attention: bool


class GPUList(list[GPUInfo]):
    """A list of dictionaries that shows as a table, in notebooks as HTML."""

    def __repr__(self) -> str:
        if not self:
            return "no CUDA GPU"
        rows = [list(GPUInfo.__annotations__), *(_cells(gpu) for gpu in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no CUDA GPU</p>"
        head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in GPUInfo.__annotations__)
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(gpu)) + "</tr>" for gpu in self)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cells(gpu: GPUInfo) -> list[str]:
    return [{True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) for value in gpu.values()]


class _Generation(NamedTuple):
    since: tuple[int, int]
    architecture: str
    bf16: bool
    fp16: bool
    tf32: bool
    flash: bool
    transformer_engine: bool
    flash_note: str = ""


_FROM_SOURCE = "build from source for this GPU: MAX_JOBS=4 FLASH_ATTENTION_FORCE_BUILD=TRUE pip install flash-attn --no-build-isolation"
_GENERATIONS = (
    _Generation((10, 0), "Blackwell", True, False, True, True, True, _FROM_SOURCE),
    _Generation((9, 0), "Hopper", True, False, True, True, True),
    _Generation((8, 9), "Ada Lovelace", True, True, True, True, False),
    _Generation((8, 0), "Ampere", True, True, True, True, False),
    _Generation((7, 5), "Turing", False, True, False, False, False),
    _Generation((7, 0), "Volta", False, True, False, False, False),
    _Generation((0, 0), "Legacy", False, False, False, False, False),
)
_NO_GPU: GPUSettings = {
    "architecture": "CPU",
    "use_bf16": False,
    "use_fp16": False,
    "use_tf32": False,
    "use_flash_attn": False,
    "flash_attn_note": "",
    "use_transformer_engine": False,
    "cudnn_benchmark": False,
    "channels_last": False,
    "preferred_dtype": "float32",
}


class GPUConfig:
    """Settings by GPU generation. All methods are static; nothing is remembered."""

    @staticmethod
    def get_optimal_settings(compute_capability: tuple[int, int]) -> GPUSettings:
        """What a card of this compute capability supports; needs no GPU and looks at no installed package.

        Errors: ``ValueError`` unless ``compute_capability`` is ``(major, minor)``.
        """
        try:
            major, minor = (int(part) for part in compute_capability)
        except (TypeError, ValueError):
            raise ValueError(f"compute capability is {compute_capability!r}; pass (major, minor), for example (8, 6)") from None
        if min(major, minor) < 0:
            raise ValueError(f"compute capability is {compute_capability!r}; both numbers must be >= 0")
        found = next(generation for generation in _GENERATIONS if (major, minor) >= generation.since)
        return {
            "architecture": found.architecture,
            "use_bf16": found.bf16,
            "use_fp16": found.fp16,
            "use_tf32": found.tf32,
            "use_flash_attn": found.flash,
            "flash_attn_note": found.flash_note,
            "use_transformer_engine": found.transformer_engine,
            "cudnn_benchmark": True,
            "channels_last": found.since >= (9, 0),
            "preferred_dtype": "bfloat16" if found.bf16 else "float16" if found.fp16 else "float32",
        }

    @staticmethod
    def apply_optimal_settings(device_id: int = 0) -> GPUSettings:
        """Set torch's TF32, cuDNN and attention switches for a GPU and return what is in force.

        The switches belong to the whole process. ``use_flash_attn`` and ``use_transformer_engine`` are True only if the package
        is there too; without ``flash-attn`` torch's own attention kernels run. Without a CUDA GPU everything is False.

        Errors: ``ValueError`` for a device that does not exist; the message lists those that do.
        """
        import torch

        check_device_id(device_id)
        if torch.cuda.is_available():
            settings = GPUConfig.get_optimal_settings(torch.cuda.get_device_capability(device_id))
            has_flash = settings["use_flash_attn"]
            settings["use_flash_attn"] = has_flash and GPUConfig.check_flash_attention()
            if settings["use_transformer_engine"]:
                settings["use_transformer_engine"] = importlib.util.find_spec("transformer_engine") is not None
        else:
            settings, has_flash = _NO_GPU.copy(), True  # torch has a flash kernel for the CPU

        # The allow_tf32 flags, not fp32_precision: torch keeps the newer setting in step with them, while after a write to the
        # newer one its own readers of the older (torch.compile among them) raise.
        torch.backends.cuda.matmul.allow_tf32 = settings["use_tf32"]
        torch.backends.cudnn.allow_tf32 = settings["use_tf32"]
        torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
        torch.backends.cuda.enable_flash_sdp(has_flash)
        torch.backends.cuda.enable_mem_efficient_sdp(True)
        torch.backends.cuda.enable_math_sdp(True)
        logger.info("GPU settings: %s", settings)
        return settings

    @staticmethod
    def check_flash_attention() -> bool:
        """Whether the ``flash-attn`` package imports; one built for another torch does not."""
        try:
            return callable(importlib.import_module("flash_attn").flash_attn_func)
        except ModuleNotFoundError:
            return False
        except Exception as error:  # a broken build fails in many ways: missing symbols, libraries, drivers
            logger.warning("flash-attn is installed but does not load (%s); torch's attention is used", error)
            return False

    @staticmethod
    def list_available_gpus() -> GPUList:
        """The CUDA devices that this process sees, in torch's order; empty without one."""
        import torch

        gpus = GPUList()
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            properties = torch.cuda.get_device_properties(index)
            settings = GPUConfig.get_optimal_settings((properties.major, properties.minor))
            gpus.append(
                {
                    "index": index,
                    "name": properties.name,
                    "compute_capability": f"{properties.major}.{properties.minor}",
                    "architecture": settings["architecture"],
                    "memory_mb": properties.total_memory // MIB,
                    "bf16": settings["use_bf16"],
                    "flash_attention": settings["use_flash_attn"],
                }
            )
        return gpus


def check_device_id(device_id: int) -> None:
    """Raise ``ValueError``, listing the CUDA devices that exist, unless ``device_id`` is one of them or there is none at all."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    is_index = isinstance(device_id, int) and not isinstance(device_id, bool)
    if not is_index or device_id < 0 or (count and device_id >= count):
        present = ", ".join(f"{i} ({torch.cuda.get_device_properties(i).name})" for i in range(count)) or "none"
        raise ValueError(f"there is no CUDA device {device_id!r}; devices here: {present}")
