"""The corpus in codes: every utterance through the frozen encoder, codec and speaker encoder, once, for the stages that follow."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.models.semantic_codec import SemanticCodec
from indextts.training.codec import load_codec
from indextts.training.companions import Groups
from indextts.training.corpus import IGNORED, SAMPLE_RATE, Corpus, _appended
from indextts.training.encoder import load_encoder
from indextts.training.features import semantic_inputs, style_inputs, to_16k
from indextts.training.loop import StageSettings
from indextts.training.make_data import STOP_FILE
from indextts.training.phones import PHONES
from indextts.training.speaker import load_speaker_encoder

logger = logging.getLogger(__name__)

_STYLE_TOKENS = 125  # 2.5 s
_BATCH_SAMPLES = 400 * SAMPLE_RATE  # padded, at once
_TEMPO_UNIT, _PAUSE_UNIT = 0.1, 0.05  # log tokens per phone, and share of the time, that count the same
_UNKNOWN_APART = 1e3


@torch.no_grad()
def code_shards(shards: Path, coded: Path, settings: StageSettings, faithful: bool = False) -> None:
    """Write ``coded/NAME`` for every shard ``NAME`` until the stop file lies in ``shards`` and all are done, or the time is over.

    ``faithful``: see :class:`FaithfulCodes`.
    """
    encoder, _ = load_encoder(settings)
    codec, campplus = load_codec(settings), load_speaker_encoder(settings)
    coded.mkdir(parents=True, exist_ok=True)
    corrected = FaithfulCodes(codec, coded / "owners.npy") if faithful else None
    began = time.monotonic()
    while time.monotonic() - began < settings.seconds:
        last = (shards / STOP_FILE).exists()
        todo = [path for path in sorted(shards.glob("*.npz")) if not (coded / path.name).exists()]
        for path in todo:
            shard = Corpus(shards, settings.device, settings.seed)
            shard.load(path)
            features: list[Tensor | None] = [None] * len(shard)
            codes: list[Tensor | None] = [None] * len(shard)
            for ids in _batches(shard):
                lengths = torch.from_numpy(shard.lengths[ids]).to(settings.device)
                waves = shard.waves(ids, np.zeros_like(ids), int(lengths.max()))
                waves_16k = to_16k(waves)
                inputs, mask = semantic_inputs(waves_16k, (lengths * 320 + 440).div(441, rounding_mode="floor"))
                out = encoder(inputs, mask)
                tokens = torch.from_numpy(shard.tokens[ids]).to(settings.device)
                quantised = codec.quantize(out, tokens)[0]
                if corrected is not None:
                    quantised = corrected(quantised, shard.labels(ids, np.zeros_like(ids), quantised.shape[1]))
                for row, i in enumerate(ids):
                    n = int(shard.tokens[i])
                    features[i], codes[i] = out[row, :n].half().cpu(), quantised[row, :n].to(torch.int16).cpu()
            styles = torch.cat(
                [
                    campplus(style_inputs(to_16k(_looped(shard, ids)))).half().cpu()
                    for ids in np.array_split(np.arange(len(shard)), max(1, len(shard) // 200))
                ]
            )
            unfinished = (coded / path.name).with_suffix(".tmp")
            with unfinished.open("wb") as file:
                np.savez(file, features=torch.cat(_all(features)).numpy(), codes=torch.cat(_all(codes)).numpy(), styles=styles.numpy())
            unfinished.replace(coded / path.name)
        if last and not todo:
            break
        if not todo:
            time.sleep(0.3)
    logger.info("coded %d shards", len(list(coded.glob("*.npz"))))


class FaithfulCodes:
    """Codes of training speech that agree with the phones that were spoken, where these are known.

    A young encoder mishears; what the voice learns from its codes need not. Every code belongs to the phone that it mostly stands for in
    the first batch, and a frame takes the nearest among its phone's codes. In synthesis only the reference clip is coded, as it is heard.
    Whose each code is stays written in the file ``memory``, for shards that are coded later.
    """

    def __init__(self, codec: SemanticCodec, memory: Path) -> None:
        self._memory = memory
        self._projected = torch.empty(0)
        codec.quantizer.first.in_project.register_forward_hook(self._keep)
        self._directions = F.normalize(codec.quantizer.first.codebook.weight, dim=-1)
        self._owners: Tensor | None = None  # phone of each code
        if memory.is_file():
            self._owners = torch.from_numpy(np.load(memory)).to(self._directions.device)

    def _keep(self, module: object, inputs: object, output: Tensor) -> None:
        self._projected = output

    def __call__(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Corrected codes (B, T) of the batch that the codec has just seen; ``labels`` (B, T) are phones or ``IGNORED``."""
        if self._owners is None:
            self._owners = owners_of_codes(codes[labels != IGNORED], labels[labels != IGNORED], len(self._directions))
            np.save(self._memory, self._owners.cpu().numpy())
        scores = F.normalize(self._projected.float().transpose(1, 2), dim=-1) @ self._directions.T
        allowed = self._owners == labels[..., None]
        free = (labels == IGNORED) | ~allowed.any(-1)
        return scores.masked_fill(~(allowed | free[..., None]), -torch.inf).argmax(-1)


