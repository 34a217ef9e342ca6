"""UnifiedVoice: text and prompts to semantic codes, and codes to latents (IndexTTS2, arXiv 2506.21619; after Tortoise, arXiv 2305.07243).

A sequence is ``[conditioning, text, codes]``. Text and codes have learned positions of their own; the conditioning and the GPT have none.

Positions of the codes are a quirk of the release and change every logit: while **generating**, the start code has position 0 and the k-th
code k + 1 (1 is never used); in the **latent pass**, and in training, the k-th code has position k.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts.config import GPTConfig
from indextts.models.conformer import POSITIONS, ConformerEncoder, sinusoid
from indextts.models.gpt2 import GPT2Stack, KVCache, LayerNorm
from indextts.models.perceiver import PerceiverResampler

PLACEHOLDER = 1  # the id that stands for each prefix position where sampling looks at the ids so far


class UnifiedVoice(nn.Module):
    """The language model over codes with its speaker and emotion conditioners.

    ``dropout`` acts in the GPT stack, in training mode only. Key names are those of the release's ``gpt.pth``.
    """

    # Keys of published files that belong to no parameter here: aliases, and the causal masks of old GPT-2 modules.
    UNUSED: ClassVar[tuple[str, ...]] = (r"gpt\.wte\..*", r"inference_model\..*", r"gpt\.h\.\d+\.attn\.(bias|masked_bias)")

    def __init__(self, config: GPTConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        width, speaker, emotion = config.model_dim, config.condition_module, config.emo_condition_module
        self.conditioning_encoder = ConformerEncoder(speaker, config.feature_dim)
        self.perceiver_encoder = PerceiverResampler(
            width,
            speaker.output_size,
            num_latents=config.condition_num_latent,
            heads=speaker.attention_heads,
            dim_head=config.perceiver_dim_head,
            mult=speaker.perceiver_mult,
        )
        self.emo_conditioning_encoder = ConformerEncoder(emotion, config.feature_dim)
        self.emo_perceiver_encoder = PerceiverResampler(
            config.emo_latent_dim,
            emotion.output_size,
            num_latents=1,
            heads=emotion.attention_heads,
            dim_head=config.perceiver_dim_head,
            mult=emotion.perceiver_mult,
        )
        self.emovec_layer = nn.Linear(config.emo_latent_dim, width)
        self.emo_layer = nn.Linear(width, width)
        self.speed_emb = nn.Embedding(2, width)
        self.text_embedding = nn.Embedding(config.number_text_tokens + 1, width)
        self.text_pos_embedding = LearnedPositions(config.max_text_tokens + 2, width, "text tokens")
        self.mel_embedding = nn.Embedding(config.number_mel_codes, width)
        self.mel_pos_embedding = LearnedPositions(config.max_mel_tokens + 3, width, "codes")
        self.gpt = GPT2Stack(width, config.layers, config.heads, dropout)
        self.final_norm = LayerNorm(width)
        self.text_head = nn.Linear(width, config.number_text_tokens + 1)
        self.mel_head = nn.Linear(width, config.number_mel_codes)
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's start values; the conditioners keep those of their layers."""
        for module in (self.speed_emb, self.text_embedding, self.mel_embedding, self.text_head, self.mel_head):
            nn.init.normal_(module.weight, std=0.02)
        for module in (self.text_head, self.mel_head):
            nn.init.zeros_(module.bias)
        for name, weight in self.gpt.named_parameters():
            if name.endswith("c_proj.weight"):  # two residual branches a layer
                nn.init.normal_(weight, std=0.02 / (2 * self.config.layers) ** 0.5)

    @classmethod
    def complete_state(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors without :attr:`UNUSED` keys, and with the sinusoid for each position table that it lacks."""
        unused = re.compile("|".join(cls.UNUSED))
        complete = {key: value for key, value in state.items() if not unused.fullmatch(key)}
        for encoder in ("conditioning_encoder", "emo_conditioning_encoder"):
            table, norm = f"{encoder}.embed.pos_enc.pe", f"{encoder}.after_norm.weight"
            if table not in complete and norm in complete:
                complete[table] = sinusoid(POSITIONS, complete[norm].shape[0])
        return complete

    @property
    def max_codes(self) -> int:
        """Most codes of one sequence; both ways of counting positions stay inside the table."""
        return self.mel_pos_embedding.emb.num_embeddings - 2

    # ------------------------------------------------------------------------------------------------------ conditioning

    def speaker_latents(self, features: Tensor, lengths: Tensor | None = None, *, isolate_padding: bool = False) -> Tensor:
        """Speaker features ``(B, T, feature_dim)``, 50 a second, to latents ``(B, n_latents, D)``.

        ``lengths``: ``(B,)`` frames that count (None: all). ``isolate_padding``: see :meth:`ConformerEncoder.forward`.
        """
        frames, mask = self.conditioning_encoder(features, lengths, isolate_padding=isolate_padding)
        latents: Tensor = self.perceiver_encoder(frames, None if mask is None else mask[:, 0])
        return latents

    def emotion_vector(self, features: Tensor, lengths: Tensor | None = None, *, isolate_padding: bool = False) -> Tensor:
        """Emotion features ``(B, T, feature_dim)`` to vectors ``(B, D)``; arguments as for :meth:`speaker_latents`."""
        frames, mask = self.emo_conditioning_encoder(features, lengths, isolate_padding=isolate_padding)
        perceived = self.emo_perceiver_encoder(frames, None if mask is None else mask[:, 0])
        vector: Tensor = self.emo_layer(self.emovec_layer(perceived[:, 0]))
        return vector

    def merge_emotion(self, speaker_features: Tensor, emotion_features: Tensor, alpha: float) -> Tensor:
        """``base + alpha * (e(emotion) - base)`` with ``base = e(speaker)``: ``(B, D)``."""
        base = self.emotion_vector(speaker_features)
        return base + alpha * (self.emotion_vector(emotion_features) - base)

    def conditioning(self, speaker_latents: Tensor, emotion_vec: Tensor) -> Tensor:
        """Speaker latents ``(B, n_latents, D)`` and emotion vectors ``(B, D)`` to ``(B, n_latents + 2, D)``."""
        speed = self.speed_emb.weight.flip(0).expand(speaker_latents.shape[0], -1, -1)  # row 1, then row 0
        return torch.cat([speaker_latents + emotion_vec[:, None], speed], dim=1)

    # -------------------------------------------------------------------------------------------------------- generation

    def prefix(self, conditioning: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """What generation starts from: embeddings ``(B, P, D)`` and mask ``(B, P + 1)``, with P = C + L + 2.

        ``conditioning``: ``(B, C, D)``, or ``(1, C, D)`` for all rows. ``text_ids``: ``(B, L)``; start and stop ids in a row are
        padding and are dropped; shorter rows are padded on the left with zero vectors, where the mask is false. The mask's last
        column belongs to the start code, which :meth:`prefill` adds. Ids on the CPU spare waits for the device. Errors: ``ValueError``
        for too many text tokens.
        """
        config, rows = self.config, text_ids.shape[0]
        conditioning = conditioning.expand(rows, -1, -1)
        width = conditioning.shape[1] + text_ids.shape[1] + 2
        mask = torch.zeros(rows, width + 1, dtype=torch.bool, device=text_ids.device)
        embeddings = []
        for row, ids in enumerate(text_ids):
            kept = ids[(ids != config.start_text_token) & (ids != config.stop_text_token)]
            framed = self._framed(kept[None], None, config.start_text_token, config.stop_text_token)
            text = self._embed_text(framed)
            vectors = torch.cat([conditioning[row], text[0]])
            embeddings.append(F.pad(vectors, (0, 0, width - vectors.shape[0], 0)))
            mask[row, width - vectors.shape[0] :] = True
        return torch.stack(embeddings), mask.to(conditioning.device, non_blocking=True)

    def placeholder_ids(self, prefix_embeddings: Tensor) -> Tensor:
        """The ids that sampling sees for a prefix ``(B, P, D)``: P ones and the start code, ``(B, P + 1)``."""
        rows, length, _ = prefix_embeddings.shape
        ids = torch.full((rows, length + 1), PLACEHOLDER, dtype=torch.long, device=prefix_embeddings.device)
        ids[:, -1] = self.config.start_mel_token
        return ids

    def prefill(self, prefix_embeddings: Tensor, mask: Tensor | None = None) -> tuple[Tensor, KVCache]:
        """Run the prefix ``(B, P, D)`` and the start code; logits ``(B, V)`` of the first code, float32, and the cache.

        ``mask``: ``(B, P + 1)`` from :meth:`prefix` (None: nothing is padding).
        """
        start = torch.full((prefix_embeddings.shape[0], 1), self.config.start_mel_token, device=prefix_embeddings.device)
        cache = KVCache()
        hidden = self.gpt(torch.cat([prefix_embeddings, self._embed_codes(start, 0)], dim=1), mask, cache)
        return self.logits(hidden[:, -1]), cache

    def decode_step(self, codes: Tensor, step: int, cache: KVCache, mask: Tensor | None = None) -> tuple[Tensor, KVCache]:
        """Feed the ``step``-th code of each row (``(B,)``, the first is step 1); logits ``(B, V)`` of the next code, float32.

        The cache is extended in place and returned. ``mask``: the one given to :meth:`prefill`; codes are never padding.
        """
        if step < 1:
            raise ValueError(f"step counts the codes fed and starts at 1, got {step}")
        if mask is not None:
            mask = F.pad(mask, (0, cache.length + 1 - mask.shape[1]), value=True)
        hidden = self.gpt(self._embed_codes(codes[:, None], step + 1), mask, cache)
        return self.logits(hidden[:, -1]), cache

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``(..., D)`` of the stack to float32 logits over the codes ``(..., V)``."""
        return _head(self.mel_head, self.final_norm(hidden))

    # --------------------------------------------------------------------------------------------- whole sequences at once

    def latents(
        self, conditioning: Tensor, text_ids: Tensor, text_lengths: Tensor | None, codes: Tensor, code_lengths: Tensor | None
    ) -> Tensor:
        """One latent per code: text ``(B, L)`` and codes ``(B, n)`` to ``(B, n, D)``; latent i is the state that predicts code i.

        Ids past a row's ``text_lengths`` become the stop of text, codes past ``code_lengths`` the stop code (lengths ``(B,)``, or None).
        Nothing is masked, so text padding changes a row's latents and code padding does not.
        """
        return self._states(conditioning, text_ids, text_lengths, codes, code_lengths)[1][:, :-2]

    def forward(
        self, conditioning: Tensor, text_ids: Tensor, text_lengths: Tensor | None, codes: Tensor, code_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits for training: text ``(B, L + 2, V_text)`` and codes ``(B, n + 2, V)``; arguments as for :meth:`latents`.

        Position i scores the token at i + 1 of ``[start, tokens, stop]``, so the last position has no target.
        """
        text, code = self._states(conditioning, text_ids, text_lengths, codes, code_lengths)
        return _head(self.text_head, text), _head(self.mel_head, code)

    def _states(
        self, conditioning: Tensor, text_ids: Tensor, text_lengths: Tensor | None, codes: Tensor, code_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Normed hidden states at text ``(B, L + 2, D)`` and codes ``(B, n + 2, D)``."""
        config = self.config
        text = self._embed_text(self._framed(text_ids, text_lengths, config.start_text_token, config.stop_text_token))
        code = self._embed_codes(self._framed(codes, code_lengths, config.start_mel_token, config.stop_mel_token), 0)
        conditioning = conditioning.expand(text.shape[0], -1, -1)
        hidden = self.final_norm(self.gpt(torch.cat([conditioning, text, code], dim=1)))
        return hidden[:, conditioning.shape[1] : -code.shape[1]], hidden[:, -code.shape[1] :]

    @staticmethod
    def _framed(ids: Tensor, lengths: Tensor | None, start: int, stop: int) -> Tensor:
        """``(B, n)`` to ``(B, n + 2)``: start, ids, stop; ids past the lengths become stop."""
        if lengths is not None:
            ids = ids.masked_fill(torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None], stop)
        return F.pad(F.pad(ids, (1, 0), value=start), (0, 1), value=stop)

    def _embed_text(self, ids: Tensor) -> Tensor:
        table, positions = self.text_embedding.weight, self.text_pos_embedding(0, ids.shape[1])
        rows: Tensor = self.text_embedding(ids.to(table.device, non_blocking=table.device.type != "cpu"))
        if table.device != positions.device:  # an engine may leave the table on the CPU, where a text takes few rows of it
            rows = (rows.pin_memory() if positions.device.type == "cuda" else rows).to(positions.device, non_blocking=True)
        return rows + positions

    def _embed_codes(self, codes: Tensor, first_position: int) -> Tensor:
        embedded: Tensor = self.mel_embedding(codes) + self.mel_pos_embedding(first_position, codes.shape[1])
        return embedded


def _head(linear: nn.Linear, states: Tensor) -> Tensor:
    """Logits in float32 or more, whatever the weights' type."""
    logits: Tensor = linear(states.to(linear.weight.dtype))
    return logits.to(states.dtype)


class LearnedPositions(nn.Module):
    """A table of position vectors; ``what`` names in errors what has positions."""

    def __init__(self, rows: int, width: int, what: str) -> None:
        super().__init__()
        self.what = what
        self.emb = nn.Embedding(rows, width)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, first: int, count: int) -> Tensor:
        """Vectors of positions ``first`` to ``first + count - 1``, ``(count, D)``."""
        if first + count > self.emb.num_embeddings:
            raise ValueError(
                f"too many {self.what}: position {first + count - 1} is needed, the model has 0 to {self.emb.num_embeddings - 1}"
            )
        return self.emb.weight[first : first + count]
