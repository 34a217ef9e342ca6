"""One request to the speech service, checked: JSON to ``infer``'s arguments, and errors as the API's clients expect them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from indextts.serve_audio import formats

LARGEST_BODY = 64 * 1024  # bytes
LONGEST_TEXT = 4096  # characters, as in the API
FIELDS = ("model", "input", "voice", "response_format", "speed", "instructions", "stream_format", "seed", "emotion", "emotion_strength")


class ServiceError(Exception):
    """An answer that is an error: HTTP status, and what the API's error object holds."""

    def __init__(self, status: int, message: str, param: str | None = None, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.param, self.kind = status, param, kind

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": None}}


@dataclass(frozen=True)
class SpeechRequest:
    """What a client asked for."""

    text: str
    voice: str
    kind: str
    stream: str | None  # None: the whole file at once; "audio", "sse"
    arguments: dict[str, Any]


def parse(body: bytes, longest_text: int = LONGEST_TEXT) -> SpeechRequest:
    """Read a request's body. Errors: :class:`ServiceError`."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ServiceError(400, "the body is not JSON") from None
    if not isinstance(fields, dict):
        raise ServiceError(400, "the body must be a JSON object")
    unknown = sorted(set(fields).difference(FIELDS))
    if unknown:
        raise ServiceError(400, f"unknown field {unknown[0][:40]!r}; known: {', '.join(FIELDS)}", unknown[0][:40])
    text = _string(fields, "input")
    if len(text) > longest_text:
        raise ServiceError(400, f"input has {len(text)} characters; at most {longest_text} are accepted", "input")
    if not text.strip():
        raise ServiceError(400, "input is empty", "input")
    if "model" in fields:
        _string(fields, "model")
    kind = _choice(fields, "response_format", formats(), "mp3" if "mp3" in formats() else "wav")
    stream = _choice(fields, "stream_format", ("audio", "sse"), "audio" if kind == "pcm" else None)
    return SpeechRequest(text, _voice(fields), kind, stream, _arguments(fields))


def _voice(fields: Mapping[str, Any]) -> str:
    voice = fields.get("voice")
    if isinstance(voice, Mapping):  # the API's form for custom voices
        voice = voice.get("id")
    if not isinstance(voice, str) or not voice:
        raise ServiceError(400, "voice must be the name of a voice; GET /v1/voices lists them", "voice")
    return voice


def _arguments(fields: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"duration_factor": 1 / _number(fields, "speed", 0.25, 4.0, 1.0)}
    if fields.get("instructions") not in (None, ""):
        arguments.update(use_emo_text=True, emo_text=_string(fields, "instructions"))
        if len(arguments["emo_text"]) > LONGEST_TEXT:
            raise ServiceError(400, f"instructions have more than {LONGEST_TEXT} characters", "instructions")
    emotion = fields.get("emotion")
    if emotion is not None:
        if not isinstance(emotion, list) or len(emotion) != 8 or not all(_is_number(value) and 0 <= value <= 100 for value in emotion):
            names = "happy, angry, sad, afraid, disgusted, melancholic, surprised, calm"
            raise ServiceError(400, f"emotion must be 8 numbers >= 0: {names}", "emotion")
        arguments["emo_vector"] = [float(value) for value in emotion]
    arguments["emo_alpha"] = _number(fields, "emotion_strength", 0.0, 2.0, 1.0)
    seed = fields.get("seed")
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ServiceError(400, "seed must be a whole number from 0 to 2**63 - 1", "seed")
        arguments["seed"] = seed
    return arguments


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise ServiceError(400, f"{name} must be a string", name)
    return value


def _choice(fields: Mapping[str, Any], name: str, known: tuple[str, ...], default: str | None) -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if value not in known:
        raise ServiceError(400, f"{name} must be one of {', '.join(known)}", name)
    return value


def _number(fields: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = fields.get(name, default)
    value = default if value is None else value
    if not _is_number(value) or not low <= value <= high:
        raise ServiceError(400, f"{name} must be a number from {low:g} to {high:g}", name)
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))