def owners_of_codes(codes: Tensor, phones: Tensor, count: int) -> Tensor:
    """Phone (count,) that each code belongs to, given pairs (n,) seen together: its most frequent one.

    A phone that would have no code takes the one that fits it best from a phone with several.
    """
    table = torch.zeros(count, len(PHONES), device=codes.device)
    table.index_put_((codes, phones), torch.ones(len(codes), device=codes.device), accumulate=True)
    owners = table.argmax(1)
    share = table / table.sum(1, keepdim=True).clamp(min=1)
    for phone in table.sum(0).argsort(descending=True).tolist():
        if table[:, phone].sum() == 0 or (owners == phone).any():
            continue
        owned = torch.bincount(owners, minlength=len(PHONES))
        spare = owned[owners] > 1
        owners[int(share[:, phone].masked_fill(~spare, -1).argmax())] = phone
    return owners


def _all(rows: list[Tensor | None]) -> list[Tensor]:
    return [row for row in rows if row is not None]


def _batches(shard: Corpus) -> list[npt.NDArray[np.int64]]:
    """Utterances of similar length together."""
    order = np.argsort(shard.lengths)
    batches: list[npt.NDArray[np.int64]] = []
    current: list[int] = []
    for i in order:
        if current and (len(current) + 1) * int(shard.lengths[i]) > _BATCH_SAMPLES:
            batches.append(np.array(current))
            current = []
        current.append(int(i))
    return [*batches, np.array(current)]


def _looped(shard: Corpus, ids: npt.NDArray[np.int64]) -> Tensor:
    """2.5 s of each utterance; shorter ones repeat."""
    offsets = shard.offsets(ids, _STYLE_TOKENS)
    samples = _STYLE_TOKENS * 441
    waves = shard.waves(ids, offsets, samples)
    lengths = torch.from_numpy(shard.lengths[ids]).to(waves.device)[:, None]
    index = torch.arange(samples, device=waves.device)[None] % lengths.clamp(max=samples)
    return waves.gather(1, index)


