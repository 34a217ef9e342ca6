"""The order of operations: the real pipeline around recorders in place of the networks, against the reference's recorded calls.

Where the package differs from the reference on purpose (streamed audio in [-1, 1] without the last pause, ``do_sample`` honoured, empty
text refused before any audio work, several cached prompts), the expectation is adjusted here, visibly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from indextts.config import config_from_dict
from indextts.engine.generate import GeneratedCodes
from indextts.engine.reference_cache import EmotionPrompt, SpeakerPrompt
from indextts.engine.stages import Models, Stages
from indextts.models.emotion import EmotionMatrices
from indextts.pipeline import IndexTTS2
from indextts.text import TextFrontend
from indextts.text.normalize import TextNormalizer
from indextts.text.tokenizer import Tokenizer
from tests.parity_kinds.common import Check, Golden, compare_values, runner

STOP = 97
SAMPLES_PER_FRAME = 4
GENERATION_NAMES = {"max_generate_length": "max_mel_tokens"}
EVENTS = ("inference_speech", "latent_pass", "length_regulator", "solver", "vocoder")


class Recorder:
    """Collects the calls of one scenario."""

    def __init__(self, codes: list[int], ends_with_stop: bool) -> None:
        self.codes, self.ends_with_stop = codes, ends_with_stop
        self.events: list[list[Any]] = []
        self.alphas: list[float] = []
        self.merged: Tensor | None = None
        self.emotion: Tensor | None = None


class GPT(nn.Module):
    """Latents of the right shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.text_embedding, self.text_head = nn.Identity(), nn.Identity()  # which an engine may leave where they are
        self.recorder: Recorder

    def speaker_latents(self, features: Tensor) -> Tensor:
        return torch.zeros(1, 32, self.width)

    def emotion_vector(self, features: Tensor) -> Tensor:
        return features.mean().expand(1, self.width)

    def conditioning(self, latents: Tensor, emotion: Tensor) -> Tensor:
        self.recorder.emotion = emotion
        return torch.zeros(1, 34, self.width)

    def prefix(self, conditioning: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        self.text_length = ids.shape[1], str(ids.dtype)
        return torch.zeros(1, 34, self.width), torch.ones(1, 35)

    def latents(self, conditioning: Tensor, ids: Tensor, id_lengths: Tensor, codes: Tensor, code_lengths: Tensor) -> Tensor:
        self.recorder.events.append(["latent_pass", codes.tolist(), id_lengths.tolist(), code_lengths.tolist()])
        return torch.zeros(1, codes.shape[1], self.width)


class S2Mel(nn.Module):
    """Records lengths, steps and guidance."""

    recorder: Recorder

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @property
    def cfm(self) -> S2Mel:
        return self

    def gpt_layer(self, latents: Tensor) -> Tensor:
        return torch.zeros(1, latents.shape[1], self.channels)

    def length_regulator(self, content: Tensor, lengths: Tensor) -> Tensor:
        self.recorder.events.append(["length_regulator", list(content.shape[:2]), lengths.tolist()])
        return torch.zeros(1, int(lengths[0]), self.channels)

    def solve(self, mu: Tensor, prompt: Tensor, style: Tensor, *, steps: int, guidance: float, noise: Tensor, on_step: Any) -> Tensor:
        self.recorder.events.append(["solver", list(mu.shape[:2]), list(prompt.shape), steps, guidance])
        return torch.zeros(1, 80, mu.shape[1])


class Codec(nn.Module):
    """Embeddings of the right shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def vq2emb(self, codes: Tensor) -> Tensor:
        return torch.zeros(1, self.channels, codes.shape[1])


class Vocoder(nn.Module):
    """Rises from -1.2 to 1.2 over four samples a frame, clamped as a vocoder's output is."""

    recorder: Recorder

    def forward(self, mel: Tensor) -> Tensor:
        self.recorder.events.append(["vocoder", list(mel.shape)])
        return torch.linspace(-1.2, 1.2, SAMPLES_PER_FRAME * mel.shape[-1]).clamp(-1, 1)[None, None]


class RecordedStages(Stages):
    """The real stages, with prompts of the golden's lengths."""

    prompt_frames: int
    feature_lengths: tuple[int, int]
    recorder: Recorder

    def speaker_prompt(self, mono: np.ndarray, rate: int) -> SpeakerPrompt:
        frames = self.prompt_frames
        return SpeakerPrompt(
            torch.zeros(1, 40, 1024), torch.ones(1, 192), torch.zeros(1, frames, 8), torch.zeros(1, 80, frames), torch.zeros(1)
        )

    def emotion_prompt(self, mono: np.ndarray, rate: int) -> EmotionPrompt:
        return EmotionPrompt(torch.ones(1, 33, 1024), torch.ones(1, self.gpt.width))

    def merge_emotion(self, speaker: SpeakerPrompt, emotion: EmotionPrompt, alpha: float) -> Tensor:
        self.recorder.alphas.append(alpha)
        self.recorder.merged = super().merge_emotion(speaker, emotion, alpha)
        return self.recorder.merged


class Classifier:
    """Reads the same emotion from every text."""

    def classify(self, text: str) -> dict[str, float]:
        return {"happy": 0.2, "angry": 0.0, "sad": 0.3, "afraid": 0.0, "disgusted": 0.0, "melancholic": 0.0, "surprised": 0.0, "calm": 0.1}


def make_engine(golden: Golden) -> IndexTTS2:
    """An ``IndexTTS2`` around the recorders."""
    gpt = {"number_mel_codes": STOP + 1, "start_mel_token": STOP - 1, "stop_mel_token": STOP, "model_dim": 8, "heads": 2}
    config = config_from_dict({"gpt": gpt, "semantic_codec": {"codebook_size": STOP - 1}, "emo_num": [1] * 8})
    emotion = EmotionMatrices(torch.eye(8, 192), torch.arange(64.0).reshape(8, 8), config.emo_num)
    models = Models(config, GPT(8), S2Mel(8), nn.Module(), Codec(8), nn.Module(), Vocoder(), emotion)  # type: ignore[arg-type]
    frontend = TextFrontend(Tokenizer(golden.resolve("golden/bpe_small.model")), TextNormalizer(grammar="identity"))
    tts = IndexTTS2.__new__(IndexTTS2)
    settings = tts._resolve_settings(False, "cpu", False, False, False, "auto", "auto", 0, "recorder")
    with mock.patch("indextts.engine.controls.Stages", RecordedStages):
        tts._assemble(models, frontend, Classifier(), settings)  # type: ignore[arg-type]
    return tts


def clip(name: str) -> tuple[int, np.ndarray]:
    """A clip whose content depends on its name."""
    return 22050, (0.1 * np.random.default_rng(sum(name.encode())).standard_normal(22050)).astype(np.float32)


def run_scenario(golden: Golden, scenario: dict[str, Any]) -> Iterator[Check]:
    """Checks of one scenario."""
    name, call, recorded = scenario["name"], dict(scenario.get("call") or {}), scenario.get("events", [])
    codes = next((event[1][0] for event in recorded if event[0] == "latent_pass"), [5, 6, 7, 8, 9])
    recorder = Recorder(codes, ends_with_stop=not scenario.get("warned_max_tokens"))
    tts = make_engine(golden)
    stages = tts._stages
    stages.recorder = stages.gpt.recorder = stages.s2mel.recorder = stages.vocoder.recorder = recorder
    stages.prompt_frames = next((event[3][-1] for event in recorded if event[0] == "solver"), 6)
    if "without the model" in name:
        tts.emotion_classifier = None
        call["use_emo_text"] = True
    text = "" if name.startswith("empty") else "  " if name.startswith("blank") else golden.spec["text"]
    emotion_clip = call.pop("emo_audio_prompt", None)
    clips = {"spk.wav": clip("spk.wav"), **({emotion_clip: clip(emotion_clip)} if emotion_clip else {})}
    with (
        tts,
        mock.patch("indextts.engine.stages.generate", recording_generate(recorder)),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            result = tts.infer(clips["spk.wav"], text, emo_audio_prompt=clips.get(emotion_clip), seed=0, **call)
            pieces = list(result) if call.get("stream_return") else None
        except (RuntimeError, ValueError) as error:
            yield compare_values(f"{name}: error", type(error).__name__, scenario.get("error"))
            return
        latest = next(key for role, key in reversed(tts.reference_cache._entries) if role == "emotion")
    yield compare_values(f"{name}: error", None, scenario.get("error"))
    yield from compare_events(name, recorder, recorded, call)
    limited = any("max_mel_tokens" in str(w.message) for w in caught)
    yield compare_values(f"{name}: limit warning", limited, scenario["warned_max_tokens"])
    equal = bool(recorder.emotion is not None and torch.equal(recorder.emotion, recorder.merged))  # type: ignore[arg-type]
    yield compare_values(f"{name}: emotion is the merged vector", equal, scenario["emovec_equals_merged"])
    from indextts.audio import content_key, load_audio

    keys = {content_key(*load_audio(source)): label for label, source in clips.items()}
    yield compare_values(f"{name}: emotion clip", keys[latest], scenario["cached_emotion_prompt"])
    if pieces is not None:
        yield from compare_stream(name, pieces, scenario["yielded"], call.get("interval_silence", 200))
    else:
        yield from compare_result(name, result, scenario["returned"])


def recording_generate(recorder: Recorder) -> Any:
    """In place of code generation: the golden's codes."""

    def generate(model: Any, prefix: Tensor, mask: Tensor, params: Any, **_: Any) -> GeneratedCodes:
        recorder.events.append(["inference_speech", *model.text_length, params])
        tail = [STOP] if recorder.ends_with_stop else []
        codes = torch.tensor([recorder.codes + tail])
        return GeneratedCodes(codes, torch.tensor([len(recorder.codes)]), torch.tensor([not recorder.ends_with_stop]))

    return generate


def compare_events(name: str, recorder: Recorder, recorded: list[list[Any]], call: dict[str, Any]) -> Iterator[Check]:
    """The calls of each segment in order, with their lengths and arguments."""
    expected = [event for event in recorded if event[0] in EVENTS]
    yield compare_values(f"{name}: calls", [event[0] for event in recorder.events], [event[0] for event in expected])
    merges = {event[1] for event in recorded if event[0] == "merge_emovec"}
    yield compare_values(f"{name}: alpha of the merge", set(recorder.alphas), merges)
    for ours, reference in zip(recorder.events, expected, strict=False):
        kind = ours[0]
        if kind == "inference_speech":
            _, tokens, dtype, params = ours
            yield compare_values(f"{name}: text tokens", [tokens, dtype], reference[1:3])
            for key, value in reference[3].items():
                attribute = GENERATION_NAMES.get(key, key)
                if not hasattr(params, attribute):
                    continue
                wanted = call.get("do_sample", True) if key == "do_sample" else value  # honoured here, forced on there
                yield compare_values(f"{name}: {attribute}", getattr(params, attribute), wanted)
        elif kind == "latent_pass":
            yield compare_values(f"{name}: latent pass", ours[1:], reference[1:4])
        elif kind == "length_regulator":
            yield compare_values(f"{name}: regulator", ours[1:], [reference[1][:2], reference[2]])
        elif kind == "solver":
            yield compare_values(f"{name}: solver", ours[1:], [reference[1][:2], *reference[3:]])
        else:
            yield compare_values(f"{name}: vocoder", ours[1:], reference[1:])


def compare_result(name: str, result: Any, expected: dict[str, Any]) -> Iterator[Check]:
    """Rate, type, shape and the edge samples."""
    rate, samples = result
    facts = {
        "rate": rate,
        "dtype": str(samples.dtype),
        "shape": list(samples.shape),
        "first": samples[:3].tolist(),
        "last": samples[-3:].tolist(),
        "mid": samples[len(samples) // 2].tolist(),
    }
    for key, value in expected.items():
        yield compare_values(f"{name}: returned {key}", facts[key], value)


def compare_stream(name: str, pieces: list[Tensor], expected: list[Any], interval_ms: float) -> Iterator[Check]:
    """Waves in [-1, 1], pauses between segments only; the reference yields PCM scale and a pause (or a list) after every segment."""
    wanted = [item for item in expected if isinstance(item, dict)]
    if interval_ms > 0:
        wanted = wanted[:-1]
    yield compare_values(f"{name}: streamed shapes", [list(piece.shape) for piece in pieces], [item["shape"] for item in wanted])
    yield compare_values(f"{name}: streamed types", {str(piece.dtype) for piece in pieces}, {item["dtype"] for item in wanted})
    peaks = [[float(piece.min()), float(piece.max())] for piece in pieces]
    yield compare_values(f"{name}: streamed range", peaks, [[item["min"] / 32767, item["max"] / 32767] for item in wanted])


@runner("pipeline_calls")
def run(golden: Golden) -> Iterator[Check]:
    """Every scenario; the one about the one-entry cache is an accident of the reference that this package replaces."""
    for scenario in golden.spec["scenarios"]:
        if "audio_loads_after_each" not in scenario:
            yield from run_scenario(golden, scenario)
