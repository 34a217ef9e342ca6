"""An evaluation from start to end: which voices, which sections, how much of each.

>>> report = evaluate(tts, only=("voices", "digits"), amounts=QUICK)  # doctest: +SKIP
>>> print(report)                                                     # doctest: +SKIP
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts.bench_report import machine
from indextts.evaluate import sections, settings, texts
from indextts.evaluate.needed import needed
from indextts.evaluate.render import Clones
from indextts.evaluate.report import Report
from indextts.evaluate.resources import resources
from indextts.evaluate.sections import Row
from indextts.evaluate.sources import Voice, find_voices, trained_on

if TYPE_CHECKING:
    from indextts.pipeline import IndexTTS2

logger = logging.getLogger(__name__)

SECTIONS = ("voices", "digits", "endings", "joins", "copies", "settings", "emotions", "resources")
_JUDGES = {"voices": ("pocketsphinx", "resemblyzer", "speechmos"), "settings": ("pocketsphinx", "speechmos")}
_JUDGES |= {"digits": ("pocketsphinx",), "endings": ("pocketsphinx",), "copies": ("pocketsphinx", "speechmos")}
_JUDGES |= {"emotions": ("pocketsphinx",)}


@dataclass(frozen=True)
class Amounts:
    """Voices, and texts of each section; ``sources``: sentences of each source voice."""

    voices: int = 8
    sentences: int = 40
    sources: int = 12
    digits: int = 20
    endings: int = 100
    copies: int = 24
    settings: int = 12
    emotions: int = 8


FULL = Amounts()
QUICK = Amounts(voices=4, sentences=3, sources=2, digits=3, endings=6, copies=2, settings=2, emotions=3)


def evaluate(
    tts: IndexTTS2,
    *,
    clips: Sequence[Path] | None = None,
    synth: Sequence[Path] = (),
    unheard: Sequence[str] = (),
    only: Sequence[str] = SECTIONS,
    amounts: Amounts = FULL,
    seed: int = 0,
    tick: Callable[[str], None] = logger.info,
) -> Report:
    """Measure ``tts``, with the same texts, voices and ``seed`` every time.

    ``clips``: reference clips to clone; without them, those that came with the weights, and synthesisers' voices up to the wanted number.
    ``synth``: folders with unpacked bundles of synthesisers, besides the programs installed here. ``unheard``: voices, by name, that the
    weights were not trained on; of a release other than the small voice, that is all of them. ``tick`` hears of each step.

    Errors: ``ValueError`` for an unknown section or no voice at all; ``ImportError`` that names the command where a judge is missing.
    """
    unknown = sorted(set(only) - set(SECTIONS))
    if unknown or not only:
        raise ValueError(f"no section {unknown}; there are {', '.join(SECTIONS)}")
    for module in sorted({judge for section in only for judge in _JUDGES.get(section, ())}):
        needed(module)
    own = tts.release is not None and tts.release.config.name == "small"
    given = list(clips) if clips else (tts.release.voices if tts.release is not None else [])
    voices = find_voices(
        given,
        synth,
        count=max(amounts.voices, len(clips or ())),
        heard=lambda name: own and name not in unheard and trained_on(name),
        clone=not clips,
    )
    clones = Clones(tts, seed)
    began = time.time()
    report = Report(_setup(tts, voices, amounts, seed))
    for section in SECTIONS:
        if section in only:
            tick(section)
            report.sections[section] = _section(section, tts, clones, voices, amounts, tick)
    report.setup["seconds"] = round(time.time() - began)
    return report


def _section(name: str, tts: IndexTTS2, clones: Clones, voices: list[Voice], amounts: Amounts, tick: Callable[[str], None]) -> list[Row]:
    judged = [voice for voice in voices if voice.judged]
    human = [voice for voice in judged if voice.human] or judged
    if name == "voices":
        return sections.voice_rows(clones, voices, texts.CHOICES[: amounts.sentences], amounts.sources, tick)
    if name == "digits":
        return sections.digit_rows(clones, human, amounts.digits, tick)
    if name == "endings":
        return sections.ending_rows(clones, human, amounts.endings, tick)
    if name == "joins":
        return [sections.join_row(clones, human[:4], tick)]
    if name == "copies":
        return settings.copy_rows(tts, clones, human, texts.CHOICES[-amounts.copies :], tick)
    if name == "settings":
        return settings.setting_rows(clones, human[:2], texts.CHOICES[: amounts.settings], tick)
    if name == "emotions":
        return sections.emotion_rows(clones, human[:2], texts.CHOICES[: amounts.emotions], tick)
    found = resources(_engine(tts), "small" if tts.release is None else None, judged[0])
    first, again = found.pop("first"), found.pop("again")
    return [{**found, "first_rtf": first["rtf"], "again_rtf": again["rtf"], "audio_s": first["audio_s"]}]


def _engine(tts: IndexTTS2) -> dict[str, Any]:
    options: dict[str, Any] = {"device": str(tts.device), "precision": tts.precision, "use_accel": tts.use_accel}
    if tts.release is not None:
        options |= {"model_dir": str(tts.release.model_dir), "cfg_path": str(tts.release.cfg_path), "use_qwen_emo": False}
    return options


def _setup(tts: IndexTTS2, voices: Sequence[Voice], amounts: Amounts, seed: int) -> dict[str, Any]:
    inference = tts.cfg.inference
    return {
        "weights": tts.cfg.name if tts.release is not None else "random",
        "device": str(tts.device),
        "precision": tts.precision,
        "beams": inference.num_beams,
        "steps": inference.diffusion_steps,
        "guidance": inference.inference_cfg_rate,
        "seed": seed,
        "voices": [{"name": v.name, "heard": v.heard, "judged": v.judged, "source": v.speak is not None} for v in voices],
        "amounts": asdict(amounts),
        "machine": machine(),
    }
