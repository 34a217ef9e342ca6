"""If these fail, the fast decoder hands other latents to the next stage than the model would, or its 16-bit mode is far off."""

from __future__ import annotations

import pytest
import torch

from indextts.engine.decode import StaticDecoder
from indextts.engine.precision import copy_to
from indextts.engine.sampling import SamplingParams
from indextts.models.gpt import UnifiedVoice
from tests.engine.test_decode import CPU, STOP, TEXTS, decoder_of, prompt
from tests.tiny_gpt import CONFIG, tiny_conditioning, tiny_gpt


@pytest.fixture(scope="module")
def model() -> UnifiedVoice:
    return tiny_gpt()


@pytest.mark.parametrize("count", [1, 2, 17])
def test_latents_from_the_prefix_are_those_of_the_whole_pass(model: UnifiedVoice, count: int) -> None:
    decoder, conditioning, text = decoder_of(model), tiny_conditioning(model), torch.tensor(TEXTS[:1])
    codes = torch.randint(STOP - 1, (1, count), generator=torch.Generator().manual_seed(count))
    state = decoder.prefill(*model.prefix(conditioning, text))
    decoder.decode(state, SamplingParams(max_mel_tokens=20))
    with torch.no_grad():
        expected = model.latents(conditioning, text, None, codes, None)
    torch.testing.assert_close(decoder.latents(state, codes), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoder.latents(state, codes), expected, rtol=0, atol=1e-5)


def test_latents_of_padded_rows(model: UnifiedVoice) -> None:
    decoder, conditioning = decoder_of(model), tiny_conditioning(model)
    state = decoder.prefill(*prompt(model, TEXTS))
    result = decoder.decode(state, SamplingParams(max_mel_tokens=20, num_beams=1), generator=torch.Generator().manual_seed(1))
    together = decoder.latents(state, result.codes)
    for row, length in enumerate(result.lengths.tolist()):
        text = torch.tensor([[i for i in TEXTS[row] if i != CONFIG.stop_text_token]])
        codes = result.codes[row : row + 1, :length]
        with torch.no_grad():
            expected = model.latents(conditioning, text, None, codes, None)
        torch.testing.assert_close(together[row : row + 1, :length], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(decoder.latents(state.row(row), codes), expected, rtol=0, atol=1e-5)


def test_16_bits_are_near(model: UnifiedVoice) -> None:
    halved = copy_to(model, CPU, torch.bfloat16)
    decoder, exact = StaticDecoder(halved, CPU, torch.bfloat16, use_graphs=False), decoder_of(model)
    prefix, mask = prompt(model, TEXTS)
    for run in (decoder, exact):
        run.generate(prefix, mask, SamplingParams(do_sample=False, num_beams=1), forced_codes=1)
    near, true = (run._sessions[3, 1].search for run in (decoder, exact))
    assert near.tokens[0].tolist() == true.tokens[0].tolist()
    assert float((near.logits - true.logits).norm() / true.logits.norm()) < 0.03
    codes = torch.randint(STOP - 1, (3, 17), generator=torch.Generator().manual_seed(0))
    found, expected = (run.latents(run.prefill(prefix, mask), codes) for run in (decoder, exact))
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.03
    with torch.autocast("cpu", dtype=torch.bfloat16):  # what the plain path needs, and must not change this one
        assert torch.equal(decoder.latents(decoder.prefill(prefix, mask), codes), found)
