"""S2Mel in padded batches, in training and against the released file's layout.

If these fail, several segments rendered together sound unlike the same segments rendered one by one, a small voice trains on
padding, or the released weights do not load.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from indextts.config import DiTConfig, LengthRegulatorConfig, PreprocessConfig, S2MelConfig, SpectConfig, StyleConfig, WaveNetConfig
from indextts.models.flow_matching import FlowMatching
from indextts.models.length_regulator import LengthRegulator, group_norm_of_all, target_frames
from indextts.models.s2mel import S2Mel
from indextts.models.weights import CheckpointError, build, fold_weight_norm, load_weights, unfold_weight_norm
from tests.parity_kinds.common import Golden
from tests.parity_kinds.s2mel import seeded_s2mel

TESTS = Path(__file__).parents[1]
SMALL = S2MelConfig(
    preprocess_params=PreprocessConfig(spect_params=SpectConfig(n_mels=10)),
    style_encoder=StyleConfig(dim=6),
    length_regulator=LengthRegulatorConfig(channels=16, in_channels=24),
    DiT=DiTConfig(hidden_dim=32, num_heads=2, depth=4, in_channels=10, content_dim=16),
    wavenet=WaveNetConfig(hidden_dim=32, num_layers=2, kernel_size=3),
    gpt_layer_dims=(12, 8),
)


def small_s2mel() -> S2Mel:
    torch.manual_seed(0)
    model = S2Mel(SMALL, gpt_latent_dim=20)
    with torch.no_grad():  # the adaptive layers start neutral; here they must matter
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def frames_last(rows: list[Tensor], filler: Tensor) -> Tensor:
    """Rows (channels, T_b) side by side in ``filler`` (B, channels, T), whose other frames stay as they are."""
    batch = filler.clone()
    for into, row in zip(batch, rows, strict=True):
        into[:, : row.shape[-1]] = row
    return batch


@pytest.fixture(scope="module")
def cfm_golden() -> tuple[Golden, FlowMatching]:
    golden = Golden(TESTS / "golden" / "s2mel_cfm.json")
    return golden, seeded_s2mel(golden).cfm


@pytest.mark.parametrize("rate", [0.7, 0.0])
@torch.inference_mode()
def test_segments_solved_together_equal_each_alone(cfm_golden: tuple[Golden, FlowMatching], rate: float) -> None:
    golden, cfm = cfm_golden
    cases = golden.run["cases"]
    noise, prompt, mu, style = ([golden[f"in.{name}_{case}"][0] for case in cases] for name in ("noise", "prompt", "mu", "style"))
    lengths, prompt_lengths = (torch.tensor([row.shape[-1] for row in rows]) for rows in (noise, prompt))
    size, bands = int(lengths.max()), noise[0].shape[0]
    torch.manual_seed(1)  # what lies in the padding must not matter, so it is filled with noise
    mel = cfm.solve(
        frames_last([row.T for row in mu], torch.randn(len(cases), mu[0].shape[1], size)).transpose(1, 2),
        frames_last(prompt, torch.randn(len(cases), bands, int(prompt_lengths.max()))),
        torch.stack(style),
        steps=golden.run["n_timesteps"], guidance=rate, noise=frames_last(noise, torch.randn(len(cases), bands, size)),
        lengths=lengths, prompt_lengths=prompt_lengths,
    )  # fmt: skip
    for row, case, length in zip(mel, cases, lengths.tolist(), strict=True):
        alone = golden[f"out.mel_{case}_cfg{'07' if rate else '00'}"][0]
        torch.testing.assert_close(row[:, :length], alone, rtol=1e-5, atol=1e-5)
        assert not row[:, length:].any()


@torch.inference_mode()
def test_contents_stretched_together_equal_each_alone() -> None:
    regulator = small_s2mel().length_regulator
    sources, targets = torch.tensor([13, 5, 9, 13]), torch.tensor([22, 9, 31, 4])
    rows = [torch.randn(int(n), 24) for n in sources]
    together = regulator(pad_sequence(rows, batch_first=True, padding_value=3.0), targets, sources)
    assert together.shape == (4, 31, 16)
    for row, content, target in zip(together, rows, targets, strict=True):
        torch.testing.assert_close(row[:target], regulator(content[None], target[None])[0], rtol=1e-5, atol=1e-5)
        assert not row[target:].any()


def test_regulator_refuses_empty_targets() -> None:
    with pytest.raises(ValueError, match="target lengths must be at least 1"):
        LengthRegulator(SMALL.length_regulator)(torch.zeros(2, 3, 24), torch.tensor([4, 0]))


def test_target_frames_follow_the_duration_factor() -> None:
    assert [target_frames(n) for n in (0, 1, 2, 50, 100, 1815)] == [0, 1, 3, 86, 172, 3121]
    assert [target_frames(100, factor) for factor in (0.5, 1.0, 1.5)] == [86, 172, 258]
    assert target_frames(1, 0.3) == 1  # something spoken never becomes nothing
    with pytest.raises(ValueError, match="duration_factor > 0"):
        target_frames(10, 0.0)


def test_padding_teaches_nothing() -> None:
    """Gradients of a padded training batch are the sums of the samples' own gradients."""
    estimator = small_s2mel().cfm.estimator.train()
    lengths = [11, 7]
    x, prompt, mu = torch.randn(2, 10, 11), torch.randn(2, 10, 11), torch.randn(2, 11, 16)
    t, style, goal = torch.tensor([0.2, 0.9]), torch.randn(2, 6), torch.randn(2, 10, 11)

    def gradients(rows: slice, frames: int, valid: Tensor | None) -> list[Tensor]:
        estimator.zero_grad()
        part = (rows, slice(None), slice(frames))
        velocity = estimator(x[part], prompt[part], t[rows], style[rows], mu[rows, :frames], valid)
        error = (velocity - goal[part]).square()
        if valid is not None:
            error = error.masked_fill(torch.arange(frames) >= valid[:, None, None], 0)
        error.sum().backward()
        return [parameter.grad.clone() for parameter in estimator.parameters() if parameter.grad is not None]

    together = gradients(slice(0, 2), 11, torch.tensor(lengths))
    alone = [gradients(slice(b, b + 1), n, None) for b, n in enumerate(lengths)]
    assert len(together) == len(list(estimator.parameters())), "a parameter gets no gradient"
    for got, *each in zip(together, *alone, strict=True):
        torch.testing.assert_close(got, sum(each), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_solver_reports_steps_and_repeats_with_a_seed() -> None:
    model = small_s2mel()
    mu, prompt, style = torch.randn(1, 12, 16), torch.randn(1, 10, 5), torch.randn(1, 6)
    seen: list[tuple[int, int]] = []
    first = model.cfm.solve(
        mu, prompt, style, steps=3, generator=torch.Generator().manual_seed(5), on_step=lambda i, n: seen.append((i, n))
    )
    again = model.cfm.solve(mu, prompt, style, steps=3, generator=torch.Generator().manual_seed(5))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(first, again)
    assert not first[..., :5].any()
    assert first[..., 5:].abs().min() > 0


def test_solver_refuses_what_does_not_fit() -> None:
    cfm = small_s2mel().cfm
    mu, prompt, style = torch.zeros(1, 6, 16), torch.zeros(1, 10, 5), torch.zeros(1, 6)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        cfm.solve(mu, prompt, style, steps=0)
    with pytest.raises(ValueError, match="mu must cover the prompt"):
        cfm.solve(mu[:, :4], prompt, style)
    with pytest.raises(ValueError, match="noise must have shape"):
        cfm.solve(mu, prompt, style, noise=torch.zeros(1, 10, 7))


def test_release_file_fits_the_release_sized_model() -> None:
    manifest = json.loads((TESTS / "manifest" / "s2mel.json").read_text())
    model = build(lambda: S2Mel(S2MelConfig(), gpt_latent_dim=1280))
    file = {key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta") for key, entry in manifest.items()}
    wanted = model.state_dict()
    folded = fold_weight_norm(file)
    assert {key: tuple(folded[key].shape) for key in wanted} == {key: tuple(value.shape) for key, value in wanted.items()}
    load_weights(model, file, unused=S2Mel.UNUSED)  # and what is left over is known to be unused
    written = unfold_weight_norm(model.state_dict(), model.WEIGHT_NORMED)
    assert {key: value.shape for key, value in written.items()} == {key: file[key].shape for key in written}


@pytest.mark.parametrize(
    "key", ["cfm.estimator.transformer.layers.3.skip_in_linear.weight", "length_regulator.model.4.bias", "gpt_layer.1.weight"]
)
def test_missing_key_is_named(key: str) -> None:
    golden = Golden(TESTS / "golden" / "s2mel_gpt_layer.json")
    state = golden.state("s2mel")
    del state[key]
    golden.state = lambda name=None: state  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        seeded_s2mel(golden)


def test_a_norm_over_the_whole_equals_torchs() -> None:
    torch.manual_seed(0)
    norm, h = torch.nn.GroupNorm(1, 6), torch.randn(2, 6, 50) * 3 + 20
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
        torch.testing.assert_close(group_norm_of_all(norm, h), norm(h), rtol=1e-5, atol=1e-4)
