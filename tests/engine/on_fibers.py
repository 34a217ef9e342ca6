"""CUDA sources compiled for the CPU, where every thread is a fiber of ``fibers.h``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "indextts" / "engine" / "kernels"
CALL = """
#include "fibers.h"
#include "{file}"
extern "C" int run(const {argument}* argument, int blocks, int threads, int shared_bytes) {{
    return shared_bytes == SHARED_BYTES ? launch({kernel}, *argument, blocks, threads, SHARED_BYTES) : -SHARED_BYTES;
}}
"""
Run = Callable[[Mapping[str, int], ctypes.Structure, int, int, int], None]


def runner(folder: Path, file: str, kernel: str, argument: str) -> Run:
    """Runs a kernel: defines, its argument, blocks, threads and bytes of shared memory; compiled once for each set of defines."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    made: dict[tuple[tuple[str, int], ...], ctypes.CDLL] = {}
    (folder / "call.cpp").write_text(CALL.format(file=file, kernel=kernel, argument=argument), encoding="utf-8")

    def run(defines: Mapping[str, int], given: ctypes.Structure, blocks: int, threads: int, shared_bytes: int) -> None:
        key = tuple(sorted(defines.items()))
        if key not in made:
            library = folder / f"{len(made)}.so"
            names = [f"-D{name}={value}" for name, value in key]
            command = [compiler, "-O2", "-std=c++17", "-shared", "-fPIC", "-w", *names, f"-I{HERE}", f"-I{KERNELS}"]
            subprocess.run([*command, str(folder / "call.cpp"), "-o", str(library)], check=True)
            made[key] = ctypes.CDLL(str(library))
        left = made[key].run(ctypes.byref(given), blocks, threads, shared_bytes)
        assert left == 0, f"{left} threads never ended"

    return run
