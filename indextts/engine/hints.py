"""Where a run spent its time and what would help: the rules of the optimisation guide, applied to a run's record and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from indextts.engine.telemetry import Telemetry

GPT_LIMIT, S2MEL_LIMIT, VOCODER_LIMIT, OTHER_LIMIT = 60.0, 50.0, 40.0, 25.0  # per cent of the total; the guide gives the first and third
FULL_MEMORY = 90.0  # per cent of the device's memory
LABELS = {"gpt": "GPT", "s2mel": "S2Mel", "bigvgan": "Vocoder", "other": "Other"}


@dataclass(frozen=True)
class Hint:
    """One finding. ``kind`` is ``good``, ``info`` or ``warning``; ``advice`` is what to do about it, empty if nothing."""

    kind: str
    text: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """JSON-safe."""
        return asdict(self)


def stage_shares(telemetry: Telemetry) -> dict[str, float]:
    """Per cent of the stages' summed time: ``gpt``, ``s2mel``, ``bigvgan``, ``other``; zeros for an empty record."""
    times = {name: max(0.0, getattr(telemetry, f"{name}_s")) for name in LABELS}
    total = sum(times.values())
    return {name: 100 * seconds / total if total else 0.0 for name, seconds in times.items()}


def find_hints(telemetry: Telemetry, total_memory_mb: float = 0.0) -> list[Hint]:
    """What the record of a run says about its speed, most important first. ``total_memory_mb``: of the device, 0 if it does not matter."""
    if telemetry.total_s <= 0:
        return []
    found = [*_bottlenecks(telemetry), *_events(telemetry)]
    if total_memory_mb and 100 * telemetry.peak_vram_mb / total_memory_mb >= FULL_MEMORY:
        share = 100 * telemetry.peak_vram_mb / total_memory_mb
        found.append(
            Hint(
                "warning",
                f"The run's peak filled {share:.0f} % of the device's memory.",
                "Clear the caches, or use fewer beams.",
            )
        )
    speed = _speed(telemetry)
    return [speed, *found] if speed.kind == "warning" else [*found, speed]


def _speed(telemetry: Telemetry) -> Hint:
    if telemetry.audio_s <= 0:
        return Hint("warning", "The run made no sound.")
    if telemetry.rtf > 1:
        return Hint("warning", f"Slower than real time: RTF {telemetry.rtf:.2f}, {telemetry.rtf:.1f} s of work for a second of sound.")
    return Hint("good", f"Faster than real time: RTF {telemetry.rtf:.3g}, {1 / telemetry.rtf:.1f} s of sound for a second of work.")


def _bottlenecks(telemetry: Telemetry) -> list[Hint]:
    shares, settings = stage_shares(telemetry), telemetry.settings
    found = []
    for name, limit, advise in (
        ("gpt", GPT_LIMIT, _gpt_advice),
        ("s2mel", S2MEL_LIMIT, _s2mel_advice),
        ("bigvgan", VOCODER_LIMIT, _vocoder_advice),
    ):
        if shares[name] > limit:
            found.append(Hint("info", f"{LABELS[name]} is the bottleneck: {shares[name]:.0f} % of the time.", advise(settings)))
    if shares["other"] > OTHER_LIMIT:
        found.append(_other(telemetry, shares["other"]))
    return found


def _gpt_advice(settings: Mapping[str, Any]) -> str:
    on_gpu, beams = _on_gpu(settings), settings.get("num_beams", 1)
    if not settings.get("use_accel", True):
        return "Switch the static-cache decoder on (use_accel)."
    if on_gpu and not settings.get("cuda_graphs"):
        return "Enable CUDA graphs: each decode step is then one launch."
    if on_gpu and settings.get("precision") in ("fp32", "tf32"):
        return "Use 16 bits (bf16 or fp16): decoding is bound by reading weights, which are then half as large."
    if beams > 1:
        return f"Use 1 beam instead of {beams}, and compare by ear."
    if on_gpu:
        return "Flash Attention can help with long texts; short ones are bound by reading weights: render several at once."
    return "A GPU runs this stage many times faster; several requests at once use the CPU better."


def _s2mel_advice(settings: Mapping[str, Any]) -> str:
    steps, guidance = settings.get("diffusion_steps", 0), settings.get("inference_cfg_rate", 0)
    if not settings.get("use_accel", True) and not settings.get("torch_compile"):
        return "Switch the fast solver on (use_accel)."
    if _on_gpu(settings) and settings.get("precision") == "fp32":
        return "Use tf32 or 16 bits, which the matrix products of this stage gain most from."
    if steps > 10:
        return f"Use 10 steps instead of {steps}: the time is proportional to them; compare by ear."
    if guidance > 0:
        return "Guidance 0 saves the second estimate of every step, at some cost in likeness."
    return "Shorter reference clips help: their frames are solved along with the new ones."


def _vocoder_advice(settings: Mapping[str, Any]) -> str:
    if _on_gpu(settings) and not settings.get("vocoder_graphs"):
        return "Enable CUDA graphs, which cover the vocoder as well."
    if _on_gpu(settings):
        return "CUDA graphs are on already; new lengths still have to be captured once."
    return "On the CPU its convolutions are the floor; more threads help (torch.set_num_threads)."


def _other(telemetry: Telemetry, share: float) -> Hint:
    if telemetry.prompt_s > 0.5 * telemetry.other_s and not telemetry.speaker_cache_hit:
        return Hint(
            "info",
            f"Reading a new reference voice took {telemetry.prompt_s:.2f} s of {telemetry.total_s:.2f} s.",
            "Nothing to do: it stays in the reference cache, and the next run with this clip skips it.",
        )
    return Hint("info", f"{share:.0f} % of the time went outside the three stages.", "Run again: the first run also warms up and captures.")


def _events(telemetry: Telemetry) -> list[Hint]:
    stopped = [str(segment.index + 1) for segment in telemetry.segments if segment.hit_limit]
    if not stopped:
        return []
    return [
        Hint(
            "warning",
            f"Segment {', '.join(stopped)} reached the limit of codes, so its end may be missing.",
            "Raise max_mel_tokens or split the text into shorter segments.",
        )
    ]


def _on_gpu(settings: Mapping[str, Any]) -> bool:
    return str(settings.get("device", "")).startswith("cuda")
