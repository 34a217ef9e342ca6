"""The stages for several segments at once: codes, latents, mels and waves of a batch, each as the segment alone would get.

Nothing of a batch leaks from one row to another: texts are padded on the left behind a mask, mels on the right with lengths of their own
through regulator, solver and vocoder, and each row draws its random numbers from its own generators. What remains is the rounding of
differently shaped matrix products. The oracle is the pipeline's recipe for one segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from indextts.engine.batching import FRAMES_TOLERANCE, Utterance, group_sentences_by_length, segment_generators
from indextts.engine.decode import PrefixState
from indextts.engine.generate import GeneratedCodes, generate
from indextts.engine.stages import Stages
from indextts.engine.telemetry import SegmentRecord
from indextts.models.length_regulator import target_frames


@dataclass(frozen=True)
class CodedUtterance:
    """An utterance after the GPT: codes (1, n) and one latent per code, (1, n, D) float32; n may be 0."""

    utterance: Utterance
    codes: Tensor
    latents: Tensor
    hit_limit: bool

    @property
    def frames(self) -> int:
        """Mel frames that it becomes."""
        return target_frames(self.codes.shape[1], self.utterance.duration_factor)

    def __len__(self) -> int:
        """Mel frames with those of the prompt: what the solver works on."""
        return self.frames + int(self.utterance.speaker.mel.shape[-1])


def encode_batch(stages: Stages, batch: Sequence[Utterance], on_step: Callable[[int], None] | None = None) -> list[CodedUtterance]:
    """Codes and latents of utterances with the same settings."""
    generated, prefix = _generate(stages, batch, on_step)
    lengths = generated.lengths[: len(batch)].tolist()
    longest, limits = max(lengths), generated.hit_limit.tolist()
    latents = None
    if longest and prefix is not None and stages.decoder is not None:
        latents = stages.decoder.latents(prefix, generated.codes[: len(batch), :longest])
    coded = []
    for row, (utterance, n) in enumerate(zip(batch, lengths, strict=True)):
        codes = generated.codes[row : row + 1, :n]
        if n == 0:
            own = codes.new_zeros(1, 0, stages.gpt.config.model_dim, dtype=torch.float32)
        elif latents is None or _has_marks(stages, utterance.ids):
            own = stages.codes_to_latents(_ids(stages, utterance), utterance.speaker, utterance.emotion, codes)
        else:
            own = latents[row : row + 1, :n]
        coded.append(CodedUtterance(utterance, codes, own, limits[row] and utterance.forced_codes is None))
    return coded


def solve_batch(stages: Stages, batch: Sequence[CodedUtterance], on_step: Callable[[int, int], None] | None = None) -> list[Tensor]:
    """Mels (1, 80, N) of utterances with the same settings, each with at least one code."""
    speakers = [coded.utterance.speaker for coded in batch]
    frames, sources = [coded.frames for coded in batch], [coded.codes.shape[1] for coded in batch]
    codes = pad_sequence([coded.codes[0] for coded in batch], batch_first=True)
    latents = pad_sequence([coded.latents[0] for coded in batch], batch_first=True)
    conditions = stages.s2mel.length_regulator(
        stages.content_of(codes, latents),
        torch.tensor(frames),
        None if len(set(sources)) == 1 else torch.tensor(sources),
    )
    mu = [torch.cat([speaker.condition[0], own[:n]]) for speaker, own, n in zip(speakers, conditions, frames, strict=True)]
    lengths, prompts = [len(row) for row in mu], [speaker.mel.shape[-1] for speaker in speakers]
    longest = max(lengths)
    noise = [
        F.pad(_noise(stages, coded.utterance, coded.utterance.speaker.mel.shape[1], n), (0, longest - n))
        for coded, n in zip(batch, lengths, strict=True)
    ]
    where = "cpu" if stages.solver is not None and not stages.compiled else stages.device  # the fast solver reads them on the host
    mel = stages.solve(
        pad_sequence(mu, batch_first=True),
        torch.cat([F.pad(speaker.mel, (0, max(prompts) - n)) for speaker, n in zip(speakers, prompts, strict=True)]),
        torch.cat([speaker.style for speaker in speakers]),
        steps=batch[0].utterance.diffusion_steps,
        guidance=batch[0].utterance.guidance,
        noise=torch.cat(noise),
        lengths=None if len(batch) == 1 else torch.tensor(lengths, device=where),
        prompt_lengths=None if len(batch) == 1 else torch.tensor(prompts, device=where),
        on_step=on_step,
    )
    return [mel[row : row + 1, :, first:end] for row, (first, end) in enumerate(zip(prompts, lengths, strict=True))]


def vocode_batch(stages: Stages, mels: Sequence[Tensor]) -> list[Tensor]:
    """Waves (1, samples) of mels (1, 80, N)."""
    lengths = [mel.shape[-1] for mel in mels]
    if len(mels) == 1:
        return [stages.mel_to_wave(mels[0])]
    padded = torch.cat([F.pad(mel, (0, max(lengths) - n)) for mel, n in zip(mels, lengths, strict=True)])
    waves = stages.voice(padded, None if len(set(lengths)) == 1 else torch.tensor(lengths, device=stages.device))
    hop = stages.vocoder.hop
    return [wave[:, : hop * n] for wave, n in zip(waves, lengths, strict=True)]


def facts_about(coded: CodedUtterance, mel_frames: int, samples: int, batch: int | None = None) -> SegmentRecord:
    """What an utterance became; ``batch``: which batch it was in, if any."""
    own, n = coded.utterance, coded.codes.shape[1]
    return SegmentRecord(own.index, len(own), n, mel_frames, samples, coded.hit_limit, request=own.request, batch=batch)


def similar(items: Sequence[CodedUtterance], most: int) -> Iterator[list[int]]:
    """Groups of coded utterances, as indices, that waste little of the solver's time on padding."""
    yield from group_sentences_by_length(items, FRAMES_TOLERANCE, most)


