"""Text to eight emotion values, by the classifier that comes with the release (``qwen0.6bemo4-merge``, a Qwen3 fine-tune).

The classifier answers in Chinese JSON; :func:`parse_reply` makes a dict of :data:`EMOTIONS` of whatever it answers. Loading
takes about 1.2 GB and a reply some tens of tokens, so the model is loaded on first use and replies are kept by text.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts.models.emotion import EMOTIONS

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CHAT_TEMPLATE_ARGUMENTS = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
_SYSTEM = "文本情感分类"
_THINK_END_ID = 151668  # "</think>" of the Qwen3 tokenizer (arXiv 2505.09388)
_FILES = ("config.json", "tokenizer_config.json")

_CHINESE = dict(zip(("高兴", "愤怒", "悲伤", "恐惧", "反感", "低落", "惊讶", "自然"), EMOTIONS, strict=True))
_LABELS = {**{key: key for key in _CHINESE}, **{english: key for key, english in _CHINESE.items()}}
_LABEL_FIELDS = ("emotion", "emotion_label", "label", "情感", "情绪")
# The classifier cannot tell these two apart; the user's own words can.
_SAD, _MELANCHOLIC = "悲伤", "低落"
_MELANCHOLIC_WORDS = ("低落", "melancholy", "melancholic", "depression", "depressed", "gloomy")
_PAIR = re.compile(r"([^\s\":.,]+)\"?\s*:\s*([\d.]+)")
_LARGEST = 1.2


def build_messages(text: str) -> list[dict[str, str]]:
    """The chat that asks for the emotions of ``text``."""
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]


def cut_thinking(ids: Sequence[int]) -> list[int]:
    """Generated ids after the last end-of-thinking mark; all of them if there is none."""
    ids = list(ids)
    return ids[len(ids) - ids[::-1].index(_THINK_END_ID) :] if _THINK_END_ID in ids else ids


# -------------------------------------------------------------------------------------------------------------- parsing


def parse_reply(reply: str, user_text: str) -> dict[str, float]:
    """Emotion values of a reply, in the order of :data:`EMOTIONS`, each in [0, 1.2].

    A reply that the release would fail on, or that holds a NaN, means calm; one warning is logged.
    """
    try:
        values = _read_values(reply, user_text)
        if any(math.isnan(value) for value in values):
            raise ValueError("a value is not a number")
    except ValueError as error:
        logger.warning("the emotion classifier's reply cannot be read (%s); using calm. Reply: %.200r", error, reply)
        values = [0.0] * len(EMOTIONS)
    return _result(values)


def parse_reply_strict(reply: str, user_text: str) -> dict[str, float]:
    """As :func:`parse_reply`, but ``ValueError`` where the release raises; a NaN ends as 1.2, as it does there."""
    return _result(_read_values(reply, user_text))


def _result(values: list[float]) -> dict[str, float]:
    # min() keeps its first argument when the other is NaN.
    result = {emotion: max(0.0, min(_LARGEST, value)) for emotion, value in zip(EMOTIONS, values, strict=True)}
    if not any(result.values()):
        result["calm"] = 1.0
    return result


def _read_values(reply: str, user_text: str) -> list[float]:
    """The eight values as the reply states them, not yet clamped."""
    content = _swap_melancholic(_read_content(reply), user_text)
    return [_number(key, value) for key, value in _apply_labels(content).items()]


def _read_content(reply: str) -> Any:
    """The reply's JSON, or the pairs of name and number in one that is not JSON."""
    try:
        return json.loads(reply)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        return {key: _number(key, number) for key, number in _PAIR.findall(reply)}


def _swap_melancholic(content: Any, user_text: str) -> Any:
    lowered = user_text.lower()
    if not any(word in lowered for word in _MELANCHOLIC_WORDS):
        return content
    if not isinstance(content, dict):
        raise ValueError(f"it is {type(content).__name__}, not an object")
    return {**content, _SAD: content.get(_MELANCHOLIC, 0.0), _MELANCHOLIC: content.get(_SAD, 0.0)}


