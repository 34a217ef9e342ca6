"""A tiny random S2Mel, utterances for it, and the plain solver's answers: what the tests of the fast solver share."""

from __future__ import annotations

import torch
from torch import Tensor

from indextts.config import DiTConfig, LengthRegulatorConfig, PreprocessConfig, S2MelConfig, SpectConfig, StyleConfig, WaveNetConfig
from indextts.engine.solver import FastSolver, Savings
from indextts.models.s2mel import S2Mel

CPU = torch.device("cpu")
MEL, STYLE, CONTENT = 10, 6, 16
UNEQUAL = [(60, 25), (33, 3), (47, 30), (31, 31), (60, 0)]  # frames and prompt frames of a batch


def random_s2mel(depth: int = 5, kernel: int = 5, layers: int = 3) -> S2Mel:
    """A tiny model in which every part matters, the adaptive layers too."""
    torch.manual_seed(0)
    config = S2MelConfig(
        preprocess_params=PreprocessConfig(spect_params=SpectConfig(n_mels=MEL)),
        style_encoder=StyleConfig(dim=STYLE),
        length_regulator=LengthRegulatorConfig(channels=CONTENT, in_channels=24),
        DiT=DiTConfig(hidden_dim=32, num_heads=2, depth=depth, in_channels=MEL, content_dim=CONTENT),
        wavenet=WaveNetConfig(hidden_dim=32, num_layers=layers, kernel_size=kernel),
        gpt_layer_dims=(12, 8),
    )
    model = S2Mel(config, gpt_latent_dim=20).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def utterance(frames: int, prompt: int, seed: int = 1, batch: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "mu": torch.randn(batch, frames, CONTENT),
        "prompt_mel": torch.randn(batch, MEL, prompt),
        "style": torch.randn(batch, STYLE),
        "noise": torch.randn(batch, MEL, frames),
    }


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Utterances side by side, the padding filled with noise: what lies there must not matter."""
    torch.manual_seed(2)
    batch = {}
    for name, axis in (("mu", 0), ("prompt_mel", 1), ("noise", 1)):
        longest = max(row[name].shape[axis + 1] for row in rows)
        filled = torch.randn([len(rows), *[longest if i == axis else n for i, n in enumerate(rows[0][name].shape[1:])]])
        for into, row in zip(filled, rows, strict=True):
            into.narrow(axis, 0, row[name].shape[axis + 1]).copy_(row[name][0])
        batch[name] = filled
    batch["style"] = torch.cat([row["style"] for row in rows])
    batch["lengths"] = torch.tensor([row["mu"].shape[1] for row in rows])
    batch["prompt_lengths"] = torch.tensor([row["prompt_mel"].shape[2] for row in rows])
    return batch


@torch.inference_mode()
def plain(model: S2Mel, inputs: dict[str, Tensor], steps: int = 4, guidance: float = 0.7) -> Tensor:
    return model.cfm.solve(**inputs, steps=steps, guidance=guidance)


def fast(model: S2Mel, **options: object) -> FastSolver:
    return FastSolver(model, CPU, **{"use_graphs": False, "savings": Savings(), **options})  # type: ignore[arg-type]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
