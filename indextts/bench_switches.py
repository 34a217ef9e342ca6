"""The switches of an engine as one value: a row of a benchmark says with it what it measures, and puts an engine into that state."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2


@dataclass(frozen=True)
class Switches:
    """One state of an engine and the size of the work it is given. The defaults are the plain path in float32.

    ``accel``: static-cache decoder and fast mel solver. ``graphs``: CUDA graphs. ``fusion``: fused kernels. ``compile``:
    ``torch.compile`` of the flow-matching estimator, which takes the place of the fast solver; ``compile_decode``: of the decoder's stack.
    ``weights``: of the GPT, ``full``, ``int8`` or ``fp8``. ``channels_last``, ``whole_loop``: see the engine's switches of these names.
    ``beams``, ``steps`` (None: the voice's default), ``batch``: requests at once.
    """

    precision: str = "fp32"
    attention: str = "auto"
    accel: bool = False
    graphs: bool = False
    fusion: bool = False
    one_kernel: bool = False
    compile: bool = False
    compile_decode: bool = False
    weights: str = "full"
    channels_last: bool = False
    whole_loop: bool = False
    beams: int = 3
    steps: int | None = None
    batch: int = 1

    def apply(self, tts: IndexTTS2) -> None:
        """Put ``tts`` into this state. Errors: ``ValueError`` for what its device cannot do."""
        self.check(tts)
        now = Switches.of(tts)
        if self.graphs != now.graphs and not self.graphs:
            tts.disable_cuda_graphs()
        tts.use_accel = self.accel
        if self.precision != now.precision:
            tts.set_precision(self.precision)
        if self.attention != now.attention:
            tts.set_attention(self.attention)
        if self.fusion != now.fusion:
            tts.fusion = self.fusion
        tts.set_fusion(one_kernel="auto" if self.one_kernel else False)
        if self.weights != now.weights:
            tts.set_gpt_weights(self.weights)
        if self.channels_last != tts.channels_last:  # asked now, since the precision may have changed it
            tts.channels_last = self.channels_last
        tts.whole_loop_graph, tts.compile_decode = self.whole_loop, self.compile_decode
        tts.use_torch_compile = self.compile
        if self.graphs and not tts.cuda_graphs_everywhere:
            tts.enable_cuda_graphs()

    def check(self, tts: IndexTTS2) -> None:
        """Refuse what the engine's device cannot do: ``ValueError``, before anything is changed."""
        from indextts.engine.attention import check_attention
        from indextts.engine.precision import resolve_precision
        from indextts.engine.quantise import check_weights
        from indextts.request import GENERATION_RANGES

        fewest, most = GENERATION_RANGES["num_beams"]
        if not fewest <= self.beams <= most:
            raise ValueError(f"beams must be between {fewest} and {most}, got {self.beams}")
        for name, count in (("batch", self.batch), ("steps", 1 if self.steps is None else self.steps)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        resolve_precision(self.precision, True, tts.device)
        check_attention(self.attention, tts.device)
        check_weights(self.weights, tts.device)
        if self.fusion and tts.device.type != "cuda":
            raise ValueError(f"fused kernels need a CUDA device, and this engine runs on {tts.device}; switch fusion off")
        if self.graphs and not tts.cuda_graphs_available:
            raise ValueError(f"CUDA graphs need a CUDA device, and this engine runs on {tts.device}; switch graphs off")

    @classmethod
    def of(cls, tts: IndexTTS2, **changes: Any) -> Switches:
        """The state that ``tts`` is in, with ``changes``."""
        state = {
            "precision": tts.precision,
            "attention": tts.attention,
            "accel": tts.use_accel,
            "graphs": tts.cuda_graphs_enabled,
            "fusion": tts.fusion and tts.device.type == "cuda",
            "one_kernel": tts.one_kernel and tts.device.type == "cuda",
            "compile": tts.use_torch_compile,
            "compile_decode": tts.compile_decode,
            "weights": tts.gpt_weights,
            "channels_last": tts.channels_last,
            "whole_loop": tts.whole_loop_graph,
        }
        return cls(**{**state, **changes})

    def label(self) -> str:
        """A short name for tables and charts, such as ``accel bf16 graphs, 3 beams``."""
        plain = Switches()
        words = ["accel" if self.accel else "plain", self.precision]
        if self.attention != plain.attention:
            words.append(f"{self.attention} attention")
        if self.weights != plain.weights:
            words.append(f"{self.weights} weights")
        flags = ("graphs", "fusion", "one_kernel", "compile", "compile_decode", "channels_last", "whole_loop")
        words += [name.replace("_", " ") for name in flags if getattr(self, name)]
        size = [f"{self.beams} beam{'s' * (self.beams != 1)}"]
        if self.steps is not None:
            size.append(f"{self.steps} steps")
        if self.batch > 1:
            size.append(f"batch {self.batch}")
        return ", ".join([" ".join(words), *size])

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


def combinations(base: Switches, axes: Mapping[str, Sequence[Any]]) -> list[Switches]:
    """Every combination of the values of ``axes`` (field name to values), in ``base``'s other settings; the last axis varies fastest.

    Errors: ``TypeError`` for a field that does not exist, ``ValueError`` for an axis without values.
    """
    known = {field.name for field in fields(Switches)}
    for name, values in axes.items():
        if name not in known:
            raise TypeError(f"there is no switch {name!r}; choose among {', '.join(sorted(known))}")
        if not values:
            raise ValueError(f"axis {name!r} has no values")
    return [replace(base, **dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


def ladder_of(tts: IndexTTS2, beams: int = 3) -> list[tuple[str, Switches]]:
    """One optimisation after the other, as far as the engine's device goes: (what is new, state), the plain path first."""
    from indextts.engine.precision import best_16_bit, resolve_precision

    on_gpu = tts.device.type == "cuda"
    state = Switches(beams=beams)
    rungs = [("plain path, fp32", state)]

    def add(what: str, **changes: Any) -> None:
        nonlocal state
        state = replace(state, **changes)
        rungs.append((f"+ {what}", state))

    add("static cache and fast solver", accel=True)
    if on_gpu:
        add("CUDA graphs", graphs=True)
        try:
            resolve_precision("tf32", True, tts.device)
        except ValueError:
            pass
        else:
            add("TF32 products", precision="tf32")
    sixteen = best_16_bit(tts.device) if on_gpu else "bf16"
    if sixteen != "fp32":
        add(f"{sixteen} products", precision=sixteen)
    if on_gpu:
        add("fused kernels", fusion=True)
        add("one kernel for a decode step", one_kernel=True)
        add("channels last in the vocoder", channels_last=True)
    if beams > 1:
        add("1 beam", beams=1)
    fewer = max(2, round(0.4 * tts.cfg.inference.diffusion_steps))
    add(f"{fewer} Euler steps", steps=fewer)
    add("4 requests at once", batch=4)
    return rungs
