"""The switches of a loaded engine as data: what each does, what this machine can choose and why not the rest, and what changing costs.

>>> for switch in available_switches(tts):  # doctest: +SKIP
...     print(switch.name, switch.value, [choice.value for choice in switch.choices if choice.usable])
>>> set_switch(tts, "precision", "bf16")    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from indextts.engine.attention import ATTENTION, check_attention
from indextts.engine.precision import PRECISIONS, best_16_bit, resolve_precision
from indextts.utils.gpu_config import GPUConfig

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

PRECISION_LABELS = {"fp32": "float32", "tf32": "TF32", "bf16": "bfloat16", "fp16": "float16"}
ATTENTION_LABELS = {"auto": "automatic", "cudnn": "cuDNN", "flash": "flash", "efficient": "memory-efficient", "math": "plain math"}
MOST_BEAMS, MOST_STEPS, MOST_BATCH, MOST_CACHE_MB = 16, 100, 64, 1 << 20
_DROPS = "Drops captured graphs and buffers; they are made again in the next run."


@dataclass(frozen=True)
class Choice:
    """One value of a switch; ``reason`` says why this engine cannot take it, empty if it can."""

    value: Any
    label: str
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether it may be chosen."""
        return not self.reason


@dataclass(frozen=True)
class Switch:
    """One switch: its present ``value``, and its ``choices`` or the range ``low`` to ``high`` of a whole number.

    ``what`` it does and ``cost`` of a change are sentences. ``default``: it sets what calls use that name no value of their own.
    ``special``: most people never need it.
    ``recommended`` is None where there is no best value for all uses.
    """

    name: str
    label: str
    value: Any
    what: str
    cost: str
    choices: tuple[Choice, ...] = ()
    low: int = 0
    high: int = 0
    recommended: Any = None
    default: bool = False
    special: bool = False

    @property
    def usable(self) -> bool:
        """Whether there is anything to choose."""
        return not self.choices or sum(choice.usable for choice in self.choices) > 1

    @property
    def reason(self) -> str:
        """Why there is nothing to choose, or what is missing from the choices, in words; empty if all can be had."""
        return " ".join(dict.fromkeys(f"{choice.label}: {choice.reason}." for choice in self.choices if choice.reason))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**asdict(self), "usable": self.usable, "reason": self.reason}


def available_switches(tts: IndexTTS2) -> list[Switch]:
    """All switches of this engine in their present state."""
    best = recommended_settings(tts)
    found = [
        _precision(tts),
        _attention(tts),
        _toggle(
            "use_accel",
            "Static-cache decoder, fast solver",
            tts.use_accel,
            "Decoding over a preallocated KV cache, and flow matching without constants in its loop; results as on the plain path.",
            _DROPS,
        ),
        _toggle(
            "cuda_graphs",
            "CUDA graphs",
            tts.cuda_graphs_enabled,
            "Replays recorded launches of decode steps and Euler steps: one launch instead of hundreds.",
            "Captures anew for each new length; memory for the graphs' pool.",
            _no_gpu(tts),
        ),
        *_vocoder_graphs(tts),
        _toggle(
            "torch_compile",
            "torch.compile",
            tts.use_torch_compile,
            "Compiles the flow-matching estimator, which then takes the place of the fast solver.",
            "The first run after it compiles: tens of seconds to minutes.",
            _no_compiler(),
        ),
        *_further(tts),
        *_defaults(tts),
        _cache_limit(),
    ]
    return [replace(switch, recommended=best.get(switch.name)) for switch in found]


def recommended_settings(tts: IndexTTS2) -> dict[str, Any]:
    """What suits this engine's device, from :class:`GPUConfig`'s table: switch names to values."""
    on_gpu = tts.device.type == "cuda"
    best: dict[str, Any] = {"precision": best_16_bit(tts.device), "attention": "auto", "use_accel": True, "torch_compile": False}
    if on_gpu:
        best.update(cuda_graphs=True, vocoder_graphs=True, fusion=True)
    return best


def describe_device(tts: IndexTTS2) -> str:
    """The engine's device and its generation, for people."""
    if tts.device.type != "cuda":
        return f"{tts.device} (no CUDA GPU)" if tts.device.type == "cpu" else str(tts.device)
    import torch

    capability = torch.cuda.get_device_capability(tts.device)
    architecture = GPUConfig.get_optimal_settings(capability)["architecture"]
    return f"{torch.cuda.get_device_name(tts.device)}, {architecture} (sm_{capability[0]}{capability[1]})"


