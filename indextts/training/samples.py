"""A few sentences from the parts as they are, without the pipeline's audio packages: to hear how training goes."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indextts.engine.generate import generate
from indextts.engine.sampling import SamplingParams
from indextts.models.bigvgan import BigVGAN
from indextts.models.griffin_lim import GriffinLim
from indextts.models.length_regulator import target_frames
from indextts.models.s2mel import S2Mel
from indextts.training.batches import TextIds
from indextts.training.codec import load_codec
from indextts.training.coding import CodedCorpus
from indextts.training.corpus import SAMPLE_RATE
from indextts.training.features import mel_of
from indextts.training.language_model import load_gpt_part
from indextts.training.loop import StageSettings
from indextts.training.parts import load_part, restore
from indextts.training.sizes import SIZES

logger = logging.getLogger(__name__)

TEXTS = (
    "The small voice reads this sentence to you.",
    "My grandmother keeps seven grey cats and a very old piano in the kitchen.",
    "Did you hear the rain on the roof last night?",
    "She sold the yellow boat, packed a suitcase, and moved to the mountains.",
)


@torch.inference_mode()
def render_samples(corpus: CodedCorpus, settings: StageSettings, folder: Path, lexicon: Path | None = None) -> list[Path]:
    """Write per text one file from generated codes, and per prompt one from its own codes (copy synthesis); returns the paths."""
    sizes = SIZES[settings.size]()
    config, device = sizes.config, settings.device
    codec, gpt = load_codec(settings), load_gpt_part(settings)[0]
    s2mel = S2Mel(config.s2mel, config.gpt_latent_dim)
    restore({"s2mel": s2mel}, load_part(settings.parts, "s2mel")[0])
    vocoder: BigVGAN | GriffinLim
    if config.vocoder.has_weights:
        vocoder = BigVGAN(sizes.bigvgan)
        restore({"vocoder": vocoder}, load_part(settings.parts, "vocoder")[0])
    else:
        vocoder = GriffinLim(config.s2mel.preprocess_params.spect_params, SAMPLE_RATE, config.vocoder.iterations)
    s2mel.to(device).eval()
    vocoder.to(device).eval()
    inference = config.inference
    params = SamplingParams(
        top_p=inference.top_p, top_k=inference.top_k, temperature=inference.temperature, num_beams=1,
        repetition_penalty=inference.repetition_penalty, max_mel_tokens=inference.max_mel_tokens,
    )  # fmt: skip
    with torch.no_grad():
        gpt.mel_head.bias[config.gpt.start_mel_token] = -torch.inf  # as in an exported release
    texts, paths = TextIds(lexicon), []
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(1)
    among = (corpus.tokens > 120) & (corpus.tokens < 300)
    for number, text in enumerate(TEXTS):
        prompt = corpus.draw(1, 100, among if among.any() else None)
        p = int(corpus.tokens[prompt[0]])
        zero = np.zeros_like(prompt)
        features, prompt_codes = corpus.features(prompt, zero, p), corpus.codes(prompt, zero, p)
        wave_in = corpus.waves(prompt, zero, int(corpus.lengths[prompt[0]]))
        mel_in, style = mel_of(wave_in), corpus.style_vectors(prompt)
        conditioning = gpt.conditioning(gpt.speaker_latents(features), gpt.emotion_vector(features))
        ids = torch.tensor([texts.ids(text)], device=device)
        prefix, mask = gpt.prefix(conditioning, ids)
        made = generate(gpt, prefix, mask, params, generator=generator)
        codes = made.codes[:, : max(4, int(made.lengths[0]))].clamp(max=config.semantic_codec.codebook_size - 1)  # an early stop too
        latents = gpt.latents(conditioning, ids, None, codes, None).float()

        def speak(
            codes: Tensor, latents: Tensor | None, prompt_codes: Tensor = prompt_codes, mel_in: Tensor = mel_in, style: Tensor = style
        ) -> Tensor:
            content = codec.vq2emb(codes).transpose(1, 2)
            if latents is not None:
                content = content + s2mel.gpt_layer(latents)
            parts = []
            for value, frames in ((codec.vq2emb(prompt_codes).transpose(1, 2), mel_in.shape[-1]), (content, target_frames(codes.shape[1]))):
                parts.append(s2mel.length_regulator(value, torch.tensor([frames], device=device)))
            mel = s2mel.cfm.solve(
                torch.cat(parts, 1),
                mel_in,
                style,
                steps=inference.diffusion_steps,
                guidance=inference.inference_cfg_rate,
                generator=generator,
            )
            sound: Tensor = vocoder(mel[..., mel_in.shape[-1] :])
            return sound[0, 0]

        paths += [
            _write(folder / f"{number}-prompt.wav", wave_in[0]),
            _write(folder / f"{number}-text.wav", speak(codes, latents)),
            _write(folder / f"{number}-copied.wav", speak(prompt_codes, None)),
            _write(folder / f"{number}-vocoded.wav", vocoder(mel_in)[0, 0]),
        ]
    return paths


def _write(path: Path, samples: Tensor) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", "not compressed"))
        file.writeframes((samples.float().clamp(-1, 1) * 32767).to(torch.int16).cpu().numpy().tobytes())
    return path
