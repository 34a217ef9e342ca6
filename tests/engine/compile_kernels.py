"""``python -m tests.engine.compile_kernels [--arch 90] [--dtype bfloat16]``: every Triton kernel compiled for a GPU that is not there.

Triton brings its assembler along, so all but the last step of a launch can be tried anywhere: each launch of the stages' checks and of
decode steps at the release's sizes is compiled for the architecture and printed as a JSON line with the shared memory that it takes.
Nothing is computed.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from indextts.engine.kernels import checks, decode
from indextts.engine.kernels.sampler import FusedBeamSearch, FusedSearch
from indextts.engine.kernels.solver_attention import attended
from indextts.engine.quantise import quantise
from indextts.engine.sampling import SamplingParams
from indextts.engine.static_cache import KVStorage, StaticCache
from indextts.models.bigvgan import Activation
from indextts.models.gpt import UnifiedVoice
from indextts.training.snake import activate

CPU = torch.device("cpu")
SHARED = {75: 65_536, 80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}  # bytes a program may have (CUDA C++ Programming Guide)
KINDS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "i1", torch.int8: "i8"}
KINDS |= {torch.float8_e4m3fn: "fp8e4nv", torch.int32: "i32", torch.float64: "fp64"}


class Compiler:
    """Stands in for launches: compiles what would be launched, each version once."""

    def __init__(self, arch: int) -> None:
        self.target, self.seen = GPUTarget("cuda", arch, 32), set[str]()

    def __call__(self, kernel: JITFunction, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        names, options = kernel.arg_names, {name: value for name, value in named.items() if name not in kernel.arg_names}
        values = {**dict(zip(names, given, strict=False)), **{name: value for name, value in named.items() if name in names}}
        types, constants, facts = {}, {}, {}
        for i, (name, parameter) in enumerate(zip(names, kernel.params, strict=True)):
            value, special = values[name], not parameter.do_not_specialize
            if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
                types[name], constants[i,] = "constexpr", value
                continue
            types[name] = f"*{KINDS[value.dtype]}" if isinstance(value, Tensor) else "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, Tensor) or (special and isinstance(value, int) and value % 16 == 0):
                facts[i,] = [["tt.divisibility", 16]]
        if (version := repr((kernel.__name__, types, constants, facts, options))) in self.seen:
            return
        self.seen.add(version)
        made = triton.compile(ASTSource(kernel, types, constants, facts), target=self.target, options=options)
        row = {"kernel": kernel.__name__, "shared": made.metadata.shared, "stages": made.metadata.num_stages}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def model(dtype: torch.dtype = torch.float32) -> UnifiedVoice:
    """The release's width and vocabulary, one layer deep."""
    codes = {"number_mel_codes": 8194, "start_mel_token": 8192, "stop_mel_token": 8193}
    return checks.small_gpt(CPU, dtype, model_dim=1280, layers=1, heads=20, **codes)


def decode_steps(dtype: torch.dtype, weights: str, *shapes: tuple[int, int], **cut: Any) -> None:
    """Steps of (rows, beams) at the release's width, one layer deep."""
    gpt = model(dtype)
    if weights != "full":
        quantise(gpt.gpt, weights)
    for rows, beams in shapes:
        cache = StaticCache(KVStorage(CPU, dtype, lambda: None), 1, 20, 64, rows, beams)
        pair = torch.zeros(2, rows, 20, 9, 64, dtype=dtype).unbind(0)
        bucket = cache.begin([(pair[0], pair[1])], torch.ones(rows, 9, dtype=torch.bool), 600, 600)
        cache.see(bucket, torch.zeros(rows, beams, dtype=torch.long))
        decode.feed(gpt, torch.zeros(rows, beams, 1280), cache, bucket, decode.Tiling(**cut))


def solver_attention(dtype: torch.dtype) -> None:
    """Of the release's heads, with positions turned before and on the way."""
    qkv, spans = torch.zeros(2, 896, 3, 8, 64, dtype=dtype), torch.zeros(2, 7, dtype=torch.int32)
    for rotation in (None, torch.zeros(1, 896, 1, 1, 32, dtype=torch.complex64)):
        attended(*qkv.unbind(2), spans, rotation)


def choices() -> None:
    """Of one beam and of several, with the release's arguments and vocabulary."""
    gpt = model()
    for rows, beams in ((1, 1), (1, 3), (16, 3)):
        search = (FusedSearch if beams == 1 else FusedBeamSearch)(gpt, rows, beams, CPU)
        cache = StaticCache(KVStorage(CPU, torch.float32, lambda: None), 1, 20, 64, rows, beams)
        empty = torch.zeros(rows, 20, 9, 64)
        bucket = cache.begin([(empty, empty)], None, 600, 600)
        search.begin(torch.zeros(rows, 8194), 20)
        search.enter(gpt, cache, bucket, SamplingParams(num_beams=beams), False, torch.Generator())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, choices=SHARED, default=90)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    dtype, compiler = getattr(torch, arguments.dtype), Compiler(arguments.arch)
    JITFunction.run = lambda kernel, *given, **named: compiler(kernel, *given, **named)
    decode._device_limits = lambda device: (132, SHARED[arguments.arch])
    with torch.no_grad():
        for check in (checks.vocoder, checks.solver, checks.decode):
            check(CPU, dtype)
        choices()
        decode_steps(dtype, "full", (1, 1), (1, 3), (16, 3))
        if dtype != torch.float32:
            solver_attention(dtype)
            decode_steps(dtype, "int8", (1, 3))
            if arguments.arch >= 89:
                decode_steps(dtype, "fp8", (1, 3))
            if arguments.arch >= 90:
                decode_steps(dtype, "full", (1, 3), overlap=True)
                decode_steps(dtype, "full", (1, 3), overlap=True, fused=0)
    x = torch.zeros(2, 48, 64, requires_grad=True)
    activate(x, Activation(48)).sum().backward()
    return 0


if __name__ == "__main__":
    sys.exit(main())