def set_switch(tts: IndexTTS2, name: str, value: Any) -> None:
    """Turn one switch. Errors: ``ValueError`` that says which values there are, or why this one cannot be had; nothing is changed then."""
    switch = next((switch for switch in available_switches(tts) if switch.name == name), None)
    if switch is None:
        raise ValueError(f"there is no switch {name!r}; there are {', '.join(s.name for s in available_switches(tts))}")
    if switch.choices:
        choice = next((choice for choice in switch.choices if choice.value == value), None)
        if choice is None:
            raise ValueError(f"{switch.label} is {value!r}; choose one of {', '.join(str(c.value) for c in switch.choices)}")
        if not choice.usable:
            raise ValueError(f"{switch.label} cannot be {choice.label}: {choice.reason}")
    elif isinstance(value, bool) or not isinstance(value, int) or not switch.low <= value <= switch.high:
        raise ValueError(f"{switch.label} must be a whole number from {switch.low} to {switch.high}, got {value!r}")
    _SETTERS[name](tts, value)


def apply_recommended(tts: IndexTTS2) -> list[str]:
    """Turn every switch that differs to its recommended value; the names of those that were turned."""
    turned = []
    for switch in available_switches(tts):
        if switch.recommended is not None and switch.recommended != switch.value:
            set_switch(tts, switch.name, switch.recommended)
            turned.append(switch.name)
    return turned


def captured(tts: IndexTTS2) -> list[str]:
    """What is captured, compiled and prepared at present, one sentence each."""
    stages, found = tts._stages, []
    decoder, solver = stages.decoder, stages.solver
    if decoder is not None and decoder.buckets:
        graphs = sum(getattr(bucket, "replays", 0) > 0 for bucket in decoder.buckets)
        of_graphs = f", {graphs} of them replayed from a graph" if decoder.use_graphs else ""
        found.append(f"Decoder: {_count(len(decoder.buckets), 'cache shape')} prepared{of_graphs}.")
    if solver is not None and solver.graphs is not None and solver.graphs.captured:
        found.append(f"Solver: {_count(len(solver.graphs.captured), 'Euler-step graph')} captured.")
    if stages.graphs is not None:
        found.append(f"Vocoder: {_count(len(stages.graphs._captured), 'graph')} captured.")
    if stages.compiled:
        found.append("S2Mel: runs through torch.compile.")
    return found or ["Nothing is captured or compiled yet."]


# ------------------------------------------------------------------------------------------------------------------ inside


def _precision(tts: IndexTTS2) -> Switch:
    refusals = {name: _refusal(partial(resolve_precision, name, True, tts.device)) for name in PRECISIONS}
    choices = tuple(Choice(name, PRECISION_LABELS.get(name, name), reason) for name, reason in refusals.items())
    what = "Number format of weights and matrix products. 16 bits halve what decoding has to read; sums and norms stay in float32."
    return Switch("precision", "Precision", tts.precision, what, f"Converts the weights, forgets cached voices. {_DROPS}", choices)


def _attention(tts: IndexTTS2) -> Switch:
    refusals = {name: _refusal(partial(check_attention, name, tts.device)) for name in ATTENTION}
    choices = tuple(Choice(name, ATTENTION_LABELS.get(name, name), reason) for name, reason in refusals.items())
    what = "Which of torch's attention kernels runs; automatic lets torch choose by shape and type."
    return Switch("attention", "Attention", tts.attention, what, _DROPS, choices)


def _toggle(name: str, label: str, value: bool, what: str, cost: str, reason: str = "") -> Switch:
    return Switch(name, label, bool(value), what, cost, (Choice(False, "off"), Choice(True, "on", reason)))


def _vocoder_graphs(tts: IndexTTS2) -> list[Switch]:
    if not hasattr(tts, "cuda_graphs_everywhere"):
        return []
    what = "As loaded, only the accelerated path has graphs. This captures the vocoder too, once per bucket of lengths."
    cost = "Switching it off switches all graphs off."
    return [_toggle("vocoder_graphs", "CUDA graphs for the vocoder", tts.cuda_graphs_everywhere, what, cost, _no_gpu(tts))]


def _further(tts: IndexTTS2) -> list[Switch]:
    """Fused kernels, weights of 8 bits, batches, and what few people need; whatever of it this engine has."""
    found = []
    for name, (label, what, needs_gpu) in _FURTHER.items():
        if isinstance(getattr(tts, name, None), bool):
            reason = _no_gpu(tts) if needs_gpu else _no_compiler() if name == "compile_decode" else ""
            value = getattr(tts, name) and not reason
            special = name not in ("fusion", "one_kernel", "low_memory")
            found.append(replace(_toggle(name, label, value, what, _DROPS, reason), special=special))
    if hasattr(tts, "gpt_weights"):
        from indextts.engine.quantise import KINDS, check_weights

        refusals = {name: _refusal(partial(check_weights, name, tts.device)) for name in KINDS}
        choices = tuple(Choice(name, name, reason) for name, reason in refusals.items())
        what = (
            "8 bits halve the memory of these weights; a step is slower than the one kernel in 16 bits. Changes the codes: compare by ear."
        )
        cost = f"Converts the weights, forgets cached voices. {_DROPS}"
        found.append(Switch("gpt_weights", "Weights of the GPT", tts.gpt_weights, what, cost, choices, special=True))
    what = "Most segments and requests that are rendered together; chosen by the device unless set."
    found.append(Switch("batch_size", "Batch", tts.batch_size, what, "More memory in a run.", low=1, high=MOST_BATCH))
    return found


