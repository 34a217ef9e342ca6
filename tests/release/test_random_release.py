"""If this fails, lessons, benchmarks and tests without the download run on weights that are not like the release's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from sentencepiece import SentencePieceProcessor

from indextts.config import load_config
from indextts.models.campplus import style_features
from indextts.models.semantic_encoder import semantic_features_frontend
from indextts.release import (
    find_release,
    load_models,
    random_models,
    release_config,
    small_config,
    verify_release,
    write_random_release,
)
from indextts.release.random_release import published_config
from indextts.release.random_weights import constants, random_state, skeletons, unused_shapes
from indextts.release.tiny_bpe import TOKENIZER_SIZE, common_characters, tiny_tokenizer

MANIFESTS = Path(__file__).parents[1] / "manifest"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_release(tmp_path_factory.mktemp("small"), "small", seed=3, qwen=True)


@pytest.mark.parametrize("name", ["gpt", "s2mel", "w2v_bert", "semantic_codec", "campplus", "bigvgan"])
def test_files_of_release_size_have_exactly_the_published_tensors(name: str) -> None:
    sizes = release_config()
    module = skeletons(sizes)[name]
    shapes = {**module.state_dict(), **unused_shapes(name, module, sizes)}
    for key in getattr(module, "WEIGHT_NORMED", ()):
        weight = shapes.pop(f"{key}.weight")
        shapes[f"{key}.weight_v"] = weight
        shapes[f"{key}.weight_g"] = weight[(slice(None), *[slice(0, 1)] * (weight.dim() - 1))]
    written = {key: (list(value.shape), str(value.dtype)) for key, value in {**shapes, **constants(name, module)}.items()}
    if name == "w2v_bert":  # these two have a file of their own
        assert (written.pop("mean"), written.pop("var")) == (([1024], "torch.float32"),) * 2
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    assert written == {key: (entry["shape"], f"torch.{entry['dtype']}") for key, entry in manifest.items()}


def test_release_configuration_has_the_published_fields_and_values() -> None:
    plain = published_config(release_config().config)
    sections = ["dataset", "gpt", "semantic_codec", "s2mel", "vocoder"]
    values = ["gpt_checkpoint", "s2mel_checkpoint", "w2v_stat", "emo_matrix", "spk_matrix", "emo_num", "qwen_emo_path", "version"]
    assert set(plain) == {*sections, *values}
    assert plain["gpt"]["condition_module"]["linear_units"] == 2048
    assert plain["s2mel"]["DiT"]["depth"] == 13
    assert not {"feature_dim", "gpt_layer_dims"} & (set(plain["gpt"]) | set(plain["s2mel"]))
    assert yaml.safe_load(yaml.safe_dump(plain))["s2mel"]["preprocess_params"]["spect_params"]["fmax"] == "None"


def test_small_release_is_complete_small_and_sound(folder: Path) -> None:
    release = find_release(folder)
    assert release.config == small_config().config == load_config(folder / "config.yaml")
    assert verify_release(release, deep=True) == []
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 30e6
    acoustic = release.config.s2mel.preprocess_params
    assert (acoustic.sr, acoustic.spect_params.hop_length, acoustic.spect_params.n_mels) == (22050, 256, 80)


def test_files_exercise_the_forms_that_published_ones_have(folder: Path) -> None:
    release = find_release(folder)
    s2mel = torch.load(release.s2mel, weights_only=True)
    assert set(s2mel) > {"net", "iters", "epoch"}
    assert {"x_embedder.weight_g", "input_pos", "wavenet.cond_layer.conv.conv.weight_v"} <= {
        key.removeprefix("estimator.") for key in s2mel["net"]["cfm"]
    }
    assert "conv_pre.weight_g" in torch.load(release.bigvgan_weights, weights_only=True)["generator"]
    assert torch.load(release.speaker_matrix, weights_only=True).requires_grad


def test_memory_and_files_hold_the_same_weights(folder: Path) -> None:
    loaded = load_models(find_release(folder))
    made, tokenizer = random_models("small", seed=3)
    other, _ = random_models("small", seed=4)
    assert made.networks().keys() == loaded.networks().keys()
    assert len(made.networks()) == 7
    for name, network in made.networks().items():
        mine, theirs = network.state_dict(), loaded.networks()[name].state_dict()
        assert mine.keys() == theirs.keys()
        assert [key for key in mine if not torch.allclose(mine[key], theirs[key], rtol=1e-6, atol=0)] == []
        assert any(not torch.equal(value, mine[key]) for key, value in other.networks()[name].state_dict().items())
    assert tokenizer.encode("HELLO") == SentencePieceProcessor(model_file=str(folder / "bpe.model")).encode("HELLO", out_type=str)


def test_weights_do_not_depend_on_threads_or_on_the_rest_of_the_program() -> None:
    shapes = {f"layer.{i}.weight": torch.empty(40, 30, device="meta") for i in range(20)}
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    first = random_state(shapes, "net", 0)
    assert torch.equal(state, torch.get_rng_state())
    try:
        torch.set_num_threads(1)
        torch.manual_seed(123)
        second = random_state(dict(reversed(shapes.items())), "net", 0)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[key], second[key]) for key in shapes)


def test_signals_stay_finite_and_alive_through_every_network() -> None:
    models, _ = random_models("small", seed=0)
    generator = torch.Generator().manual_seed(0)
    gpt, s2mel, codec = models.gpt, models.s2mel, models.semantic_codec
    with torch.inference_mode():
        wave = 0.1 * torch.randn(16000, generator=generator)
        features = models.semantic_encoder(*semantic_features_frontend(wave))
        codes, _ = codec.quantize(features)
        style = models.campplus(style_features(wave))
        conditioning = gpt.conditioning(gpt.speaker_latents(features), gpt.emotion_vector(features))
        text = torch.randint(3, TOKENIZER_SIZE, (1, 12), generator=generator)
        logits, _ = gpt.prefill(*gpt.prefix(conditioning, text))
        latent = gpt.latents(conditioning, text, None, codes, None)
        frames = torch.tensor([84])
        mu = s2mel.length_regulator(s2mel.content(codec.vq2emb(codes), latent), frames)
        prompt = torch.randn(1, 80, 30, generator=generator) - 4
        mu = torch.nn.functional.pad(mu, (0, 0, 30, 0))
        mel = s2mel.cfm.solve(mu, prompt, style, steps=4, generator=generator)
        sound = models.vocoder.unclamped(mel[..., 30:] - 4)
    assert codes.unique().numel() > 5
    for name, value in {
        "features": features,
        "style": style,
        "logits": logits,
        "latent": latent,
        "mu": mu,
        "mel": mel,
        "sound": sound,
    }.items():
        assert torch.isfinite(value).all(), name
        assert 0.005 < value.std() < 10, name
    assert sound.abs().max() < 1


def test_tokenizer_speaks_english_and_chinese() -> None:
    tokenizer = SentencePieceProcessor(model_proto=tiny_tokenizer())
    assert tokenizer.get_piece_size() == TOKENIZER_SIZE <= small_config().config.gpt.number_text_tokens
    assert release_config().config.gpt.number_text_tokens >= TOKENIZER_SIZE
    assert [tokenizer.id_to_piece(i) for i in range(3)] == ["<s>", "</s>", "<unk>"]
    english = "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG , WHY ? IT'S WELL-KNOWN ! ... ZHONG4"
    chinese = " ".join("今天天气很好我们一起去公园散步吧你觉得怎么样语音合成")
    for text in (english, chinese, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        assert tokenizer.unk_id() not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("THE BROWN RIVER")) < 10
    for unknown in ("a", "7", "龘"):
        assert tokenizer.unk_id() in tokenizer.encode(unknown)
    assert len(common_characters()) == 3755
    assert tokenizer.unk_id() not in {tokenizer.piece_to_id(character) for character in common_characters()}


def test_tokenizer_is_the_same_in_every_process_and_quick() -> None:
    code = "import hashlib; from indextts.release.tiny_bpe import tiny_tokenizer as t; print(hashlib.sha256(t()).hexdigest())"
    start = time.perf_counter()
    runs = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert time.perf_counter() - start < 6


def test_classifier_folder_opens_and_replies(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    qwen = find_release(folder).qwen_dir
    assert qwen is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen)
    model = transformers.AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32)
    messages = [{"role": "system", "content": "文本"}, {"role": "user", "content": "I am glad"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    inputs = tokenizer([text], return_tensors="pt")
    assert tokenizer.decode(inputs.input_ids[0]) == text
    reply = model.generate(**inputs, max_new_tokens=100)
    assert reply.shape[1] == inputs.input_ids.shape[1] + 1


def test_a_release_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a release already"):
        write_random_release(folder, "small")


def test_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'release', 'small'"):
        write_random_release(tmp_path / "x", "medium")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_release_size_is_written_and_loaded(tmp_path: Path) -> None:
    release = find_release(write_random_release(tmp_path / "release", "release"))
    assert verify_release(release) == []
    models = load_models(release)
    assert sum(parameter.numel() for parameter in models.gpt.parameters()) > 800e6
