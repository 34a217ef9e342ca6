"""Parts to a release folder: the layout of IndexTTS-2's files, in 16 bits, as safetensors."""

from __future__ import annotations

import json
import logging
import shutil
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from indextts.config import config_to_dict
from indextts.release.layout import AUXILIARIES, BIGVGAN_GENERATOR, CONFIG_NAME, LEXICON_NAME
from indextts.release.random_release import published_config
from indextts.release.sizes import SystemSizes
from indextts.training.letters import phone_tokenizer
from indextts.training.make_data import SAMPLE_RATE
from indextts.training.parts import load_part, stored_form, under
from indextts.training.sizes import SIZES
from indextts.training.speakers import HELD_OUT_TIMBRES
from indextts.training.synthesisers import Espeak, Flite, RHVoice, Speech

logger = logging.getLogger(__name__)

_NEVER = -1e4  # a logit
# What the reference clips say. Each lasts six seconds or so: with three, voices that training never heard were followed less well.
# Of 15 texts, the one whose clones come near to their sources' tempo in three voices (flite-slt, flite-rms, rhvoice-bdl).
_CLIP_TEXT = "Bring the chairs into the kitchen before it begins to rain. They have been standing under the tree since last week."


def export_release(parts: Path, folder: Path, size: str = "small", lexicon: Path | None = None) -> Path:
    """Write the release ``folder`` from the trained ``parts``; returns it. ``FileNotFoundError`` names a part that is missing.

    ``lexicon``: the one that the GPT was trained with; without it the voice reads every word from its letters.
    """
    sizes = SIZES[size]()
    config = sizes.config
    places = {aux.key: folder / aux.place for aux in AUXILIARIES}
    encoder = under(load_part(parts, "encoder")[0], "encoder")
    gpt = load_part(parts, "gpt")[0]
    # The start code is fed, never meant: a young model must not draw it, for the codec has no such entry.
    gpt["gpt.mel_head.bias"][config.gpt.start_mel_token] = _NEVER
    files: dict[Path, dict[str, Tensor]] = {
        folder / config.w2v_stat: {key: encoder.pop(key) for key in ("mean", "var")},
        places["w2v_bert"] / "model.safetensors": encoder,
        places["semantic_codec"]: under(load_part(parts, "codec")[0], "codec"),
        places["campplus"]: under(load_part(parts, "speaker")[0], "campplus"),
        folder / config.gpt_checkpoint: under(gpt, "gpt"),
        folder / config.s2mel_checkpoint: under(load_part(parts, "s2mel")[0], "s2mel"),
        folder / config.emo_matrix: {"emotion": gpt["matrix.emotion"]},
        folder / config.spk_matrix: {"speaker": gpt["matrix.speaker"]},
    }
    if config.vocoder.has_weights:
        files[places["bigvgan"] / BIGVGAN_GENERATOR] = under(load_part(parts, "vocoder")[0], "vocoder")
    for path, state in files.items():
        _save(state, path)
    (folder / config.dataset.bpe_model).write_bytes(phone_tokenizer())
    if lexicon is not None:
        shutil.copy(lexicon, folder / LEXICON_NAME)
    _save_json(sizes.w2v_bert_config(), places["w2v_bert"] / "config.json")
    if config.vocoder.has_weights:
        _save_json(config_to_dict(sizes.bigvgan), places["bigvgan"] / "config.json")
    (folder / CONFIG_NAME).write_text(_config_text(sizes), encoding="utf-8")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    logger.info("%s: %.1f MB", folder, total / 1e6)
    return folder


def _save(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    path = path.with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: stored_form(f".{key}", value) for key, value in state.items()}, path, metadata={"format": "pt"})


def _save_json(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _config_text(sizes: SystemSizes) -> str:
    return yaml.safe_dump(published_config(sizes.config), sort_keys=False, allow_unicode=True)


def make_clips(folder: Path, synth: Path, unheard: Sequence[Path] = (), only: Sequence[str] = ()) -> list[Path]:
    """Reference clips ``folder/voices/ENGINE-NAME.wav``, 22 050 Hz; returns their paths.

    The recorded voices in the bundle ``synth``, then two kinds that training never heard: an espeak timbre that it leaves out, if the
    bundle has it, and the recordings ``unheard``, named by their files. ``only``: names of those to make (none: all). Error:
    ``ValueError`` for a name that nothing here is called.
    """
    from torchaudio.functional import resample

    speeches: dict[str, Speech] = {}
    flite = Flite(synth)
    speeches |= {f"flite-{voice}": flite.speak(_CLIP_TEXT, voice) for voice in flite.voices()}
    if (synth / "RHVoice").is_dir():
        rhvoice = RHVoice(synth)
        speeches |= {f"rhvoice-{voice}": rhvoice.speak(_CLIP_TEXT, voice) for voice in rhvoice.voices()}
    if (synth / "espeak-ng-data/voices/!v" / HELD_OUT_TIMBRES[0]).exists():
        timbre = f"en-us+{HELD_OUT_TIMBRES[0]}"
        speeches[f"espeak-{timbre}"] = Espeak(synth).speak(_CLIP_TEXT, timbre, 160)
    speeches |= {path.stem: _read_wav(path) for path in unheard}
    unknown = set(only) - set(speeches)
    if unknown:
        raise ValueError(f"no clip is called {', '.join(sorted(unknown))}; there are {', '.join(speeches)}")
    voices = folder / "voices"
    shutil.rmtree(voices, ignore_errors=True)
    voices.mkdir(parents=True)
    paths = []
    for name, speech in speeches.items():
        if only and name not in only:
            continue
        samples = resample(torch.from_numpy(speech.samples.astype(np.float32)), speech.rate, SAMPLE_RATE)
        samples = samples * (0.07 * 32768 / samples.square().mean().sqrt().clamp(min=1.0))
        path = voices / f"{name}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", "not compressed"))
            file.writeframes(samples.clamp(-32767, 32767).to(torch.int16).numpy().tobytes())
        paths.append(path)
    return paths


def _read_wav(path: Path) -> Speech:
    """A 16-bit mono file. ``ValueError`` for another kind."""
    with wave.open(str(path), "rb") as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise ValueError(f"{path} must be a 16-bit mono WAV")
        return Speech(np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate())
