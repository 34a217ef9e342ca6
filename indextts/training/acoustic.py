"""Stage 5: S2Mel. Flow matching of the mel, given codes, another utterance of the speaker as prompt, and its style vector.

Every row is laid out as in inference: the prompt's condition and the target's, each stretched by itself; zeros where the prompt's frames
are in the state; all of prompt, style and conditions dropped together for guidance. Optimal-transport path (arXiv 2210.02747).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from indextts.config import SpectConfig
from indextts.models.gpt import UnifiedVoice
from indextts.models.length_regulator import nearest_index, target_frames
from indextts.models.s2mel import S2Mel
from indextts.training.batches import TextIds
from indextts.training.codec import load_codec
from indextts.training.coding import CodedCorpus
from indextts.training.corpus import SAMPLE_RATE
from indextts.training.features import mel_of, random_curves
from indextts.training.language_model import load_gpt_part
from indextts.training.loop import StageSettings, Trainer, autocast
from indextts.training.sharpness import Sharpness
from indextts.training.sizes import SIZES

logger = logging.getLogger(__name__)

_BATCH_FRAMES = 22_000
_ALTERED = 0.85  # share of rows in a voice that nobody has
_STRANGE = 0.3  # share of rows with another speaker's style vector
# Of these: the largest logarithms of factors on all frequencies and on the formants', and how much and how finely the spectrum is reshaped;
_WARP, _FORMANTS, _COLOUR_DB, _RIPPLES = 0.15, 0.15, 4.5, 10
# how differently one voice's formants are moved, and how much further or less far formants and harmonics may stand out.
_BENT, _BENDS, _RELIEF, _DEPTH = 0.06, 4, 0.25, (-0.35, 0.15)
_DROP = 0.15  # share of rows without conditions
_HOP = 256
_MEL_RATE = SAMPLE_RATE / _HOP
PROMPTS, _TARGETS = (60, 100, 150, 200, 300), (60, 100, 150, 220)  # semantic tokens
_LONG, _LONGEST_OF = 100, 5  # prompts of more tokens are sought among so many utterances, for most are too short
_LATENT_RATE = 2e-4  # least learning rate while the projection learns
_LATENT_TOKENS = 12_000  # of a batch with GPT latents


def train_s2mel(
    corpus: CodedCorpus,
    settings: StageSettings,
    latents_from: Path | None = None,
    lexicon: Path | None = None,
    early: float = 1.0,
    prompts: Sequence[int] = PROMPTS,
    lead: int = 0,
) -> None:
    """Train for the time given and write the part. ``early``: see :func:`flow_loss`; ``prompts``: lengths to choose from, in tokens.

    ``lead``: for so many first steps the length regulator learns alone, by predicting the mel through one linear layer. Such a step costs
    a tenth of the others, and what it learns, which sounds the codes stand for, is the greater part at first.

    At first codes alone decide: the projection of the GPT's latents is zero. As soon as there is a file ``latents_from``, the sign that the
    language model is finished, its latents are added and the projection learns too.
    """
    torch.manual_seed(settings.seed)
    config = SIZES[settings.size]().config
    codec = load_codec(settings)
    s2mel = S2Mel(config.s2mel, config.gpt_latent_dim)
    for parameter in s2mel.gpt_layer[-1].parameters():
        nn.init.zeros_(parameter)
    trainer = Trainer("s2mel", {"s2mel": s2mel}, settings, peak=7e-4, betas=(0.9, 0.98))
    if not trainer.resumed:
        _start_at_mean_mel(s2mel, corpus)

    attentions: list[Any] = [block.attention for block in s2mel.cfm.estimator.transformer.layers]
    sharpness = Sharpness([(attention.wqkv, attention.heads) for attention in attentions])

    def from_codes(content: Tensor, prompt_content: Tensor, mel: Tensor, prompt_mel: Tensor, style: Tensor) -> _Losses:
        velocity = flow_loss(s2mel, content, prompt_content, mel, prompt_mel, style, early)
        penalty, logits = sharpness.penalty()
        return velocity + penalty, {"velocity": velocity, "logits": logits}

    def with_latents(content: Tensor, latents: Tensor, *others: Tensor) -> _Losses:
        return from_codes(content + s2mel.gpt_layer(latents), *others)

    guess = nn.Linear(config.s2mel.length_regulator.channels + config.s2mel.style_encoder.dim, config.s2mel.DiT.in_channels)
    guess.to(settings.device)
    leader = torch.optim.Adam([*s2mel.length_regulator.parameters(), *guess.parameters()], 2e-3)
    done = lead if trainer.resumed else 0
    step, latent_step = trainer.replayed(from_codes), trainer.replayed(with_latents)
    gpt: UnifiedVoice | None = None
    texts = TextIds(lexicon, settings.seed)
    while trainer.running:
        corpus.refresh(2)
        if gpt is None and latents_from is not None and latents_from.exists():
            gpt = load_gpt_part(settings)[0]
            if not any(bool(parameter.any()) for parameter in s2mel.gpt_layer[-1].parameters()):
                trainer.least = _LATENT_RATE
            logger.info("s2mel: GPT latents from step %d on", trainer.steps)
        draw = _whole_utterances if gpt is not None else _pieces
        ids, before, offsets, prompt_offsets, n, p = draw(corpus, settings.batch, prompts)
        frames, prompt_frames = target_frames(n), round(p * _MEL_RATE / 50)
        voices = draw_voices(len(ids), settings.device)
        mel = _mels(corpus, ids, offsets, frames, voices)
        prompt_mel = _mels(corpus, before, prompt_offsets, prompt_frames, voices)
        style = estranged(corpus.style_vectors(before))
        with torch.no_grad():
            content = codec.vq2emb(corpus.codes(ids, offsets, n)).transpose(1, 2)
            prompt_content = codec.vq2emb(corpus.codes(before, prompt_offsets, p)).transpose(1, 2)
            known = _gpt_latents(gpt, corpus, texts, ids, before, n) if gpt is not None else None
        if done < lead:
            done += 1
            _lead_step(s2mel, guess, leader, content, mel, style, trainer)
        elif known is None:
            step(content, prompt_content, mel, prompt_mel, style)
        else:
            latent_step(content, known, prompt_content, mel, prompt_mel, style)
        trainer.save_if_due()
    trainer.save()


def _lead_step(
    s2mel: S2Mel, guess: nn.Linear, leader: torch.optim.Optimizer, content: Tensor, mel: Tensor, style: Tensor, trainer: Trainer
) -> None:
    with trainer.autocast():
        mu = _stretched(s2mel, content, mel.shape[-1])
        guessed = guess(torch.cat([mu, style[:, None].expand(-1, mu.shape[1], -1)], dim=-1))
    loss = (guessed.float().transpose(1, 2) - mel).square().mean()
    leader.zero_grad()
    loss.backward()
    leader.step()
    trainer.note(lead=loss)


def warm_up(settings: StageSettings) -> None:
    """A few steps on random numbers, as :func:`indextts.training.language_model.warm_up`."""
    config = SIZES[settings.size]().config
    s2mel = S2Mel(config.s2mel, config.gpt_latent_dim).to(settings.device)
    for n, p in ((60, 100), (150, 61), (220, 200)):
        rows = max(2, int(_BATCH_FRAMES * settings.batch / (1.72 * (n + p))))
        content, prompt = (torch.randn(rows, count, config.s2mel.length_regulator.in_channels, device=settings.device) for count in (n, p))
        mel, prompt_mel = (torch.randn(rows, config.s2mel.DiT.in_channels, int(1.72 * count), device=settings.device) for count in (n, p))
        style = torch.randn(rows, config.s2mel.style_encoder.dim, device=settings.device)
        with autocast(settings):
            loss = flow_loss(s2mel, content, prompt, mel, prompt_mel, style)
        loss.backward()


def flow_loss(
    s2mel: S2Mel,
    content: Tensor,
    prompt_content: Tensor,
    mel: Tensor,
    prompt_mel: Tensor,
    style: Tensor,
    early: float = 1.0,
) -> Tensor:
    """Mean squared error of the velocity on the target's frames; all rows have the same lengths.

    ``early`` is a power of the times drawn: above 1, early ones come more often. There the mel as a whole is decided, which is what
    a short training has to learn.

    ``content`` (B, n, in_channels) and ``mel`` (B, 80, G) of the targets; ``prompt_content``, ``prompt_mel`` (B, 80, P) and ``style``
    (B, style) of the prompts.
    """
    rows, _, frames = mel.shape
    prompt_frames = prompt_mel.shape[-1]
    device = mel.device
    mu = torch.cat([_stretched(s2mel, prompt_content, prompt_frames), _stretched(s2mel, content, frames)], dim=1)
    kept = (torch.rand(rows, device=device) >= _DROP).float()
    # Uniform in each row's own slice of [0, 1]: the batch covers all times.
    t = (torch.arange(rows, device=device) + torch.rand(rows, device=device)) / rows
    t = t[torch.rand(rows, device=device).argsort()] ** early
    noise = torch.randn_like(mel)
    state = torch.cat([torch.zeros_like(prompt_mel), (1 - t)[:, None, None] * noise + t[:, None, None] * mel], dim=-1)
    prompt = torch.cat([prompt_mel, torch.zeros_like(mel)], dim=-1) * kept[:, None, None]
    velocity = s2mel.cfm.estimator(state, prompt, t, style * kept[:, None], mu * kept[:, None, None])
    return (velocity[..., prompt_frames:].float() - (mel - noise)).square().mean()


def _stretched(s2mel: S2Mel, content: Tensor, frames: int) -> Tensor:
    """The length regulator for rows of one length (B, n, in_channels), without a question to the device."""
    regulator, (rows, sources, _) = s2mel.length_regulator, content.shape
    have, want = (torch.full((rows,), count, device=content.device) for count in (sources, frames))
    projected = regulator.content_in_proj(content)
    index = nearest_index(have, want, frames)[..., None].expand(-1, -1, projected.shape[-1])
    conditions: Tensor = regulator.model(projected.gather(1, index).transpose(1, 2)).transpose(1, 2)
    return conditions


_Losses = tuple[Tensor, dict[str, Tensor]]
_Draw = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], int, int]


def _pieces(corpus: CodedCorpus, batch: float, lengths: Sequence[int]) -> _Draw:
    """Targets, prompts, their offsets, and how many tokens of each: pieces of equal length."""
    n = int(corpus.rng.choice(_TARGETS))
    p = int(corpus.rng.choice(lengths))
    rows = max(2, int(_BATCH_FRAMES * batch / (1.72 * (n + p))))
    ids = corpus.draw(rows, n + 1)
    n = _in_steps(min(n, int(corpus.tokens[ids].min()) - 1))
    prompts = corpus.companions(ids, same_style=False, longest_of=_LONGEST_OF if p > _LONG else 1)
    p = _common_length(corpus, prompts, p)
    return ids, prompts, corpus.offsets(ids, n), corpus.offsets(prompts, p), n, p


def _whole_utterances(corpus: CodedCorpus, batch: float, lengths: Sequence[int]) -> _Draw:
    """Targets from their beginning on, for latents need all that comes before; of nearly equal length."""
    n = int(corpus.rng.choice(_TARGETS))
    p = int(corpus.rng.choice(lengths))
    rows = max(2, int(_LATENT_TOKENS * batch / (n + p)))
    among = corpus.told & (corpus.tokens >= n) & (corpus.tokens < 1.4 * n + 8)
    ids = corpus.draw(rows, n, among if among.any() else None)
    n = _in_steps(min(n, int(corpus.tokens[ids].min()) - 1))
    prompts = corpus.companions(ids, same_style=True, longest_of=_LONGEST_OF if p > _LONG else 1)
    p = _common_length(corpus, prompts, p)
    return ids, prompts, np.zeros_like(ids), corpus.offsets(prompts, p), n, p


def _common_length(corpus: CodedCorpus, prompts: npt.NDArray[np.int64], wanted: int) -> int:
    """``wanted``, or what nine of ten prompts have; the few shorter ones are followed by silence."""
    return max(20, _in_steps(min(wanted, int(np.quantile(corpus.tokens[prompts], 0.1)) - 1)))


def _in_steps(tokens: int) -> int:
    """Rounded down to a multiple of 20 where there is one: recorded steps want few different lengths."""
    return tokens - tokens % 20 or tokens


def _mels(corpus: CodedCorpus, ids: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], frames: int, voices: Voices | None) -> Tensor:
    return mel_of(corpus.waves(ids, offsets, frames * _HOP), *(voices or ()))


class Voices(NamedTuple):
    """Other voices for prompt and target together; 1 for the rows that are kept. See :func:`mel_of`."""

    warps: Tensor  # (B,)
    gains: Tensor  # (B, 513)
    formants: Tensor  # (B, 513)
    relief: Tensor  # (B,)
    depth: Tensor  # (B,)


def draw_voices(rows: int, device: torch.device) -> Voices:
    """Voices that nobody has, for most of the rows.

    Each formant moves by itself, since mouths do not only differ in size. The style vector stays that of the voice as it was, so that
    what is to be copied exactly has to be read from the prompt: a voice that was never trained on has a style vector which is only nearly
    right.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, device=device)

    def curves(spread: float, count: int) -> Tensor:
        return random_curves(rows, SpectConfig().n_fft // 2 + 1, spread, count, device)

    altered = torch.rand(rows, device=device) < _ALTERED
    warps = uniform(-_WARP, _WARP).exp()
    gains = 10 ** (curves(_COLOUR_DB, _RIPPLES) / 20)
    formants = (uniform(-_FORMANTS, _FORMANTS)[:, None] + curves(_BENT, _BENDS)).exp()
    relief, depth = uniform(-_RELIEF, _RELIEF).exp(), uniform(*_DEPTH).exp()
    drawn = (warps, gains, formants, relief, depth)
    return Voices(*(torch.where(altered if values.dim() == 1 else altered[:, None], values, 1.0) for values in drawn))


def estranged(style: Tensor) -> Tensor:
    """Style vectors (B, D), some of which have changed places: that of an unknown voice misleads too, and the prompt is to be believed."""
    strange = torch.rand(len(style), device=style.device) < _STRANGE
    return torch.where(strange[:, None], style.roll(1, dims=0), style)


@torch.no_grad()
def _gpt_latents(
    gpt: UnifiedVoice, corpus: CodedCorpus, texts: TextIds, ids: npt.NDArray[np.int64], prompts: npt.NDArray[np.int64], n: int
) -> Tensor:
    """Latents (B, n, D) of the targets' first n codes, conditioned on the prompts, each row as it is alone."""
    rows = texts.rows(corpus.texts)
    longest = int(corpus.tokens[prompts].max())
    lengths = torch.from_numpy(corpus.tokens[prompts]).to(corpus.device)
    features = corpus.features(prompts, np.zeros_like(prompts), longest)
    conditioning = gpt.conditioning(
        gpt.speaker_latents(features, lengths, isolate_padding=True), gpt.emotion_vector(features, lengths, isolate_padding=True)
    )
    codes = corpus.codes(ids, np.zeros_like(ids), n)
    latents: list[Tensor] = [torch.empty(0)] * len(ids)
    # Text padding would change a row's latents, so rows with texts of one length go together.
    by_length: dict[int, list[int]] = {}
    for row, i in enumerate(ids):
        by_length.setdefault(len(rows[i]), []).append(row)
    for members in by_length.values():
        text = torch.tensor([rows[ids[row]] for row in members], device=corpus.device)
        for row, latent in zip(members, gpt.latents(conditioning[members], text, None, codes[members], None), strict=True):
            latents[row] = latent
    return torch.stack(latents).float()


@torch.no_grad()
def _start_at_mean_mel(s2mel: S2Mel, corpus: CodedCorpus) -> None:
    """The last layer starts from the mean mel, so that training need not travel there."""
    ids = corpus.draw(32, 60)
    mel = _mels(corpus, ids, corpus.offsets(ids, 60), 100, None)
    bias = s2mel.cfm.estimator.conv2.bias
    assert bias is not None
    bias.copy_(mel.mean((0, 2)).to(bias.device))
