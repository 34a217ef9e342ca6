"""A short call of ``infer``, for tests that look at what changes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from indextts import IndexTTS2
from indextts.bench import made_up_clip

TEXT = "The river ran past the old mill. We counted one, two, three! Nobody knew why?"
SHORT: dict[str, Any] = {"max_mel_tokens": 14, "diffusion_steps": 2, "seed": 5}
VOICE = made_up_clip(2.0)


def speak(tts: IndexTTS2, **changes: Any) -> np.ndarray:
    return tts.infer(**{"spk_audio_prompt": VOICE, "text": "Hello there.", **SHORT, **changes})[1]