def _apply_labels(content: Any) -> dict[str, Any]:
    """Values by Chinese key, with labels (names instead of numbers) turned into 1.0."""
    values: dict[str, Any] = dict.fromkeys(_CHINESE, 0.0)
    fields = content if isinstance(content, dict) else {}
    present = [key for key in _CHINESE if key in fields]
    if not present:
        candidates = [content, *(fields.get(name) for name in _LABEL_FIELDS)]
        label = next((found for found in map(_label, candidates) if found), None)
        return {**values, label: 1.0} if label else values
    values.update((key, fields[key]) for key in present)
    for key in present:
        label = _label(values[key])
        if label:
            values[key] = 0.0
            values[label] = 1.0
    return values


def _label(value: Any) -> str | None:
    """The Chinese key that a label names, or None."""
    return _LABELS.get(value.strip().lower()) if isinstance(value, str) else None


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{key} is {value!r}, not a number") from None


# ----------------------------------------------------------------------------------------------------------- classifier


class EmotionClassifier:
    """The release's classifier in ``model_dir``, loaded on first use from local files only.

    Two differences from the release, both for repeatable results: decoding is greedy (its ``generation_config.json`` may ask for
    sampling), and a reply ends after ``max_new_tokens`` (replies have some tens of tokens; the release allows 32768).
    Weights are float16 on an accelerator, float32 on the CPU. Safe to call from several threads.
    """

    def __init__(
        self, model_dir: str | Path, device: str | torch.device = "cpu", *, cache_size: int = 256, max_new_tokens: int = 1024
    ) -> None:
        if cache_size < 1 or max_new_tokens < 1:
            raise ValueError(f"cache_size and max_new_tokens must be >= 1, got {cache_size} and {max_new_tokens}")
        self.model_dir = Path(model_dir)
        self.device = device
        self.cache_size = cache_size
        self.max_new_tokens = max_new_tokens
        self._cache: OrderedDict[str, dict[str, float]] = OrderedDict()
        self._lock = threading.RLock()
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    def load(self) -> None:
        """Load model and tokenizer, if they are not loaded.

        Errors: ``FileNotFoundError`` naming what is missing, ``RuntimeError`` if the files cannot be loaded.
        """
        with self._lock:
            if self._model is not None:
                return
            missing = [name for name in _FILES if not (self.model_dir / name).is_file()]
            if missing:
                raise FileNotFoundError(f"the emotion classifier is incomplete: {self.model_dir} lacks {', '.join(missing)}")
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

            try:
                with _no_progress_bar():
                    tokenizer = AutoTokenizer.from_pretrained(self.model_dir, local_files_only=True)
                    model = AutoModelForCausalLM.from_pretrained(self.model_dir, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise RuntimeError(f"cannot load the emotion classifier from {self.model_dir}: {error}") from error
            device = torch.device(self.device)
            stop_ids = model.generation_config.eos_token_id
            model.generation_config = GenerationConfig(
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=tokenizer.eos_token_id if stop_ids is None else stop_ids,
                pad_token_id=tokenizer.eos_token_id,
            )
            model.to(device=device, dtype=torch.float32 if device.type == "cpu" else torch.float16)
            self._tokenizer, self._model = tokenizer, model.eval()

    def unload(self) -> None:
        """Free the model; the next new text loads it again. Known texts stay known."""
        with self._lock:
            self._model = self._tokenizer = None

    def reply(self, text: str) -> str:
        """What the model answers to ``text``, without its thinking."""
        import torch

        with self._lock, torch.inference_mode():
            self.load()
            prompt = self._tokenizer.apply_chat_template(build_messages(text), **CHAT_TEMPLATE_ARGUMENTS)
            inputs = self._tokenizer([prompt], return_tensors="pt").to(self._model.device)
            output = self._model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            return str(self._tokenizer.decode(cut_thinking(output.tolist()), skip_special_tokens=True))

    def classify(self, text: str) -> dict[str, float]:
        """Emotion values of ``text`` in the order of :data:`EMOTIONS`; an unreadable reply means calm (see :func:`parse_reply`)."""
        with self._lock:
            if text not in self._cache:
                self._cache[text] = parse_reply(self.reply(text), text)
                while len(self._cache) > self.cache_size:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(text)
            return dict(self._cache[text])


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar over the user's output; its setting is put back."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
