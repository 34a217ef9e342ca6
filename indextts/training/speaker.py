"""Stage 3: the speaker encoder, told apart by who speaks (additive angular margin, arXiv 1801.07698)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.models.campplus import CAMPPlus
from indextts.training.corpus import Corpus
from indextts.training.encoder import add_noise
from indextts.training.features import style_inputs, to_16k
from indextts.training.loop import StageSettings, Trainer
from indextts.training.parts import load_part, restore
from indextts.training.sizes import SIZES
from indextts.training.speakers import all_speakers

_MARGIN, _SCALE = 0.2, 24.0
_BATCH = 160
_LENGTHS = (75, 90, 110, 130, 150)  # semantic tokens of a training piece


class Classes(nn.Module):
    """One direction for each speaker."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width) * 0.1)

    def forward(self, style: Tensor) -> Tensor:
        """Cosines (B, classes), in float32 whatever the precision around."""
        with torch.autocast(style.device.type, enabled=False):
            return F.linear(F.normalize(style.float()), F.normalize(self.weight))


def load_speaker_encoder(settings: StageSettings) -> CAMPPlus:
    """The trained speaker encoder, frozen, on the device."""
    campplus = CAMPPlus(SIZES[settings.size]().config.campplus)
    restore({"campplus": campplus}, {k: v for k, v in load_part(settings.parts, "speaker")[0].items() if k.startswith("campplus.")})
    return campplus.to(settings.device).requires_grad_(False).eval()


def train_speaker(corpus: Corpus, settings: StageSettings) -> None:
    """Train for the time given and write the part."""
    torch.manual_seed(settings.seed)
    config = SIZES[settings.size]().config.campplus
    campplus, classes = CAMPPlus(config), Classes(config.embedding_size, len(all_speakers()))
    trainer = Trainer(
        "speaker", {"campplus": campplus, "classes": classes}, settings, peak=2e-3, weight_decay=1e-3, average=0.995, watched=None
    )

    def losses(inputs: Tensor, truth: Tensor, margin: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        cosines = classes(campplus(inputs))
        return angular_loss(cosines, truth, margin), {"accuracy": (cosines.argmax(1) == truth).float().mean()}

    step = trainer.replayed(losses)
    margin = torch.zeros((), device=settings.device)
    while trainer.running:
        corpus.refresh(1)
        tokens = int(corpus.rng.choice(_LENGTHS))
        ids = corpus.draw(max(4, int(_BATCH * settings.batch)), tokens)
        waves = to_16k(corpus.waves(ids, corpus.offsets(ids, tokens), tokens * 441))
        truth = torch.from_numpy(corpus.speakers[ids]).to(settings.device)
        step(style_inputs(add_noise(waves)), truth, margin.fill_(_MARGIN * min(1.0, trainer.steps / 500)))
    trainer.save()


def angular_loss(cosines: Tensor, truth: Tensor, margin: Tensor) -> Tensor:
    """Cross entropy of scaled cosines (B, classes) where the true class's angle is widened by ``margin`` radians."""
    at = truth[:, None]
    cosine = cosines.gather(1, at).clamp(-1 + 1e-5, 1 - 1e-5)
    widened = cosine * margin.cos() - (1 - cosine.square()).sqrt() * margin.sin()
    return F.cross_entropy(_SCALE * cosines.scatter(1, at, widened), truth)