class CodedCorpus(Corpus):
    """A corpus of which codes and style vectors are known, and the features unless they are not wanted."""

    def __init__(
        self,
        shards: Path,
        coded: Path,
        device: torch.device,
        seed: int = 0,
        *,
        most_hours: float = math.inf,
        samples: bool = True,
        features: bool = True,
    ) -> None:
        super().__init__(shards, device, seed, most_hours=most_hours, samples=samples)
        self._coded, self._with_features = coded, features
        self._codes = torch.zeros(0, dtype=torch.int16, device=device)
        self._features = torch.zeros(0, dtype=torch.float16, device=device)
        self._width = 1
        self._styles = torch.zeros(0, device=device)
        self._codes_used = self._features_used = 0
        self.voices: dict[int, npt.NDArray[np.int64]] = {}  # utterances of each speaker
        self._groups: dict[str, Groups] = {}

    def _present(self) -> list[Path]:
        return [self.folder / path.name for path in sorted(self._coded.glob("*.npz"))]

    def load(self, path: Path) -> None:
        """One shard with its codes."""
        super().load(path)
        with np.load(self._coded / path.name) as shard:
            codes, styles = (torch.from_numpy(shard[key]) for key in ("codes", "styles"))
            features = torch.from_numpy(shard["features"]) if self._with_features else None
        self._codes, self._codes_used = _appended(self._codes, self._codes_used, codes)
        if features is not None:
            self._width = features.shape[1]
            self._features, self._features_used = _appended(self._features, self._features_used, features.flatten())
        styles = styles.float().to(self.device)
        self._styles = torch.cat([self._styles, styles]) if self._styles.numel() else styles
        order = np.argsort(self.speakers, kind="stable")
        numbers, firsts = np.unique(self.speakers[order], return_index=True)
        self.voices = dict(zip(numbers.tolist(), np.split(order, firsts[1:]), strict=True))
        self._groups = {}

    def codes(self, ids: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], tokens: int) -> Tensor:
        """Codes (B, tokens) from token ``offsets`` on; what lies past an utterance's end is arbitrary."""
        first = torch.from_numpy(self.label_starts[ids] + offsets).to(self.device)
        index = (first[:, None] + torch.arange(tokens, device=self.device)).clamp(max=self._codes_used - 1)
        return self._codes[index].long()

    def features(self, ids: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], tokens: int) -> Tensor:
        """Features (B, tokens, width), likewise."""
        table = self._features[: self._features_used].view(-1, self._width)
        first = torch.from_numpy(self.label_starts[ids] + offsets).to(self.device)
        index = (first[:, None] + torch.arange(tokens, device=self.device)).clamp(max=table.shape[0] - 1)
        return table[index].float()

    def style_vectors(self, ids: npt.NDArray[np.int64]) -> Tensor:
        """Speaker encoder outputs (B, style)."""
        return self._styles[torch.from_numpy(ids).to(self.device)]

    def companions(self, ids: npt.NDArray[np.int64], same_style: bool, longest_of: int = 1) -> npt.NDArray[np.int64]:
        """Another utterance of each one's speaker, if there is one; with ``same_style`` spoken the same way, if there is one.

        ``longest_of``: so many are drawn, and the longest is taken.
        """
        if longest_of > 1:
            drawn = np.stack([self.companions(ids, same_style) for _ in range(longest_of)])
            return drawn[self.tokens[drawn].argmax(0), np.arange(len(ids))]
        found = self._by("speaker").others(ids, self.rng)
        if not same_style:
            return found
        alike = self._by("both")
        return np.where(alike.sizes(ids) > 1, alike.others(ids, self.rng), found)

    def in_the_manner_of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Utterances of anybody that are spoken as each of ``ids`` is."""
        return self._by("style").others(ids, self.rng)

    def in_pace(self, ids: npt.NDArray[np.int64], drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each of ``ids`` (B,) the one of its candidates ``drawn`` (K, B) that is spoken and pauses most nearly as it does.

        Where nothing is known of either, the first.
        """
        apart = np.abs(self.tempo[drawn] - self.tempo[ids]) / _TEMPO_UNIT + np.abs(self.paused[drawn] - self.paused[ids]) / _PAUSE_UNIT
        nearest = np.where(np.isfinite(apart), apart, _UNKNOWN_APART).argmin(0)
        return drawn[nearest, np.arange(len(ids))]

    def _by(self, name: str) -> Groups:
        """Made when asked for, since many shards may come at once."""
        if name not in self._groups:
            keys = {"speaker": self.speakers, "style": self.styles, "both": (self.styles.max() + 1) * self.speakers + self.styles}
            self._groups[name] = Groups(keys[name])
        return self._groups[name]
