"""A decode step's layers as one kernel that stays on the device: ``one_kernel.cu``, compiled on first use by CUDA's run-time compiler.

For up to 8 sequences, of up to 4 beams a row, with weights of 16 bits. For others :class:`OneKernel` takes the kernels of
:mod:`indextts.engine.kernels.decode`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from indextts.engine.kernels import cuda_source
from indextts.engine.static_cache import Bucket, StaticCache
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import Conv1D, GPT2Block

MOST_SEQUENCES, MOST_BEAMS = 8, 4
MOST_PARTS, PHASES = 8, 9  # as in the kernel's source
HEAD_WIDTH, CHUNK, KEYS = 64, 256, 16
SLICE, MOST_SHARE = 128, 16  # of the inner width, a warp's; outputs of a block in the smallest product
LEAST_RING = 3
LEAST_SHARED = 210_000  # bytes of shared memory a block that 8 sequences of the release's width take with the shortest ring


@dataclass(frozen=True)
class Layout:
    """How the work is cut; what is best is measured on the device.

    ``ring``: units of weights in shared memory, at most; ``flight``: those that may be on their way there at once (more would keep
    the memory busy, and the words that blocks exchange waiting); ``foresee``: those beyond the one sent for that are fetched into the L2
    cache; ``part``: old keys that are worth a block; ``back_off``: nanoseconds before words that were not there are read again.
    """

    ring: int = 8
    flight: int = 1
    foresee: int = 4
    part: int = 144
    back_off: int = 0


LAYOUT = Layout()
_POINTERS = (
    "layers", "gain_f", "shift_f", "gain_last", "shift_last", "code_bias", "codes", "x", "deltas", "qkv", "mixed", "stats", "hidden",
    "logits", "keys", "values", "visible", "slots", "launches",
)  # fmt: skip


class Step(ctypes.Structure):
    """The kernel's one argument: addresses, the capacity of the cache, and where to note the clock."""

    _fields_ = [*((name, ctypes.c_void_p) for name in _POINTERS), ("capacity", ctypes.c_longlong), ("trace", ctypes.c_void_p)]


Defines = Mapping[str, int]
Launch = Callable[[Defines, Step], None]  # run the kernel that these defines make