def _generate(
    stages: Stages, batch: Sequence[Utterance], on_step: Callable[[int], None] | None
) -> tuple[GeneratedCodes, PrefixState | None]:
    """Codes of the batch and what the decoder knows of its rows.

    Where steps are replayed from graphs, of which every number of rows needs its own, the batch is filled up to a power of two.
    """
    rows, decoder = len(batch), stages.decoder
    if decoder is not None and decoder.use_graphs:
        batch = [*batch, *[batch[-1]] * (2 ** (rows - 1).bit_length() - rows)]
    gpt, params, forced = stages.gpt, batch[0].sampling, batch[0].forced_codes
    stop = gpt.config.stop_text_token
    ids = pad_sequence([torch.tensor(u.ids, dtype=torch.int32) for u in batch], batch_first=True, padding_value=stop)
    generators = [segment_generators(utterance.seed, utterance.index, stages.device)[0] for utterance in batch]
    with stages.gpt_autocast():
        latents, emotion = (torch.cat(rows) for rows in zip(*((u.speaker.latents, u.emotion) for u in batch), strict=True))
        prefix, mask = gpt.prefix(gpt.conditioning(latents, emotion), ids)
        if decoder is None:
            return generate(gpt, prefix, mask, params, generator=generators, on_step=on_step, forced_codes=forced), None
        state = decoder.prefill(prefix, mask)
        codes = decoder.decode(state, params, generator=generators, on_step=on_step, forced_codes=forced)
        return codes, state.rows(0, rows)


def _ids(stages: Stages, utterance: Utterance) -> Tensor:
    return torch.tensor([utterance.ids], dtype=torch.int32, device=stages.device)


def _has_marks(stages: Stages, ids: Sequence[int]) -> bool:
    """Whether a text holds start or stop ids, which a prefix drops and the latent pass keeps."""
    config = stages.gpt.config
    return config.start_text_token in ids or config.stop_text_token in ids


def _noise(stages: Stages, utterance: Utterance, bands: int, frames: int) -> Tensor:
    own = segment_generators(utterance.seed, utterance.index, stages.device)[1]
    return torch.randn(1, bands, frames, device=stages.device, generator=own)
