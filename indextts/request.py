"""One call of ``infer``, checked completely before any work starts."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indextts.audio import content_key, load_audio
from indextts.config import IndexTTSConfig
from indextts.engine.sampling import SamplingParams
from indextts.models.emotion import check_emo_vector, scale_emotion

if TYPE_CHECKING:
    from indextts.text import Segment, TextFrontend

# Older spellings that scripts for the public release use.
ALIASES = {
    "max_text_tokens_per_sentence": "max_text_tokens_per_segment",
    "more_segment_before": "quick_streaming_tokens",
}
MAX_DURATION_FACTOR = 4.0


@dataclass(frozen=True)
class Clip:
    """A decoded reference clip: mono samples (n,) float32 at ``rate`` Hz, and the key of its content."""

    samples: np.ndarray
    rate: int
    key: str


@dataclass(frozen=True)
class Request:
    """Everything one synthesis needs; made by :func:`build_request` only."""

    text: str
    segments: list[Segment]
    voice: Clip
    emotion_voice: Clip
    emotion_alpha: float  # of the merge of the two clips' emotion vectors
    emo_vector: list[float] | None  # eight values, already scaled by emo_alpha
    emo_text: str | None  # to be classified; replaces emo_vector
    emo_text_alpha: float
    use_random: bool
    silence_samples: int
    sampling: SamplingParams
    diffusion_steps: int
    guidance: float
    duration_factor: float
    seed: int | None
    output_path: Path | str | None
    forced_codes: int | None = None


def build_request(frontend: TextFrontend, config: IndexTTSConfig, arguments: Mapping[str, Any], generation: Mapping[str, Any]) -> Request:
    """Check ``infer``'s arguments; ``generation`` are its generation keywords.

    Errors: ``TypeError`` for an unknown keyword; ``ValueError`` or ``FileNotFoundError`` saying which argument is wrong and why.
    """
    a = arguments
    gpt, inference = config.gpt, config.inference
    sampling = SamplingParams.from_kwargs(inference, dict(generation))
    if sampling.max_mel_tokens > gpt.max_mel_tokens:
        raise ValueError(f"max_mel_tokens is {sampling.max_mel_tokens}; this model has positions for {gpt.max_mel_tokens}")
    steps = _whole("diffusion_steps", a["diffusion_steps"], 1, 1000, default=inference.diffusion_steps)
    guidance = _number("inference_cfg_rate", a["inference_cfg_rate"], 0.0, 20.0, default=inference.inference_cfg_rate)
    duration_factor = _number("duration_factor", a["duration_factor"], 1 / MAX_DURATION_FACTOR, MAX_DURATION_FACTOR)
    interval_ms = _number("interval_silence", a["interval_silence"], -math.inf, 600_000)
    most_tokens = _whole("max_text_tokens_per_segment", a["max_text_tokens_per_segment"], 1, gpt.max_text_tokens)
    quick = _whole("quick_streaming_tokens", a["quick_streaming_tokens"], 0, 2**31)
    seed = None if a["seed"] is None else _whole("seed", a["seed"], 0, 2**63 - 1)
    alpha = _number("emo_alpha", a["emo_alpha"], -math.inf, math.inf)
    if a["progress"] is not None and not callable(a["progress"]):
        raise ValueError("progress must be callable as progress(fraction, message)")
    output_path = _output(a["output_path"])

    emo_text, emo_vector, emotion_source = None, None, None
    if a["use_emo_text"]:
        emo_text = a["text"] if a["emo_text"] is None else a["emo_text"]
        if not isinstance(emo_text, str) or not emo_text.strip():
            raise ValueError("emo_text must be text that describes or carries the emotion; it is empty")
    elif a["emo_vector"] is not None:
        emo_vector = scale_emotion(check_emo_vector(a["emo_vector"]), alpha)
    else:
        emotion_source = a["emo_audio_prompt"]

    segments = frontend.segments(a["text"], most_tokens, quick, on_unknown="warn")
    voice = _clip(a["spk_audio_prompt"], a["sample_rate"], "spk_audio_prompt")
    emotion_voice = voice if emotion_source is None else _clip(emotion_source, a["sample_rate"], "emo_audio_prompt")
    return Request(
        text=a["text"],
        segments=segments,
        voice=voice,
        emotion_voice=emotion_voice,
        emotion_alpha=1.0 if emotion_source is None else alpha,
        emo_vector=emo_vector,
        emo_text=emo_text,
        emo_text_alpha=alpha,
        use_random=bool(a["use_random"]),
        silence_samples=max(0, int(config.s2mel.preprocess_params.sr * interval_ms / 1000.0)),
        sampling=sampling,
        diffusion_steps=steps,
        guidance=guidance,
        duration_factor=duration_factor,
        seed=seed,
        output_path=output_path,
    )


def _clip(source: Any, sample_rate: int | None, role: str) -> Clip:
    mono, rate = load_audio(source, sample_rate=sample_rate, role=role)
    return Clip(mono, rate, content_key(mono, rate))


def _output(path: Any) -> Path | str | None:
    """Find out now, not after minutes of work, that the result cannot be written."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ValueError(f"output_path must be a file name, got {path!r}")
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"output_path {target} is a folder; name a file in it, such as {target / 'speech.wav'}")
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    if not existing.is_dir():
        raise ValueError(f"output_path {target} cannot be written: {existing} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"output_path {target} cannot be written: {error.strerror or error} ({existing})") from error
    return path


def _number(name: str, value: Any, low: float, high: float, default: float | None = None) -> float:
    if value is None and default is not None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if math.isnan(number) or math.isinf(number) or not low <= number <= high:
        raise ValueError(f"{name} must be {_range(low, high)}, got {value!r}")
    return number


def _whole(name: str, value: Any, low: int, high: int, default: int | None = None) -> int:
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {_range(low, high)}, got {value}")
    return int(value)


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(low):
        return f"at most {high:g}"
    return f"between {low:g} and {high:g}"
