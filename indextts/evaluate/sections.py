"""The parts of an evaluation: each takes clones and voices and returns plain rows, numbers by name. NaN: nothing to measure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from indextts.evaluate import likeness, texts
from indextts.evaluate.prosody import prosody
from indextts.evaluate.render import Clip, Clones
from indextts.evaluate.sound import buzz, clicks, speech_s, spoken_s
from indextts.evaluate.sources import Voice
from indextts.evaluate.words import error_rate, recogniser, spoken_words

Row = dict[str, Any]
Tick = Callable[[str], None]  # told what was just done

EMOTIONS = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")
NAN = math.nan
_LENGTH_OFF = 0.25  # of the source's
# Least changes that a listener may notice; roughly, and the same units as the differences below.
AUDIBLE = {"pitch_hz": 0.5, "melody_semitones": 0.5, "words_per_s": 4.0, "loudness_db": 1.0, "tilt_db_per_octave": 0.3}


def voice_rows(clones: Clones, voices: Sequence[Voice], sentences: Sequence[str], source_sentences: int, tick: Tick) -> list[Row]:
    """For each judged voice its clone and its source: word errors, one of 40, whose voice, similarity, DNSMOS."""
    references = {voice.name: _reference(clones, voice) for voice in voices}
    rows = []
    for voice in voices:
        if not voice.judged:
            continue
        for kind, most in (("clone", len(sentences)), ("source", source_sentences)):
            makers: dict[str, Callable[[str], Clip | None]] = {
                "clone": lambda text, voice=voice: clones.clone(voice, text),  # type: ignore[misc]
                "source": lambda text, voice=voice: clones.source(voice, text),  # type: ignore[misc]
            }
            clips = [(text, clip) for text in sentences[:most] if (clip := makers[kind](text)) is not None]
            if clips:
                row: Row = {"voice": voice.name, "kind": kind, "heard": voice.heard, "human": voice.human}
                rows.append(row | judged(clips) | _whose(clips, voice.name, references))
                tick(f"{voice.name}, {kind}: WER {100 * rows[-1]['wer']:.0f} %")
    return rows


def judged(clips: Sequence[tuple[str, Clip]]) -> Row:
    """Words, cleanliness and buzz of (text, clip) pairs; the choice of 40 where all texts are among them."""
    judge = recogniser()
    pairs = [(text, judge.transcribe(*clip.sound)) for text, clip in clips]
    row: Row = {"sentences": len(clips), "words": sum(len(spoken_words(text)) for text, _ in clips), "wer": error_rate(pairs)}
    if all(text in texts.CHOICES for text, _ in clips):
        hits = [judge.choose(*clip.sound, texts.CHOICES) == " ".join(spoken_words(text)) for text, clip in clips]
        row["choice"] = float(np.mean(hits))
    row["dnsmos"] = float(np.mean([likeness.dnsmos(*clip.sound) for _, clip in clips]))
    row["buzz"] = float(np.mean([buzz(*clip.sound) for _, clip in clips]))
    return row


def _whose(clips: Sequence[tuple[str, Clip]], name: str, references: dict[str, likeness.Embedding]) -> Row:
    vectors = [likeness.embed(*clip.sound) for _, clip in clips]
    own = [likeness.nearest(vector, references) == name for vector in vectors]
    row: Row = {"similarity": float(np.mean([likeness.similarity(vector, references[name]) for vector in vectors]))}
    if len(references) > 1:
        row |= {"own": float(np.mean(own)), "among": len(references)}
    return row


def _reference(clones: Clones, voice: Voice) -> likeness.Embedding:
    """The voice by its clip, and by two more sentences where its source can speak them."""
    more = [clip for text in texts.SENTENCES[-2:] if (clip := clones.source(voice, text)) is not None]
    return likeness.average([likeness.embed(*voice.prompt), *(likeness.embed(*clip.sound) for clip in more)])


def digit_rows(clones: Clones, voices: Sequence[Voice], count: int, tick: Tick) -> list[Row]:
    """Strings of six digits, heard through a grammar of digits; the voices take turns."""
    rows = []
    for kind, make in (("clone", clones.clone), ("source", clones.source)):
        pairs = []
        for text, voice in zip(texts.digit_strings(count), _turns(voices), strict=False):
            clip = make(voice, f"{text.capitalize()}.")
            if clip is not None:
                pairs.append((text, recogniser().digits(*clip.sound)))
        if pairs:
            share = error_rate(pairs)
            rows.append({"kind": kind, "strings": len(pairs), "digits_wer": share})
            tick(f"digits, {kind}: {100 * share:.0f} %")
    return rows


def ending_rows(clones: Clones, voices: Sequence[Voice], count: int, tick: Tick) -> list[Row]:
    """Whether the voice stops when the text ends, for ``count`` texts; the voices take turns. ``length``: of the source's.

    ``spoken``: likewise, pauses left out on both sides, for some programs pause where the text has no comma.
    """
    lists: dict[str, list[tuple[int, float, float, bool, str]]] = {"clone": [], "source": []}
    for text, voice in zip(texts.SENTENCES[:count], _turns(voices), strict=False):
        source = clones.source(voice, text)
        for kind, clip in (("clone", clones.clone(voice, text)), ("source", source)):
            if clip is not None:
                length, spoken = (
                    measure(*clip.sound) / measure(*source.sound) if source is not None else NAN for measure in (speech_s, spoken_s)
                )
                lists[kind].append((recogniser().ending(*clip.sound, text), length, spoken, clip.hit_limit, voice.name))
        tick("endings")
    rows = []
    for kind, found in lists.items():
        if found:
            endings, lengths, speeches, limits, names = (np.array(column) for column in zip(*found, strict=True))
            known, known_spoken = (x[np.isfinite(x)] for x in (lengths, speeches))
            off = Counter(names[np.abs(lengths - 1) > _LENGTH_OFF].tolist()).most_common()
            rows.append(
                {
                    "kind": kind,
                    "texts": len(found),
                    "run_on": int((endings > 0).sum()),
                    "cut_off": int((endings < 0).sum()),
                    "hit_limit": int(limits.sum()),
                    "mean_length": float(known.mean()) if known.size else NAN,
                    "length_off": int((np.abs(known - 1) > _LENGTH_OFF).sum()) if known.size else None,
                    "mean_spoken": float(known_spoken.mean()) if known.size else NAN,
                    "spoken_off": int((np.abs(known_spoken - 1) > _LENGTH_OFF).sum()) if known.size else None,
                    "off_in": ", ".join(f"{name} {count}" for name, count in off) or "-",
                }
            )
    return rows


def join_row(clones: Clones, voices: Sequence[Voice], tick: Tick) -> Row:
    """Clicks where segments meet, with no pause between them and with the usual one."""
    joins = found = 0
    for voice in voices:
        for pause_ms in (0, 200):
            # Segments as short as the text allows, so that there are joins.
            clip = clones.clone(voice, texts.PARAGRAPH, interval_silence=pause_ms, max_text_tokens_per_segment=60)
            if clip.record is None:
                continue
            edges, at, pause = [], 0, int(clip.rate * pause_ms / 1000)
            for segment in clip.record.segments:
                edges += [at, at + segment.samples] if pause else [at]
                at += segment.samples + pause
            inner = [edge for edge in edges if 0 < edge < len(clip.samples)]
            joins += len(inner)
            found += clicks(*clip.sound, inner)
        tick("joins")
    return {"joins": joins, "clicks": found}


def emotion_rows(clones: Clones, voices: Sequence[Voice], sentences: Sequence[str], tick: Tick) -> list[Row]:
    """How each of the eight directions, at full strength, changes the manner of the same sentences; ``clear`` where it shows.

    Neutral first, in its own units; then differences: pitch in semitones, rate and melody in %, loudness in dB, tilt in dB per octave.
    """
    texts_and_voices = [(text, voice) for voice in voices for text in sentences]
    neutral = [prosody(*clones.clone(voice, text).sound, text) for text, voice in texts_and_voices]
    row: Row = {"emotion": "neutral (absolute)", "wer": _wer(clones, texts_and_voices, None)}
    rows = [row | {name: float(np.nanmean([getattr(p, name) for p in neutral])) for name in neutral[0].to_dict() if name != "voiced"}]
    for index, emotion in enumerate(EMOTIONS):
        vector = tuple(float(i == index) for i in range(8))
        spoken = [prosody(*clones.clone(voice, text, emo_vector=vector).sound, text) for text, voice in texts_and_voices]
        row = {"emotion": emotion, "wer": _wer(clones, texts_and_voices, vector)}
        changes = {
            "pitch_hz": [12 * math.log2(a.pitch_hz / b.pitch_hz) for a, b in zip(spoken, neutral, strict=True)],
            "melody_semitones": [a.melody_semitones - b.melody_semitones for a, b in zip(spoken, neutral, strict=True)],
            "words_per_s": [100 * (a.words_per_s / b.words_per_s - 1) for a, b in zip(spoken, neutral, strict=True)],
            "loudness_db": [a.loudness_db - b.loudness_db for a, b in zip(spoken, neutral, strict=True)],
            "tilt_db_per_octave": [a.tilt_db_per_octave - b.tilt_db_per_octave for a, b in zip(spoken, neutral, strict=True)],
        }
        rows.append(row | {name: _change(values, AUDIBLE[name]) for name, values in changes.items()})
        tick(f"emotion {emotion}")
    return rows


def _change(values: list[float], audible: float) -> Row:
    """Mean difference, and whether it is audible and more than two standard errors from none (paired, by sentence)."""
    known = np.array([value for value in values if math.isfinite(value)])
    if known.size < 2:
        return {"mean": float(known.mean()) if known.size else NAN, "clear": False}
    error = known.std(ddof=1) / math.sqrt(known.size)
    return {"mean": float(known.mean()), "clear": bool(abs(known.mean()) > max(audible, 2 * error))}


def _wer(clones: Clones, texts_and_voices: list[tuple[str, Voice]], vector: tuple[float, ...] | None) -> float:
    arguments = {} if vector is None else {"emo_vector": vector}
    return error_rate([(text, recogniser().transcribe(*clones.clone(voice, text, **arguments).sound)) for text, voice in texts_and_voices])


def _turns(voices: Sequence[Voice]) -> Iterator[Voice]:
    while True:
        yield from voices
