"""The engine a lesson works with, and a sentence from it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from indextts.recovery import CODES_PER_TEXT_TOKEN
from widgets.lessons.measure import this_machine
from widgets.lessons.pages import note, number

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2
    from indextts.runs import RunHistory, RunRecord

SENTENCE = "The harbour was quiet when the ferry came in."
SEED = 7
_SPEECHLESS = "random weights, because no voice is installed: timings are real, the sound is noise"


def open_engine(purpose: str = "listening", **settings: Any) -> IndexTTS2:
    """An engine that suits a lesson, and one line on the page that says which it is. ``settings`` go to the constructor.

    ``purpose="listening"``: the release if it is complete and a GPU is there to run it, else the bundled small voice, else random
    weights. ``purpose="timing"``: on a GPU without the release, random weights of release size, so that times are those of the
    real system. Other releases: use ``IndexTTS2`` directly. Errors: ``ValueError`` for another purpose.
    """
    from indextts import IndexTTS2
    from indextts.release.find import bundled_voice

    if purpose not in ("listening", "timing"):
        raise ValueError(f"purpose is {purpose!r}; it is 'listening' or 'timing'")
    gpu, small = torch.cuda.is_available(), bundled_voice()
    release = _complete_release() if gpu else None
    if release is not None:
        tts, which = IndexTTS2(model_dir=release, use_qwen_emo=False, **settings), "the release"
    elif gpu and purpose == "timing":
        tts, which = IndexTTS2.from_random("release", **settings), "random weights of release size: timings are real, the sound is noise"
    elif small is not None:
        tts, which = IndexTTS2(model_dir=small, use_qwen_emo=False, **settings), "the small voice that comes with the package"
    else:
        tts, which = IndexTTS2.from_random("small", **settings), _SPEECHLESS
    note(f"This lesson runs **{which}** ({number(parameters(tts) / 1e6)} M parameters, {tts.precision}) on: {this_machine()}.").show()
    return tts


def parameters(tts: IndexTTS2) -> int:
    """Parameters of all networks of an engine."""
    stages = tts._stages
    networks = (stages.gpt, stages.s2mel, stages.vocoder, stages.semantic_encoder, stages.semantic_codec, stages.campplus)
    return sum(weight.numel() for network in networks for weight in network.parameters())


def can_speak(tts: IndexTTS2) -> bool:
    """Whether the weights are trained, so that listening makes sense."""
    return tts.release is not None


def speak(tts: IndexTTS2, text: str = SENTENCE, label: str | None = None, history: RunHistory | None = None, **arguments: Any) -> RunRecord:
    """``tts.infer`` in the engine's own reference voice and with a fixed seed, as a run record."""
    from indextts.runs import render

    arguments.setdefault("spk_audio_prompt", tts.default_voice())
    arguments.setdefault("seed", SEED)
    arguments = length_limit(tts, text, arguments.get("max_text_tokens_per_segment", 120)) | arguments
    with quiet_limits(tts, "max_mel_tokens" in arguments):
        return render(tts, history, label, text=text, **arguments)


def length_limit(tts: IndexTTS2, text: str, most_tokens: int = 120) -> dict[str, int]:
    """As an argument, the codes that the longest segment of ``text`` takes to say: for random weights, which never end by themselves."""
    if can_speak(tts):
        return {}
    return {"max_mel_tokens": CODES_PER_TEXT_TOKEN * max(len(segment.ids) for segment in tts.frontend.segments(text, most_tokens))}


@contextmanager
def quiet_limits(tts: IndexTTS2, limited: bool = False) -> Iterator[None]:
    """Within this, being stopped at the limit is no warning: for random weights, which never say that they are done.

    ``limited``: for trained ones too, since the limit was asked for.
    """
    with warnings.catch_warnings():
        if limited or not can_speak(tts):
            warnings.filterwarnings("ignore", "generation was stopped", RuntimeWarning)
        yield


def _complete_release() -> Any:
    """The folder of a complete release in one of its usual places, or None."""
    from indextts.release.find import find_release

    try:
        release = find_release()
    except (FileNotFoundError, ValueError):
        return None
    return None if release.bundled else release.model_dir


def sentence_limit(tts: IndexTTS2, text: str) -> int:
    """Tokens of the longest sentence of ``text``: with this as ``max_text_tokens_per_segment`` each sentence is a segment of its own."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]
    return max(len(tts.frontend.pieces(sentence)) for sentence in sentences)
