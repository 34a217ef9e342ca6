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
MAX_EMOTION = 100.0  # of a value and of its strength: far beyond what sounds like speech, far below what overflows
# Beyond these, scores overflow float32 or beams the memory: the work would fail in the middle.
GENERATION_RANGES = {
    "num_beams": (1, 64),
    "temperature": (1e-4, 1e4),
    "repetition_penalty": (1e-4, 1e4),
    "length_penalty": (-20.0, 20.0),
}


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
    output_path: str | os.PathLike[str] | None
    forced_codes: int | None = None


def build_request(frontend: TextFrontend, config: IndexTTSConfig, arguments: Mapping[str, Any], generation: Mapping[str, Any]) -> Request:
    """Check ``infer``'s arguments; ``generation`` are its generation keywords.

    Errors: ``TypeError`` for an unknown keyword; ``ValueError`` or ``FileNotFoundError`` saying which argument is wrong and why.
    """
    a = arguments
    gpt, inference = config.gpt, config.inference
    sampling = _sampling(config, generation)
    if sampling.max_mel_tokens > gpt.max_mel_tokens:
        raise ValueError(f"max_mel_tokens is {sampling.max_mel_tokens}; this model has positions for {gpt.max_mel_tokens}")
    steps = _whole("diffusion_steps", a["diffusion_steps"], 1, 1000, default=inference.diffusion_steps)
    guidance = _number("inference_cfg_rate", a["inference_cfg_rate"], 0.0, 20.0, default=inference.inference_cfg_rate)
    duration_factor = _number("duration_factor", a["duration_factor"], 1 / MAX_DURATION_FACTOR, MAX_DURATION_FACTOR)
    interval_ms = _number("interval_silence", a["interval_silence"], -math.inf, 600_000)
    most_tokens = _whole("max_text_tokens_per_segment", a["max_text_tokens_per_segment"], 1, gpt.max_text_tokens)
    quick = _whole("quick_streaming_tokens", a["quick_streaming_tokens"], 0, 2**31)
    seed = None if a["seed"] is None else _whole("seed", a["seed"], 0, 2**63 - 1)
    alpha = _number("emo_alpha", a["emo_alpha"], -MAX_EMOTION, MAX_EMOTION)
    if a["progress"] is not None and not callable(a["progress"]):
        raise ValueError("progress must be callable as progress(fraction, message)")
    output_path = check_output(a["output_path"])

    emo_text, emo_vector, emotion_source = None, None, None
    if a["use_emo_text"]:
        emo_text = a["text"] if a["emo_text"] is None else a["emo_text"]
        if not isinstance(emo_text, str) or not emo_text.strip():
            raise ValueError("emo_text must be text that describes or carries the emotion; it is empty")
    elif a["emo_vector"] is not None:
        emo_vector = scale_emotion(_emotion(a["emo_vector"]), alpha)
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


def _sampling(config: IndexTTSConfig, generation: Mapping[str, Any]) -> SamplingParams:
    try:
        sampling = SamplingParams.from_kwargs(config.inference, generation)
    except OverflowError as error:  # a whole number that no float can hold
        raise ValueError(f"a generation argument is out of range: {error}") from None
    for name, (low, high) in GENERATION_RANGES.items():
        _number(name, getattr(sampling, name), low, high)
    return sampling


def _emotion(vector: Any) -> list[float]:
    try:
        values = check_emo_vector(vector)
    except OverflowError:
        values = [math.inf]
    if max(values) > MAX_EMOTION:
        raise ValueError(f"emo_vector must hold 8 numbers between 0 and {MAX_EMOTION:g}, got {vector!r}")
    return values


def check_output(path: Any, name: str = "output_path") -> Any:
    """Find out now, not after minutes of work, that a result cannot be written; returns ``path``.

    Errors: ``ValueError`` that says why, with ``name`` for what the path is.
    """
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise ValueError(f"{name} must be a file name, got {path!r}")
    try:
        target = Path(os.path.realpath(Path(path).expanduser()))
        if target.is_dir():
            raise ValueError(f"{name} {path} is a folder; name a file in it")
        if target.exists() and not target.is_file():
            raise ValueError(f"{name} {path} names a device, not a file")
        existing = next(folder for folder in target.parents if folder.exists())
        if not existing.is_dir():
            raise ValueError(f"{name} {path} cannot be written: {existing} is not a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that nobody has
        raise ValueError(f"{name} {path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path


def _number(name: str, value: Any, low: float, high: float, default: float | None = None) -> float:
    value = default if value is None else value  # checked as well: it comes from a file
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:
        number = math.inf
    if math.isnan(number) or math.isinf(number) or not low <= number <= high:
        raise ValueError(f"{name} must be {_range(low, high)}, got {value!r}")
    return number


def _whole(name: str, value: Any, low: int, high: int, default: int | None = None) -> int:
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {_range(low, high)}, got {value}")
    return int(value)


def _range(low: float, high: float) -> str:
    if math.isinf(low):
        return f"at most {high:g}"
    return f"between {low} and {high}" if isinstance(low, int) and isinstance(high, int) else f"between {low:g} and {high:g}"
