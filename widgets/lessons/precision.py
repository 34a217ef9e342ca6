"""Lesson 03: what number formats hold, what they cost, and what they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from widgets.lessons.engine import SENTENCE, quiet_limits
from widgets.lessons.measure import timed
from widgets.lessons.walk import Walk

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

# bits, of the exponent, of the fraction
FORMATS = {"fp32": (32, 8, 23), "tf32": (19, 8, 10), "bf16": (16, 8, 7), "fp16": (16, 5, 10)}


def format_table() -> list[dict[str, Any]]:
    """Range and resolution of each format."""
    rows = []
    for name, (bits, exponent, fraction) in FORMATS.items():
        bias = 2 ** (exponent - 1) - 1
        rows.append(
            {
                "format": name,
                "bits": bits,
                "exponent bits": exponent,
                "fraction bits": fraction,
                "largest": f"{(2 - 2.0**-fraction) * 2.0**bias:.3g}",
                "smallest normal": f"{2.0 ** (1 - bias):.3g}",
                "step at 1": f"{2.0**-fraction:.2g}",
            }
        )
    return rows


def round_to(x: Tensor, name: str) -> Tensor:
    """``x`` (float32) rounded to a format and back. Errors: ``ValueError`` for an unknown format."""
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is unknown; choose one of {', '.join(FORMATS)}")
    if name == "tf32":  # the lower 13 of float32's 23 fraction bits go, rounding to the nearest, ties away from zero
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return x.to(dtype).float()


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact values."""
    difference = (got.float() - exact.float()).square().mean().sqrt()
    return float(difference / exact.float().square().mean().sqrt())


def product_errors(size: int = 256, seed: int = 0) -> dict[str, float]:
    """Relative error of a matrix product whose factors are rounded to each format and summed in float32, as tensor cores do."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return {name: relative_error(round_to(a, name) @ round_to(b, name), exact) for name in FORMATS}


def usable_precisions(device: torch.device) -> list[str]:
    """The engine's precisions that a device can run."""
    from indextts.engine.precision import PRECISIONS, resolve_precision

    usable = []
    for name in PRECISIONS:
        try:
            usable.append(resolve_precision(name, False, device))
        except ValueError:
            continue
    return usable


@dataclass(frozen=True)
class PrecisionRun:
    """An engine in one precision: seconds of a warm call, megabytes of the GPT's weights, latents' relative error, equal codes."""

    precision: str
    total_s: float
    gpt_s: float
    gpt_mb: float
    latent_error: float
    equal_codes: int


def compare_precisions(tts: IndexTTS2, codes: int = 40, runs: int = 2, text: str = SENTENCE) -> dict[str, PrecisionRun]:
    """Run ``tts`` in every precision that its device has, fp32 first, and leave it as it was.

    Times are of exactly ``codes`` codes. Errors are of the same codes' latents against fp32; ``equal_codes`` counts the codes of a greedy
    run before the first that differs from fp32's.
    """
    before, results = tts.precision, {}
    exact: tuple[Tensor, Tensor] | None = None
    for name in usable_precisions(tts.device):
        tts.set_precision(name)
        walk = Walk(tts, text, do_sample=False, num_beams=1)
        own = walk.codes(forced=codes)
        reference = exact[0] if exact else own
        latents = walk.latents(reference)
        exact = exact or (own, latents)
        arguments = {"spk_audio_prompt": tts.default_voice(), "text": text, "seed": 1}

        def call(arguments: dict[str, Any] = arguments) -> None:
            tts.infer_forced(codes, **arguments)

        with quiet_limits(tts):
            timing = timed(call, runs, warmup=1)
        different = (own[0] != exact[0][0]).nonzero().flatten()
        results[name] = PrecisionRun(
            precision=name,
            total_s=timing.median,
            gpt_s=tts.last_gpt_time,
            gpt_mb=sum(weight.numel() * weight.element_size() for weight in tts._stages.gpt.parameters()) / 2**20,
            latent_error=relative_error(latents, exact[1]),
            equal_codes=int(different[0]) if len(different) else codes,
        )
    tts.set_precision(before)
    return results
