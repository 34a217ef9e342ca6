"""``indextts bench``: stage times, RTF, tokens per second and peak memory, with the number of codes forced so that runs compare."""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

TEXT = (
    "The harbour was quiet when the ferry came in, and the first passengers stepped onto the pier with their collars turned up "
    "against the wind."
)
STAGES = ("gpt", "s2mel", "bigvgan", "other")


@dataclass(frozen=True)
class BenchResult:
    """Medians over the runs, seconds unless named otherwise, and everything needed to repeat them."""

    precision: str
    beams: int
    codes: int
    runs: int
    audio_s: float
    total_s: float
    rtf: float
    stages_s: dict[str, float]
    tokens_per_s: float
    peak_vram_mb: float
    totals_s: list[float]
    settings: dict[str, Any] = field(default_factory=dict)


def made_up_clip(seconds: float = 5.0, rate: int = 22050) -> tuple[int, np.ndarray]:
    """A voiced-sounding reference clip made by formula, (rate, float32 (n,)), for runs whose sound does not matter."""
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * t) ** 2
    noise = np.random.default_rng(0).standard_normal(t.size)
    return rate, (0.2 * envelope * tone + 0.003 * noise).astype(np.float32)


def bench(
    tts: IndexTTS2,
    *,
    codes: int = 250,
    beams: int = 3,
    runs: int = 5,
    warmup: int = 2,
    voice: Any = None,
    text: str = TEXT,
    steps: int | None = None,
) -> BenchResult:
    """Time ``runs`` warm inferences of exactly ``codes`` codes after ``warmup`` untimed ones; the reference is cached."""
    clip = voice if voice is not None else made_up_clip()

    def once() -> Any:
        tts.infer_forced(codes, spk_audio_prompt=clip, text=text, num_beams=beams, diffusion_steps=steps, seed=1)
        return tts.last_telemetry

    for _ in range(warmup):
        once()
    records = [once() for _ in range(runs)]
    middle = {name: statistics.median(getattr(record, f"{name}_s") for record in records) for name in STAGES}
    total = statistics.median(record.total_s for record in records)
    last = records[-1]
    return BenchResult(
        precision=tts.precision,
        beams=beams,
        codes=last.tokens,
        runs=runs,
        audio_s=last.audio_s,
        total_s=total,
        rtf=total / last.audio_s,
        stages_s=middle,
        tokens_per_s=last.tokens / middle["gpt"],
        peak_vram_mb=max(record.peak_vram_mb for record in records),
        totals_s=[record.total_s for record in records],
        settings=last.settings,
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
    }


def table(results: list[BenchResult]) -> str:
    """The results as a text table."""
    columns = ("precision", "beams", "codes", "path", "total s", "RTF", "GPT s", "S2Mel s", "BigVGAN s", "other s", "codes/s", "peak MB")
    rows = [
        (
            r.precision,
            str(r.beams),
            str(r.codes),
            "accel" if r.settings.get("use_accel") else "plain",
            f"{r.total_s:.3f}",
            f"{r.rtf:.4f}",
            *(f"{r.stages_s[name]:.3f}" for name in STAGES),
            f"{r.tokens_per_s:.1f}",
            f"{r.peak_vram_mb:.0f}",
        )
        for r in results
    ]
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows])
