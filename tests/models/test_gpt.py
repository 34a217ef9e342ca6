"""If these fail, released checkpoints stop loading, batched requests change a voice's result, or the model can no longer be trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.config import GPTConfig
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import KVCache
from indextts.models.weights import CheckpointError, build, load_weights
from tests.tiny_gpt import CONFIG, tiny_conditioning, tiny_gpt

MANIFEST = Path(__file__).parents[1] / "manifest" / "gpt.json"
TEXT = torch.tensor([[7, 3, 9, 12, 5]])
CODES = torch.tensor([[4, 11, 2, 19, 8, 8]])


@pytest.fixture(scope="module")
def model() -> UnifiedVoice:
    return tiny_gpt()


@pytest.fixture(scope="module")
def conditioning(model: UnifiedVoice) -> Tensor:
    return tiny_conditioning(model)


def test_release_keys_and_shapes() -> None:
    with torch.device("meta"):
        state = UnifiedVoice(GPTConfig()).state_dict()
    manifest = json.loads(MANIFEST.read_text())
    assert {key: tuple(value.shape) for key, value in state.items()} == {key: tuple(entry["shape"]) for key, entry in manifest.items()}


def test_loads_a_file_with_aliases_and_without_position_tables(model: UnifiedVoice) -> None:
    state = {key: value for key, value in model.state_dict().items() if not key.endswith(".pe")}
    aliases = ("gpt.wte.weight", "inference_model.transformer.h.0.ln_1.weight", "gpt.h.1.attn.bias", "gpt.h.0.attn.masked_bias")
    loaded = build(lambda: UnifiedVoice(CONFIG))
    load_weights(loaded, UnifiedVoice.complete_state(state | {key: torch.zeros(1) for key in aliases}))
    features = torch.randn(1, 9, CONFIG.feature_dim)
    torch.testing.assert_close(loaded.speaker_latents(features), model.speaker_latents(features).detach())


def test_aliases_alone_are_also_known_to_the_loader(model: UnifiedVoice) -> None:
    load_weights(build(lambda: UnifiedVoice(CONFIG)), {**model.state_dict(), "gpt.wte.weight": torch.zeros(1)}, unused=UnifiedVoice.UNUSED)


def test_a_missing_weight_is_an_error(model: UnifiedVoice) -> None:
    state = UnifiedVoice.complete_state(model.state_dict())
    del state["gpt.h.1.attn.c_attn.bias"]
    with pytest.raises(CheckpointError, match=r"gpt\.h\.1\.attn\.c_attn\.bias"):
        load_weights(build(lambda: UnifiedVoice(CONFIG)), state)


def test_stored_position_table_is_used(model: UnifiedVoice) -> None:
    features = torch.randn(1, 9, CONFIG.feature_dim)
    state = model.state_dict()
    state["conditioning_encoder.embed.pos_enc.pe"] = torch.randn_like(state["conditioning_encoder.embed.pos_enc.pe"])
    other = build(lambda: UnifiedVoice(CONFIG))
    load_weights(other, UnifiedVoice.complete_state(state))
    assert not torch.allclose(other.speaker_latents(features), model.speaker_latents(features), atol=1e-3)


def test_prefix_layout(model: UnifiedVoice, conditioning: Tensor) -> None:
    prefix, mask = model.prefix(conditioning, TEXT)
    text = F.pad(F.pad(TEXT, (1, 0), value=0), (0, 1), value=1)
    expected = model.text_embedding(text) + model.text_pos_embedding.emb.weight[: text.shape[1]]
    torch.testing.assert_close(prefix, torch.cat([conditioning, expected], dim=1))
    assert mask.shape == (1, prefix.shape[1] + 1)
    assert mask.all()
    assert model.placeholder_ids(prefix).tolist() == [[1] * prefix.shape[1] + [CONFIG.start_mel_token]]


def test_conditioning_adds_the_emotion_to_the_speaker_latents_only(model: UnifiedVoice) -> None:
    latents, emotion = torch.randn(2, 4, 32), torch.randn(2, 32)
    conditioning = model.conditioning(latents, emotion)
    torch.testing.assert_close(conditioning[:, :4], latents + emotion[:, None])
    torch.testing.assert_close(conditioning[:, 4:], model.speed_emb.weight[[1, 0]].expand(2, 2, 32))


def test_merge_reaches_both_ends(model: UnifiedVoice) -> None:
    speaker, emotion = torch.randn(1, 11, CONFIG.feature_dim), torch.randn(1, 8, CONFIG.feature_dim)
    torch.testing.assert_close(model.merge_emotion(speaker, emotion, 0.0), model.emotion_vector(speaker))
    torch.testing.assert_close(model.merge_emotion(speaker, emotion, 1.0), model.emotion_vector(emotion))


def test_left_padded_batch_equals_single_texts(model: UnifiedVoice, conditioning: Tensor) -> None:
    texts = [TEXT, torch.tensor([[15, 2]])]
    batch = torch.cat([F.pad(text, (0, TEXT.shape[1] - text.shape[1]), value=CONFIG.stop_text_token) for text in texts])
    prefix, mask = model.prefix(conditioning, batch)
    batched = _generation_logits(model, prefix, mask, CODES.expand(2, -1))
    for row, text in enumerate(texts):
        single = _generation_logits(model, *model.prefix(conditioning, text), CODES)
        torch.testing.assert_close(batched[row], single[0], atol=1e-5, rtol=1e-5)


def test_padded_positions_see_themselves_so_that_no_kernel_returns_nan(model: UnifiedVoice, conditioning: Tensor) -> None:
    seen = []
    hook = model.gpt.h[0].register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    model.prefill(*model.prefix(conditioning, torch.tensor([[7, 3, 9], [4, 1, 1]])))
    hook.remove()
    assert seen[0].any(dim=-1).all()
    assert not seen[0][1, 0, -1, :2].any(), "real positions do not see the padding"


def test_a_mask_without_padding_changes_nothing(model: UnifiedVoice, conditioning: Tensor) -> None:
    prefix, mask = model.prefix(conditioning, TEXT)
    torch.testing.assert_close(_generation_logits(model, prefix, mask, CODES), _generation_logits(model, prefix, None, CODES))


def test_cached_steps_equal_one_full_pass_at_positions_0_2_3(model: UnifiedVoice, conditioning: Tensor) -> None:
    prefix, mask = model.prefix(conditioning, TEXT)
    positions = [0, *range(2, 2 + CODES.shape[1])]
    fed = F.pad(CODES, (1, 0), value=CONFIG.start_mel_token)
    embedded = model.mel_embedding(fed) + model.mel_pos_embedding.emb.weight[positions]
    full = model.logits(model.gpt(torch.cat([prefix, embedded], dim=1)))[:, prefix.shape[1] :]
    torch.testing.assert_close(_generation_logits(model, prefix, mask, CODES), full, atol=1e-5, rtol=1e-5)


def test_latents_are_the_states_that_predict_each_code_at_positions_0_1_2(model: UnifiedVoice, conditioning: Tensor) -> None:
    prefix, _ = model.prefix(conditioning, TEXT)
    fed = F.pad(CODES[:, :-1], (1, 0), value=CONFIG.start_mel_token)
    embedded = model.mel_embedding(fed) + model.mel_pos_embedding.emb.weight[: fed.shape[1]]
    states = model.final_norm(model.gpt(torch.cat([prefix, embedded], dim=1)))[:, prefix.shape[1] :]
    latents = model.latents(conditioning, TEXT, None, CODES, None)
    torch.testing.assert_close(latents, states, atol=1e-5, rtol=1e-5)


def test_latents_of_a_padded_row_equal_the_row_cut_to_its_code_length(model: UnifiedVoice, conditioning: Tensor) -> None:
    lengths = torch.tensor([6, 3])
    codes = torch.cat([CODES, torch.tensor([[1, 2, 3, 20, 20, 20]])])
    batched = model.latents(conditioning, TEXT.expand(2, -1), None, codes, lengths)
    for row, length in enumerate(lengths.tolist()):
        single = model.latents(conditioning, TEXT, None, codes[row : row + 1, :length], None)
        torch.testing.assert_close(batched[row, :length], single[0], atol=1e-5, rtol=1e-5)


def test_text_beyond_its_length_counts_as_stop_of_text(model: UnifiedVoice, conditioning: Tensor) -> None:
    stopped = TEXT.clone()
    stopped[:, 3:] = CONFIG.stop_text_token
    expected = model.latents(conditioning, stopped, None, CODES, None)
    torch.testing.assert_close(model.latents(conditioning, TEXT, torch.tensor([3]), CODES, None), expected)
    assert not torch.allclose(model.latents(conditioning, TEXT, None, CODES, None), expected, atol=1e-3)


@pytest.mark.parametrize("method", ["speaker_latents", "emotion_vector"])
def test_prompts_of_unequal_length_can_be_batched(model: UnifiedVoice, method: str) -> None:
    encode = getattr(model, method)
    features, lengths = torch.randn(2, 25, CONFIG.feature_dim), torch.tensor([25, 14])
    single = torch.cat([encode(features[row : row + 1, :length]) for row, length in enumerate(lengths.tolist())])
    torch.testing.assert_close(encode(features, lengths, isolate_padding=True), single, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encode(features, lengths)[1], single[1], atol=1e-5), "the release's result for a padded row differs"


@pytest.mark.parametrize("frames", [3, 14, 15, 16])
def test_a_padded_batch_is_subsampled_in_pieces(model: UnifiedVoice, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    features, embed = torch.randn(2, frames, CONFIG.feature_dim), model.conditioning_encoder.embed
    monkeypatch.setattr("indextts.models.conformer.PIECE", 6)
    with torch.no_grad():
        torch.testing.assert_close(embed.in_pieces(features), embed(features), atol=1e-6, rtol=1e-5)


def test_a_prompt_without_any_whole_frame_gives_no_nan(model: UnifiedVoice) -> None:
    assert model.speaker_latents(torch.randn(2, 9, CONFIG.feature_dim), torch.tensor([9, 1])).isfinite().all()


def test_what_does_not_fit_is_refused(model: UnifiedVoice, conditioning: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 3 frames"):
        model.speaker_latents(torch.randn(1, 2, CONFIG.feature_dim))
    with pytest.raises(ValueError, match="too many text tokens"):
        model.prefix(conditioning, torch.full((1, CONFIG.max_text_tokens + 1), 5))
    with pytest.raises(ValueError, match="too many codes"):
        model.latents(conditioning, TEXT, None, torch.zeros(1, model.max_codes + 1, dtype=torch.long), None)
    with pytest.raises(ValueError, match="step"):
        model.decode_step(CODES[:, 0], 0, KVCache())


def test_cache_rows_become_beams(model: UnifiedVoice, conditioning: Tensor) -> None:
    prefix, mask = model.prefix(conditioning, torch.tensor([[7, 3], [9, 12]]))
    parents, codes = [1, 1, 0], torch.tensor([3, 5, 8])
    _, cache = model.prefill(prefix, mask)
    cache.reorder(torch.tensor(parents))
    found, _ = model.decode_step(codes, 1, cache, mask[parents])
    for beam, row in enumerate(parents):
        _, own = model.prefill(prefix[row : row + 1], mask[row : row + 1])
        expected, _ = model.decode_step(codes[beam : beam + 1], 1, own)
        torch.testing.assert_close(found[beam], expected[0], atol=1e-5, rtol=1e-5)


def test_training_reaches_every_parameter_and_learns() -> None:
    model = tiny_gpt(dropout=0.1, spread=1.0).train()
    features = torch.randn(1, 15, CONFIG.feature_dim)

    def loss() -> Tensor:
        conditioning = model.conditioning(model.speaker_latents(features), model.emotion_vector(features))
        text, code = model(conditioning, TEXT, None, CODES, None)
        wanted_text = F.pad(TEXT, (0, 1), value=CONFIG.stop_text_token)
        wanted_code = F.pad(CODES, (0, 1), value=CONFIG.stop_mel_token)
        text_loss = F.cross_entropy(text[:, :-1].flatten(0, 1), wanted_text.flatten())
        return F.cross_entropy(code[:, :-1].flatten(0, 1), wanted_code.flatten()) + 0.1 * text_loss

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.isfinite().all()]
    assert not without
    assert losses[-1] < 0.7 * losses[0]


def test_dropout_acts_in_training_only() -> None:
    model = tiny_gpt(dropout=0.5)
    conditioning = tiny_conditioning(model)
    first, second = (model.latents(conditioning, TEXT, None, CODES, None) for _ in range(2))
    torch.testing.assert_close(first, second)
    model.train()
    assert not torch.allclose(model.latents(conditioning, TEXT, None, CODES, None), first, atol=1e-3)


@pytest.mark.parametrize("autocast", [True, False])
def test_16_bit_weights_keep_float32_logits_close_to_the_float32_model(model: UnifiedVoice, conditioning: Tensor, autocast: bool) -> None:
    half = tiny_gpt().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), torch.no_grad():
        found = _generation_logits(half, *half.prefix(conditioning.bfloat16(), TEXT), CODES)
    expected = _generation_logits(model, *model.prefix(conditioning, TEXT), CODES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05 * float(expected.detach().abs().max()), rtol=0.0)


def _generation_logits(model: UnifiedVoice, prefix: Tensor, mask: Tensor | None, codes: Tensor) -> Tensor:
    """Logits (B, n + 1, V) after the start code and after each code."""
    logits, cache = model.prefill(prefix, mask)
    steps = [logits]
    for step in range(1, codes.shape[1] + 1):
        logits, cache = model.decode_step(codes[:, step - 1], step, cache, mask)
        steps.append(logits)
    return torch.stack(steps, dim=1)
