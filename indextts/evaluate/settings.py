"""The same sentences under other settings: beams, Euler steps, guidance, precision; and copies of the source beside the clone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from indextts.evaluate.copies import COPIES, copies
from indextts.evaluate.render import Clip, Clones
from indextts.evaluate.sections import Row, Tick, judged
from indextts.evaluate.sources import Voice

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

BEAMS = (1, 3)
STEPS = (25, 15, 10, 8, 6)
GUIDANCE = (0.4, 0.7)


def setting_rows(clones: Clones, voices: Sequence[Voice], sentences: Sequence[str], tick: Tick) -> list[Row]:
    """One setting after the other away from the weights' own defaults; the engine is left as it was."""
    tts, rows = clones.tts, []
    variants: list[tuple[str, dict[str, Any]]] = [
        ("defaults", {}),
        *((f"{beams} beam{'s' * (beams > 1)}", {"num_beams": beams}) for beams in BEAMS),
        *((f"{steps} steps", {"diffusion_steps": steps}) for steps in STEPS),
        ("no guidance", {"inference_cfg_rate": 0.0}),
        *((f"guidance {rate}", {"inference_cfg_rate": rate}) for rate in GUIDANCE),
    ]
    for name, arguments in variants:
        rows.append({"setting": name, "precision": tts.precision} | _measured(clones, voices, sentences, arguments))
        tick(f"{name}: WER {100 * rows[-1]['wer']:.0f} %")
    before = tts.precision
    try:
        for precision in ("fp32", "bf16"):
            if precision != before:
                clones.forget()
                tts.set_precision(precision)
                rows.append({"setting": precision, "precision": precision} | _measured(clones, voices, sentences, {}))
                tick(f"{precision}: WER {100 * rows[-1]['wer']:.0f} %")
    finally:
        clones.forget()
        tts.set_precision(before)
    return rows


def _measured(clones: Clones, voices: Sequence[Voice], sentences: Sequence[str], arguments: dict[str, Any]) -> Row:
    clips = [(text, clones.clone(voice, text, **arguments)) for voice in voices for text in sentences]
    records = [clip.record for _, clip in clips if clip.record is not None]
    audio_s = sum(record.audio_s for record in records)
    speed = sum(record.total_s for record in records) / audio_s if audio_s else float("nan")
    return judged(clips) | {"rtf": speed}


def copy_rows(tts: IndexTTS2, clones: Clones, voices: Sequence[Voice], sentences: Sequence[str], tick: Tick) -> list[Row]:
    """Word errors and DNSMOS of the source, its copies, and the clone, for the voices that have a source."""
    collected: dict[str, list[tuple[str, Clip]]] = {name: [] for name in ("source", *COPIES, "clone")}
    speaking = [voice for voice in voices if voice.speak is not None]
    for i, text in enumerate(sentences if speaking else ()):
        voice = speaking[i % len(speaking)]
        source = clones.source(voice, text)
        if source is None:
            continue
        parts = {"source": source, **copies(tts, source.sound, text, voice.prompt, clones.seed), "clone": clones.clone(voice, text)}
        for name, clip in parts.items():
            collected[name].append((text, clip))
        tick("copies")
    return [{"what": name} | judged(clips) for name, clips in collected.items() if clips]
