"""The sections of :mod:`tests.gpu_trial` that time whole calls."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from indextts.bench import TEXT, made_up_clip
from indextts.recovery import CODES_PER_TEXT_TOKEN

if TYPE_CHECKING:
    from tests.gpu_trial import Trial

Row = dict[str, Any]


def first_sound(trial: Trial) -> Iterator[Row]:
    """Seconds from an engine that is ready to its first sound, cold and warm, streamed. Random weights do not know when a text ends:
    segments have as many codes as the trial's, or as the first one's text takes to say.
    """
    said = min(trial.codes, 8 * CODES_PER_TEXT_TOKEN)
    for beams, most in itertools.product((1, 3), dict.fromkeys((trial.codes, said))):
        for name in ("cold", "warm", "warm again", "warm once more"):
            if name == "cold":
                trial.tts.clear_caches()
            start = time.perf_counter()
            pieces = trial.tts.infer(
                made_up_clip(), f"Good morning, everybody. It is {name}, {beams} by {most}.", stream_return=True, num_beams=beams, seed=1,
                quick_streaming_tokens=8, max_mel_tokens=most,
            )  # fmt: skip
            next(iter(pieces))
            took = time.perf_counter() - start
            for _ in pieces:
                pass
            what = f"{beams} beams, segments of {most} codes, {name}"
            yield {"what": what, "first_sound_s": took, "total_s": time.perf_counter() - start}


def attention(trial: Trial) -> Iterator[Row]:
    """Milliseconds of the 25 steps, and of the GPT's stage of one sentence, with each attention kernel."""
    before = trial.tts.attention
    names = ("auto", "cudnn", "flash", "efficient", "math") if trial.on_gpu else ("auto", "math")
    for name in names:
        trial.tts.set_attention(name)
        for _ in range(3):
            trial.tts.infer_forced(trial.codes, spk_audio_prompt=made_up_clip(), text=TEXT, num_beams=1, seed=1)
        record = trial.tts.last_telemetry
        yield {"what": name, "gpt_s": record.gpt_s, "s2mel_s": record.s2mel_s, "total_s": record.total_s}
    trial.tts.set_attention(before)


def many(trial: Trial) -> Iterator[Row]:
    """A reference voice never heard before, 16 sentences at once, and memory in the low-memory setting."""
    rate, samples = made_up_clip()
    clip = (samples.astype("float32") / 32768, rate)
    with trial.stages.running():
        yield {"what": "new voice of 5 s", "ms": trial.ms(lambda: trial.stages.both_prompts(clip, clip))}
    call = {"spk_audio_prompt": (rate, samples), "text": TEXT, "forced_codes": trial.codes, "seed": 1}
    for count, beams in ((4, 3), (16, 3), (16, 1)) if trial.on_gpu else ((2, 3),):
        trial.tts.batch_size = count
        times = []
        for _ in range(4):
            start = time.perf_counter()
            made = trial.tts.infer_batch([{**call, "num_beams": beams}] * count)
            times.append(time.perf_counter() - start)
        record, audio = trial.tts.last_telemetry, sum(len(wave) / rate for rate, wave in made)
        took = statistics.median(times[1:])
        stages = {name: getattr(record, name) for name in ("gpt_s", "s2mel_s", "bigvgan_s", "peak_vram_mb")}
        yield {"what": f"{count} at once, {beams} beams", "s": took, "audio_per_s": audio / took, **stages}
    trial.tts.batch_size = None
    for low in (False, True):
        trial.tts.low_memory = low
        trial.tts.clear_caches()
        for _ in range(2):
            trial.tts.infer_batch([{**call, "num_beams": 3}])
        record = trial.tts.last_telemetry
        yield {"what": f"low memory {low}", "total_s": record.total_s, "peak_vram_mb": record.peak_vram_mb, "cache_mb": record.cache_mb}
    trial.tts.low_memory = False
