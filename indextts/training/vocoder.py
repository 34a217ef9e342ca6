"""Stage 6: the vocoder. First spectra alone (mel and several resolutions), later also discriminators (BigVGAN, arXiv 2206.04658)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.models.bigvgan import BigVGAN
from indextts.training.centring import Centring
from indextts.training.corpus import Corpus
from indextts.training.discriminators import Discriminators, feature_loss, fooling_loss, judge_loss, judged
from indextts.training.features import mel_of, random_curves
from indextts.training.loop import StageSettings, Trainer, autocast
from indextts.training.replay import Replay
from indextts.training.sizes import SIZES
from indextts.training.speed import fuse_activations

_BATCH = 20
_FRAMES = 64  # of a piece
_MEL_WEIGHT, _SPECTRUM_WEIGHT, _EDGE_WEIGHT = 15.0, 1.0, 20.0
# With these, mel, fooling and features weigh 37 : 1 : 2 (BigVGAN: 45 : 1 : 2). A run with 1.0 and 2.0, and with
# higher rates, sounded as clean (DNSMOS) but followed the mel less, and strangers were taken for others.
_FOOLING_WEIGHT, _FEATURE_WEIGHT = 0.4, 0.8
_ALONE = 0.2  # share of the planned time before the discriminators come in; a vocoder that goes on meets them at once
_RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
_HOP = 256
_MARGIN = 3  # frames at each end that the reflection of the mel spoils
_SPARE, _FADE = 256, 160  # samples at each end that are cut away after a piece was altered, and that fade before
_SPEEDS = (0.84, 0.89, 0.94, 1.0, 1.0, 1.06, 1.12, 1.19)
_COLOURED, _COLOUR_DB, _RIPPLES = 0.6, 4.5, 10  # share of the rows, and how much and how finely their spectrum is reshaped
_LOUDEST = 0.95
_JUDGED = 8192  # samples of each piece that the judges hear in one step (as in HiFi-GAN, arXiv 2010.05646)
_SURGE = 2.0  # times its usual length that a tensor's gradient may have
_QUIET = 0.1  # how much of the mel comes in at first
_EDGE = 64  # samples at each end, where padding would otherwise leave a step that clicks between segments


def train_vocoder(corpus: Corpus, settings: StageSettings) -> None:
    """Train for the time given and write the parts ``vocoder`` and, once they are in use, ``discriminator``."""
    vocoder, trainer = _begun(corpus, settings)
    judges = Discriminators(2 if settings.size == "miniature" else 32)
    fuse_activations(vocoder, settings.device)
    opponent = Trainer(
        "discriminator", {"judges": judges}, settings, peak=3e-4, betas=(0.8, 0.99), weight_decay=0.0, clip=5.0, surge=_SURGE,
        watched=None, setback=0.8,
    )  # fmt: skip
    opponent.follow(trainer)

    def generate(wave: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with trainer.autocast():
            made = vocoder.unclamped(roughened(mel_of(wave)))
        made = made.squeeze(1).float()
        return made, {**spectral_losses(made, wave), "fooling": made.new_zeros(()), "features": made.new_zeros(())}

    def alone(wave: Tensor) -> dict[str, Tensor]:
        _, losses = generate(wave)
        loss = _MEL_WEIGHT * losses["mel"] + _SPECTRUM_WEIGHT * losses["spectrum"] + _EDGE_WEIGHT * losses["edges"]
        trainer.update(loss)
        return _detached(loss=loss, **losses)

    def against_judges(wave: Tensor) -> dict[str, Tensor]:
        made, losses = generate(wave)
        with opponent.autocast():
            heard, made_heard = one_cut(_JUDGED, wave, made)
            truth, made_up = judged(judges, heard, made_heard.detach())
            doubt = judge_loss(truth, made_up)
        opponent.update(doubt)
        judges.requires_grad_(False)
        with opponent.autocast():
            opinion = judges(made_heard)
            losses["fooling"], losses["features"] = fooling_loss(opinion), feature_loss(truth, opinion)
        loss = _MEL_WEIGHT * losses["mel"] + _SPECTRUM_WEIGHT * losses["spectrum"] + _EDGE_WEIGHT * losses["edges"]
        loss = loss + _FOOLING_WEIGHT * losses["fooling"] + _FEATURE_WEIGHT * losses["features"]
        trainer.update(loss)
        judges.requires_grad_(True)
        return _detached(loss=loss, **losses, doubt=doubt)

    first, second = (Replay(step, settings.device, enabled=settings.replay) for step in (alone, against_judges))
    while trainer.running:
        corpus.refresh(1)
        wave = pieces(corpus, max(2, int(_BATCH * settings.batch)))
        trainer.before_update()
        if trainer.resumed or trainer.progress > _ALONE:
            opponent.before_update()
            values = second(wave)
            opponent.after_update({"loss": values.pop("doubt")})
        else:
            values = first(wave)
        trainer.after_update(values)
        if trainer.save_if_due() and opponent.steps:
            opponent.save()
    trainer.save()
    if opponent.steps:
        opponent.save()


def _begun(corpus: Corpus, settings: StageSettings) -> tuple[BigVGAN, Trainer]:
    torch.manual_seed(settings.seed)
    corpus.refresh(1)
    mean = usual_mel(corpus)
    vocoder = quiet(BigVGAN(SIZES[settings.size]().bigvgan), mean.cpu())
    trainer = Trainer(
        "vocoder", {"vocoder": vocoder}, settings, peak=3e-4, betas=(0.8, 0.99), weight_decay=0.0, average=0.997, clip=5.0, surge=_SURGE,
        watched="mel", patience=3, setback=0.8,
    )  # fmt: skip
    trainer.centred.append(Centring(vocoder.conv_pre, mean))
    return vocoder, trainer


def one_cut(samples: int, *waves: Tensor) -> tuple[Tensor, ...]:
    """The same random ``samples`` of all ``waves`` (B, n); every row begins somewhere else."""
    rows, n = waves[0].shape
    if n <= samples:
        return waves
    first = torch.randint(0, n - samples + 1, (rows, 1), device=waves[0].device)
    index = first + torch.arange(samples, device=first.device)
    return tuple(wave.gather(1, index) for wave in waves)


def _detached(**values: Tensor) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in values.items()}


def usual_mel(corpus: Corpus) -> Tensor:
    """Mean log-mel of each band (80,) over some pieces."""
    return torch.stack([mel_of(pieces(corpus, 8)).mean((0, 2)) for _ in range(8)]).mean(0)


def quiet(vocoder: BigVGAN, mean: Tensor) -> BigVGAN:
    """A fresh ``vocoder`` that starts where its activations are nearly straight lines; returns it. ``mean`` (80,) of its input.

    Log-mels are large numbers (6 on average), and x + sin(ax)^2 / b turns several times over such a range: what a wave's phase should be is
    lost in the first stage and gradients point anywhere. Of three runs one came out of that within 150 steps, one after 2,500, and one
    never did (mel 0.70 instead of 0.35 after 20,000 steps), by luck of the seed alone.
    """
    with torch.no_grad():
        for x in vocoder.conv_pre.parameters():
            x.mul_(_QUIET)
    Centring(vocoder.conv_pre, mean).start()
    return vocoder


def warm_up(settings: StageSettings) -> None:
    """A few steps on random numbers, as :func:`indextts.training.language_model.warm_up`."""
    vocoder = BigVGAN(SIZES[settings.size]().bigvgan).to(settings.device)
    fuse_activations(vocoder, settings.device)
    rows = max(2, int(_BATCH * settings.batch))
    for _ in range(2):
        with autocast(settings):
            made = vocoder.unclamped(torch.randn(rows, 80, _FRAMES, device=settings.device))
        made.float().square().mean().backward()


def pieces(corpus: Corpus, count: int) -> Tensor:
    """Random waves (B, n), in voices that nobody has: at another speed, which moves pitch and formants, and with another spectrum.

    A vocoder that has heard only the corpus's voices makes a stranger sound like one of them, even where the mel is the stranger's.
    """
    ids = corpus.draw(count, 30)
    offsets = (corpus.rng.random(count) * (corpus.tokens[ids] - 22)).clip(0).astype("int64")
    samples = _FRAMES * _HOP + 2 * _SPARE
    speed = float(corpus.rng.choice(_SPEEDS))
    gains = random_curves(count, samples // 2 + 1, _COLOUR_DB, _RIPPLES, corpus.device)
    gains = gains * (torch.rand(count, 1, device=corpus.device) < _COLOURED)
    waves = altered(corpus.waves(ids, offsets, round(samples * speed)), samples, 10 ** (gains / 20))[:, _SPARE:-_SPARE]
    return waves / (waves.abs().amax(1, keepdim=True) / _LOUDEST).clamp(min=1.0)


def altered(waves: Tensor, samples: int, gains: Tensor) -> Tensor:
    """Waves (B, m) played in the time of ``samples``, with the magnitudes of its frequencies times ``gains`` (B, samples // 2 + 1).

    By the Fourier transform of the whole piece, which takes it for periodic: the ends fade out and are not to be used.
    """
    fade = torch.hann_window(2 * _FADE + 1, periodic=False, device=waves.device)[1:]
    ends = torch.cat([fade[:_FADE], waves.new_ones(waves.shape[1] - 2 * _FADE), fade[_FADE - 1 : -1]])
    spectrum = torch.fft.rfft(waves.float() * ends)
    bins = samples // 2 + 1
    spectrum = F.pad(torch.view_as_real(spectrum), (0, 0, 0, max(0, bins - spectrum.shape[1])))[:, :bins]
    return torch.fft.irfft(torch.view_as_complex(spectrum * gains[..., None]), n=samples) * (samples / waves.shape[1])


def roughened(mel: Tensor) -> Tensor:
    """A little noise in half of the rows: generated mels are never as clean as measured ones."""
    strength = torch.rand(mel.shape[0], 1, 1, device=mel.device) * 0.12 * (torch.rand(mel.shape[0], 1, 1, device=mel.device) < 0.5)
    return mel + strength * torch.randn_like(mel)


def spectral_losses(made: Tensor, wave: Tensor) -> dict[str, Tensor]:
    """Mean absolute difference of log-mels; spectral convergence plus log-magnitude difference over three resolutions; of the ends."""
    inner = slice(_MARGIN, -_MARGIN)
    losses = {"mel": F.l1_loss(mel_of(made)[..., inner], mel_of(wave)[..., inner])}
    total = made.new_zeros(())
    for size, hop in _RESOLUTIONS:
        window = torch.hann_window(size, device=wave.device)
        a, b = (
            torch.view_as_real(torch.stft(x, size, hop, window=window, return_complex=True)).square().sum(-1).add(1e-7).sqrt()
            for x in (made, wave)
        )
        total = total + (a - b).norm() / b.norm().clamp(min=1e-3) + F.l1_loss(a.log(), b.log())
    losses["spectrum"] = total / len(_RESOLUTIONS)
    losses["edges"] = F.l1_loss(made[..., :_EDGE], wave[..., :_EDGE]) + F.l1_loss(made[..., -_EDGE:], wave[..., -_EDGE:])
    return losses