class OneKernel:
    """:func:`indextts.engine.decode.feed` in one kernel, for the layers of ``gpt`` as they are now.

    ``launch``: runs it on a grid of at most ``blocks``; ``otherwise``: runs what it is not made for;
    ``layout``: :data:`LAYOUT` unless given.
    """

    whole_step = True

    def __init__(
        self,
        gpt: UnifiedVoice,
        launch: Launch,
        blocks: int,
        otherwise: Callable[[UnifiedVoice, Tensor, StaticCache, Bucket], Tensor],
        layout: Layout | None = None,
    ) -> None:
        if problem := unsuitable(gpt, blocks):
            raise ValueError(problem)
        self.launch, self.otherwise, self.layout = launch, otherwise, layout or LAYOUT
        self._kept: list[Tensor] = []  # what the table's addresses point to
        with torch.inference_mode(False), torch.no_grad():
            table = [self._layer(block) for block in gpt.gpt.h if isinstance(block, GPT2Block)]
            self._table = torch.tensor(table, dtype=torch.int64, device=gpt.mel_head.weight.device)
            ends = (gpt.gpt.ln_f.weight, gpt.gpt.ln_f.bias, gpt.final_norm.weight, gpt.final_norm.bias, gpt.mel_head.bias)
            self._ends = [*map(self._float32, ends), self._address(gpt.mel_head.weight)]
            self._launches = torch.zeros(2, dtype=torch.int32, device=self._table.device)
        self.blocks = blocks_of(gpt.config.model_dim, blocks)
        self._scratch: dict[int, list[Tensor]] = {}
        self.trace: Tensor | None = None  # (layers, PHASES) int32: the first block's clock at each of its phases' ends is noted here

    def __call__(self, gpt: UnifiedVoice, x: Tensor, cache: StaticCache, bucket: Bucket) -> Tensor:
        """Logits (B, b, V) float32 of embeddings (B, b, D); see :func:`indextts.engine.kernels.decode.feed`."""
        rows, beams, width = x.shape
        if rows * beams > MOST_SEQUENCES or beams > MOST_BEAMS:
            return self.otherwise(gpt, x, cache, bucket)
        x = x.float().contiguous()
        logits = torch.empty(rows, beams, gpt.config.number_mel_codes, device=x.device)
        kv, half = bucket.kv, 0 if bucket.kv.dtype == torch.bfloat16 else 1
        pointers = [
            self._table.data_ptr(), *self._ends, x.data_ptr(), *(buffer.data_ptr() for buffer in self._buffers(rows * beams, width, kv)),
            logits.data_ptr(), kv[0].data_ptr(), kv[1].data_ptr(), bucket.visible.data_ptr(), cache.slots.data_ptr(),
            self._launches.data_ptr(),
        ]  # fmt: skip
        defines = {
            "WIDTH": width, "HEADS": cache.heads, "LAYERS": cache.layers, "CODES": logits.shape[-1], "ROWS": rows, "BEAMS": beams,
            "GRID": self.blocks, "HALF": half, **{name.upper(): int(value) for name, value in asdict(self.layout).items()},
        }  # fmt: skip
        trace = self.trace
        self.launch({**defines, "TRACE": int(trace is not None)}, Step(*pointers, bucket.keys, None if trace is None else trace.data_ptr()))
        return logits

    def _buffers(self, count: int, width: int, kv: Tensor) -> list[Tensor]:
        """Words: what the stream gains, queries and keys and values, attention in parts with scores and masses, inner activations."""
        if count not in self._scratch:
            pairs = ((2, width // 2), (3 * width // 2,), (MOST_PARTS, width // 2), (MOST_PARTS, 2 * width // HEAD_WIDTH), (2 * width,))
            with torch.inference_mode(False):
                self._scratch[count] = [torch.zeros(count, *shape, 2, dtype=torch.int32, device=kv.device) for shape in pairs]
        return self._scratch[count]

    def _layer(self, block: GPT2Block) -> list[int]:
        linear = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        biases = [self._float32(layer.bias) for layer in linear]
        norms = [self._float32(part) for norm in (block.ln_1, block.ln_2) for part in (norm.weight, norm.bias)]
        return [*norms[:2], *biases[:2], *norms[2:], *biases[2:], *(self._address(layer.weight) for layer in linear)]

    def _float32(self, values: Tensor) -> int:
        return self._address(values.detach().float().contiguous())

    def _address(self, values: Tensor) -> int:
        self._kept.append(values)
        return values.data_ptr()


def unsuitable(gpt: UnifiedVoice, blocks: int) -> str:
    """Why the kernel is not made for the layers of ``gpt`` on a device of ``blocks`` multiprocessors; empty if it is."""
    width, heads = gpt.config.model_dim, gpt.config.heads
    if width % CHUNK or width != HEAD_WIDTH * heads:
        return f"it is made for heads of {HEAD_WIDTH} and widths that are multiples of {CHUNK}, not {heads} heads and a width of {width}"
    if not blocks_of(width, blocks):
        return f"it needs {width // MOST_SHARE} multiprocessors, and this device has {blocks}"
    for layer in gpt.gpt.modules():
        if isinstance(layer, Conv1D) and (layer.weight.dtype not in (torch.bfloat16, torch.float16) or layer.weight.stride(0) != 1):
            return "it is made for weights of 16 bits with the inputs innermost"
    return ""


def blocks_of(width: int, most: int) -> int:
    """The largest grid of at most ``most`` blocks in which all have as many pairs of outputs; 0 if such a share is beyond the kernel's."""
    return max((blocks for blocks in range(1, most + 1) if width % (2 * blocks) == 0 and width // blocks <= MOST_SHARE), default=0)


def shared_bytes(defines: Defines) -> int:
    """Shared memory of a block; as SHARED_BYTES in the kernel's source."""
    width, beams, ring = (defines[name] for name in ("WIDTH", "BEAMS", "RING"))
    count, warps, share = defines["ROWS"] * beams, width // SLICE, width // defines["GRID"]
    outputs = share * max(4, (-(-defines["CODES"] // width) + 1) // 2)
    sums = 2 * (4 * warps * outputs * count + 4 * 2 * warps * count) + 4 * warps * count * 80
    attention = 4 * warps * (4 * KEYS + 4 + beams * (HEAD_WIDTH + 2))
    return ring * (share * (width + 8) * 2 + 16) + sums + 4 * count * width + attention + defines["LAYERS"] * 12 * 8


def fitted(defines: Defines, limit: int) -> dict[str, int]:
    """With as long a ring as ``limit`` bytes of shared memory hold."""
    found = dict(defines)
    while shared_bytes(found) > limit and found["RING"] > LEAST_RING:
        found["RING"] -= 1
    return found


def compiled(architecture: str, defines: cuda_source.Pairs) -> bytes:
    """Machine code of the kernel for an architecture such as ``sm_90``."""
    return cuda_source.compiled("one_kernel.cu", architecture, defines)


def launcher(device: torch.device) -> tuple[Launch, int]:
    """What runs the kernel on a CUDA ``device``, in the current stream, and for how many blocks.

    Errors: ``ImportError`` without ``cuda.bindings``, which come with torch for CUDA; ``RuntimeError`` for a device older than sm_90,
    or with little shared memory, and if CUDA or its compiler refuses.
    """
    import cuda.bindings.driver  # noqa: F401

    facts = torch.cuda.get_device_properties(device)
    if facts.major < 9:
        raise RuntimeError(f"it needs compute capability 9.0 or later, and this device has {facts.major}.{facts.minor}")
    architecture, limit = cuda_source.architecture_of(device)
    if limit < LEAST_SHARED:
        raise RuntimeError(f"it needs {LEAST_SHARED} bytes of shared memory a block, and this device has {limit}")

    def launch(defines: Defines, step: Step) -> None:
        given = fitted(defines, limit)
        size = shared_bytes(given)
        kernel = cuda_source.function("one_kernel.cu", "decode_step", architecture, device.index or 0, tuple(sorted(given.items())), size)
        cuda_source.launch(kernel, device, given["GRID"], given["WIDTH"] // SLICE * 32 + 32, size, step, together=True)

    return launch, int(facts.multi_processor_count)
