"""Kernels written in CUDA C++, compiled on first use by CUDA's run-time compiler, which comes with torch for CUDA.

Compiled once a machine: :mod:`.code_store` keeps the machine code.
"""

from __future__ import annotations

import ctypes
import functools
from importlib.resources import files
from typing import Any

import torch

from indextts.engine.kernels import code_store

Pairs = tuple[tuple[str, int], ...]  # names and values that a source is compiled with, sorted


def source(file: str) -> str:
    """A source of this package."""
    return files("indextts.engine.kernels").joinpath(file).read_text(encoding="utf-8")


def compiled(file: str, architecture: str, defines: Pairs) -> bytes:
    """Machine code of a source for an architecture such as ``sm_90``. Errors: ``RuntimeError`` with the compiler's words."""
    from cuda.bindings import nvrtc

    text = source(file)
    options = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{name}={value}" for name, value in defines)]
    version = "{}.{}".format(*checked(nvrtc, nvrtc.nvrtcVersion()))
    return code_store.remembered([file, text, version, *options], lambda: _compile(file, text, [option.encode() for option in options]))


def _compile(file: str, text: str, options: list[bytes]) -> bytes:
    from cuda.bindings import nvrtc

    program = checked(nvrtc, nvrtc.nvrtcCreateProgram(text.encode(), file.encode(), 0, [], []))
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = bytearray(checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"CUDA's compiler refused {file}: {bytes(log).decode(errors='replace')[:1500]}")
    code = bytearray(checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
    checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
    checked(nvrtc, nvrtc.nvrtcDestroyProgram(program))
    return bytes(code)


@functools.cache
def function(file: str, name: str, architecture: str, device: int, defines: Pairs, shared_bytes: int) -> Any:
    """The kernel ``name`` of a source, loaded on the current device, with the shared memory that it asks for."""
    from cuda.bindings import driver

    torch.cuda.current_stream(device)  # CUDA is in use from here on
    module = checked(driver, driver.cuModuleLoadData(compiled(file, architecture, defines)))
    kernel = checked(driver, driver.cuModuleGetFunction(module, name.encode()))
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    checked(driver, driver.cuFuncSetAttribute(kernel, attribute, shared_bytes))
    return kernel


def launch(
    kernel: Any, device: torch.device, blocks: int, threads: int, shared_bytes: int, argument: ctypes.Structure, *, together: bool
) -> None:
    """Run a kernel of one argument in the current stream; ``together``: its blocks wait for one another."""
    from cuda.bindings import driver

    pointer = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    stream = torch.cuda.current_stream(device).cuda_stream
    shape = (blocks, 1, 1, threads, 1, 1, shared_bytes)
    if together:
        checked(driver, driver.cuLaunchCooperativeKernel(kernel, *shape, stream, ctypes.addressof(pointer)))
    else:
        checked(driver, driver.cuLaunchKernel(kernel, *shape, stream, ctypes.addressof(pointer), 0))


def architecture_of(device: torch.device) -> tuple[str, int]:
    """Name of a CUDA device's architecture, and bytes of shared memory that a block may ask for."""
    facts = torch.cuda.get_device_properties(device)
    limit = int(getattr(facts, "shared_memory_per_block_optin", facts.shared_memory_per_multiprocessor - 1024))
    return f"sm_{facts.major}{facts.minor}", limit


def checked(library: Any, answer: tuple[Any, ...]) -> Any:
    """The result of a call of CUDA's, whose first part says how it went."""
    status, *results = answer
    if int(status) != 0:
        raise RuntimeError(f"CUDA answered {status!r} ({library.__name__})")
    return results[0] if len(results) == 1 else results
