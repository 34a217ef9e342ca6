"""A tiny text-emotion classifier with random weights, in the layout of the release's: replies are one random piece long."""

from __future__ import annotations

import json
from pathlib import Path

_SPECIALS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>")
_END = "<|im_end|>"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_random_classifier(folder: Path, seed: int = 0) -> None:
    """Write a causal language model of the Qwen3 family over bytes into ``folder``."""
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    size, end = _write_tokenizer(folder)
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=False,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(torch.float16)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    # Every id ends a reply: random weights would go on for ever.
    GenerationConfig(eos_token_id=list(range(size)), pad_token_id=end, do_sample=False).save_pretrained(folder)


def _write_tokenizer(folder: Path) -> tuple[int, int]:
    """Byte-level BPE without merges; returns its size and the id that ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = (*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIALS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=_END, pad_token="<|endoftext|>", chat_template=_TEMPLATE)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return len(vocabulary), vocabulary[_END]