def _defaults(tts: IndexTTS2) -> list[Switch]:
    inference = tts.cfg.inference
    beams = "Candidates kept in decoding. One is fastest; three is the release's choice."
    steps = "Euler steps of flow matching: time is proportional to them."
    return [
        Switch("num_beams", "Beams", inference.num_beams, beams, "Nothing is dropped.", low=1, high=MOST_BEAMS, default=True),
        Switch("diffusion_steps", "Steps", inference.diffusion_steps, steps, "Nothing is dropped.", low=1, high=MOST_STEPS, default=True),
    ]


def _cache_limit() -> Switch:
    from indextts import infer_v2_modded as limits

    what = "Cached voices, KV buffers and graph pools together; the least recently used voices go first."
    value = round(limits.MAX_CACHE_SIZE_MB)
    return Switch(
        "cache_limit_mb", "Cache limit, MB", value, what, "What is over the limit goes at the next check.", low=0, high=MOST_CACHE_MB
    )


def _set_graphs(tts: IndexTTS2, on: bool) -> None:
    if not on:
        tts.disable_cuda_graphs()
    elif not tts.enable_cuda_graphs():
        raise RuntimeError("CUDA graphs could not be captured on this GPU; the log says why")


def _set_default(name: str) -> Callable[[Any, int], None]:
    def change(tts: Any, value: int) -> None:
        tts.cfg = replace(tts.cfg, inference=replace(tts.cfg.inference, **{name: value}))

    return change


def _set_cache_limit(_: Any, value: int) -> None:
    from indextts import infer_v2_modded as limits

    limits.MAX_CACHE_SIZE_MB = value


def _set_attribute(name: str) -> Callable[[Any, Any], None]:
    return lambda tts, value: setattr(tts, name, value)


_FURTHER = {
    "fusion": ("Fused kernels", "Triton kernels that do several small operations in one pass over the data.", True),
    "one_kernel": ("One kernel a step", "A decode step's layers as one kernel (16 bits, few sequences, sm_90 and later).", True),
    "low_memory": ("Low memory", "Memory before speed, for the same sound: parts visit the device only when they are needed.", False),
    "compile_decode": ("torch.compile of the decoder", "Compiles the decoder's layers, which then replace the fused kernels.", False),
    "channels_last": ("Vocoder: channels last", "Another order of the vocoder's data in memory; on by itself where it pays.", False),
    "whole_loop_graph": ("Solver: one graph", "All Euler steps in one graph: fewer launches, but no cancelling in between.", True),
    "cudnn_benchmark": ("cuDNN autotuner", "Times convolutions for every new shape and keeps the fastest.", True),
}
_SETTERS: dict[str, Callable[[Any, Any], None]] = {
    "precision": lambda tts, value: tts.set_precision(value),
    "attention": lambda tts, value: tts.set_attention(value),
    "use_accel": _set_attribute("use_accel"),
    "cuda_graphs": _set_graphs,
    "torch_compile": lambda tts, value: setattr(tts, "use_torch_compile", value),
    "num_beams": _set_default("num_beams"),
    "diffusion_steps": _set_default("diffusion_steps"),
    "batch_size": _set_attribute("batch_size"),
    "cache_limit_mb": _set_cache_limit,
    "vocoder_graphs": _set_graphs,
    "gpt_weights": lambda tts, value: tts.set_gpt_weights(value),
    **{name: _set_attribute(name) for name in _FURTHER},
}


def _refusal(check: Callable[[], object]) -> str:
    """Why a value cannot be had, from the engine's own check; empty if it can."""
    try:
        check()
    except ValueError as error:
        text = str(error).partition(";")[0]
        for subject in ("precision", "attention", "weights"):
            if text.startswith(f"{subject} '"):
                text = text.split("' ", 1)[1]
        return text.rstrip(".")
    return ""


def _no_gpu(tts: IndexTTS2) -> str:
    return "" if tts.cuda_graphs_available else f"needs a CUDA GPU; this engine runs on {tts.device}"


def _no_compiler() -> str:
    """Why torch.compile cannot run here; empty if it can."""
    import shutil
    import sys

    if sys.platform == "win32":
        return "" if shutil.which("cl") else "needs the compiler cl.exe on Windows"
    return "" if any(shutil.which(name) for name in ("g++", "clang++", "c++")) else "needs a C++ compiler, and none is installed"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
