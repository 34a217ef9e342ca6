"""If this fails, emotions described in words are read wrongly, or a bad answer of the classifier stops synthesis."""

import logging
import math
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indextts.emotion_text import EmotionClassifier, build_messages, cut_thinking, parse_reply, parse_reply_strict
from indextts.models.emotion import EMOTIONS, check_emo_vector

CALM = {emotion: float(emotion == "calm") for emotion in EMOTIONS}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
REPLY_BITS = st.lists(
    st.sampled_from(["{", "}", '"', "高兴", "悲伤", "happy", ":", ",", " ", "0.5", ".", "nan", "1e999", "[", "null"])
).map("".join)


@given(reply=st.text() | REPLY_BITS, user=st.sampled_from(["x", "gloomy"]))
def test_any_reply_gives_eight_usable_values(reply: str, user: str) -> None:
    values = parse_reply(reply, user)
    assert tuple(values) == EMOTIONS
    assert all(0 <= value <= 1.2 for value in check_emo_vector(list(values.values())))
    assert any(values.values())


@pytest.mark.parametrize(
    ("reply", "user"),
    [
        ('{"高兴": null}', "x"),
        ('{"高兴": NaN}', "x"),
        ("高兴: 1.2.3", "x"),
        ("[]", "depressed"),
        ("[" * 100_000, "x"),
        (f'{{"高兴": 1{"0" * 400}}}', "x"),
    ],
)
def test_an_unreadable_reply_means_calm_and_one_warning(reply: str, user: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert parse_reply(reply, user) == CALM
    assert len(caplog.records) == 1
    if "NaN" not in reply:
        with pytest.raises(ValueError, match=r"."):
            parse_reply_strict(reply, user)


def test_melancholy_is_told_apart_by_the_users_words() -> None:
    reply = '{"悲伤": 0.8, "低落": 0.1}'
    assert parse_reply(reply, "so sad")["sad"] == 0.8
    assert parse_reply(reply, "So DEPRESSED")["melancholic"] == 0.8


def test_a_long_reply_without_numbers_takes_bounded_time() -> None:
    start = time.perf_counter()
    parse_reply("高" * 4000, "x")
    assert time.perf_counter() - start < 5


def test_thinking_is_cut() -> None:
    assert cut_thinking([1, 151668, 2, 151668, 3, 4]) == [3, 4]
    assert cut_thinking([1, 2]) == [1, 2]
    assert cut_thinking([1, 151668]) == []


# ------------------------------------------------------------------------------------------------------------ classifier


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 model of a few thousand random weights with a byte-level tokenizer, saved as the release saves its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("qwen")
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<think>", "</think>"],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, eos_token_id=[tokenizer.eos_token_id, 0])
    model.half().save_pretrained(folder)
    return folder


def test_it_loads_late_and_answers_the_same_every_time(model_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    classifier = EmotionClassifier(model_dir, "cpu", max_new_tokens=12)
    assert not classifier.loaded
    replies = {classifier.reply("今天真好") for _ in range(3)}
    assert classifier.loaded
    assert len(replies) == 1
    assert capfd.readouterr() == ("", ""), "loading must not draw over the user's output"
    values = classifier.classify("今天真好")
    assert tuple(values) == EMOTIONS
    classifier.unload()
    assert not classifier.loaded
    assert classifier.classify("今天真好") == values, "a known text needs no model"
    assert not classifier.loaded


def test_the_settings_of_the_files_are_overruled(model_dir: Path) -> None:
    classifier = EmotionClassifier(model_dir, "cpu", max_new_tokens=5)
    classifier.load()
    generation = classifier._model.generation_config
    assert generation.do_sample is False
    assert len(generation.eos_token_id) == 2, "both stop ids of the files must count"
    assert classifier._model.dtype == torch.float32


def test_the_prompt_is_the_releases(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = EmotionClassifier(model_dir, "cpu")
    classifier.load()
    seen = []

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        seen.append(classifier._tokenizer.decode(input_ids[0]))
        answer = classifier._tokenizer('{"高兴": 0.7}<|im_end|>', return_tensors="pt").input_ids
        return torch.cat([input_ids, torch.tensor([[5, 151668]]), answer], dim=1)

    monkeypatch.setattr(classifier._model, "generate", generate)
    assert classifier.classify("你好") == {**CALM, "happy": 0.7, "calm": 0.0}
    assert "<|im_start|>user\n你好<|im_end|>" in seen[0]
    assert seen[0].endswith("<think>\n\n</think>\n\n")
    assert build_messages("你好")[0]["role"] == "system"


def test_known_texts_are_kept_up_to_a_bound(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = EmotionClassifier(model_dir, cache_size=2)
    asked = []
    monkeypatch.setattr(classifier, "reply", lambda text: asked.append(text) or '{"愤怒": 0.5}')
    for text in ("a", "b", "a", "c", "a", "b"):
        classifier.classify(text)["angry"] = math.nan  # a caller may change what it gets
    assert asked == ["a", "b", "c", "b"]
    assert classifier.classify("b")["angry"] == 0.5


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks config\.json, tokenizer_config\.json"):
        EmotionClassifier(tmp_path / "qwen").classify("x")


def test_damaged_files_are_named(model_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    with pytest.raises(RuntimeError, match="cannot load the emotion classifier"):
        EmotionClassifier(tmp_path).load()


def test_bounds_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        EmotionClassifier(tmp_path, cache_size=0)
