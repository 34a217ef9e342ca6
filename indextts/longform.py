"""Books and scripts: thousands of sentences into one file, sentence by sentence, so that a run that was stopped goes on.

>>> tts.infer_long("me.wav", Path("book.txt").read_text(), "book.wav")  # doctest: +SKIP

Every sentence has a seed of its own, made from its text, so a sentence that is changed later is the only one that is rendered again
(as long as the folder of parts is kept). Memory does not grow with the length: finished sentences lie on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts.longform_parts import Part, PartStore, join
from indextts.longform_text import Pauses, Sentence, read_script

if TYPE_CHECKING:
    from indextts.parallel import WorkerPool
    from indextts.pipeline import IndexTTS2

__all__ = ["LongResult", "Pauses", "infer_long"]
logger = logging.getLogger(__name__)
NO_SOUND = "ended every segment at once"
OTHER_SEEDS = 3
NOT_ALLOWED = ("output_path", "stream_return", "text", "spk_audio_prompt", "progress", "seed")


@dataclass(frozen=True)
class LongResult:
    """What a long rendering came to: sentences spoken, of these made in this run and found from earlier ones, seconds."""

    path: Path
    sentences: int
    made: int
    found: int
    skipped: int
    audio_s: float
    total_s: float


@dataclass(frozen=True)
class _Job:
    """A sentence with all that decides its sound."""

    sentence: Sentence
    key: str
    request: dict[str, Any]


def infer_long(
    tts: IndexTTS2,
    voice: Any,
    text: str,
    output_path: str | os.PathLike[str],
    *,
    voices: Mapping[str, Any] | None = None,
    pauses: Pauses | None = None,
    seed: int = 0,
    batch_size: int = 1,
    work_dir: str | os.PathLike[str] | None = None,
    keep_parts: bool = False,
    pool: WorkerPool | None = None,
    progress: Callable[[float, str], None] | None = None,
    **arguments: Any,
) -> LongResult:
    """Speak a long ``text`` into ``output_path`` (.wav or .flac); run again after a crash, it goes on where it was.

    ``voice`` speaks everything but lines that begin with a name of ``voices`` and a colon (see :mod:`indextts.longform_text` for the format
    of scripts); it may be None if every line has a name. ``pauses``: silences by punctuation. ``seed``: of the whole; the same one, the
    same file, bit by bit, however often the run was stopped. ``batch_size``: sentences rendered together; batches of more than one are
    made again whole after a stop. ``work_dir``: the folder of finished sentences, ``OUTPUT.parts`` by default, removed at the end unless
    ``keep_parts``. ``pool``: workers that render in place of ``tts``, with weights and settings like its own. ``progress(fraction,
    message)``: an exception in it stops the run. Other arguments are those of ``infer``. Sentences without anything to pronounce
    become silence.

    Errors: ``ValueError``, ``TypeError``, ``FileNotFoundError`` for bad input, before work starts; ``RuntimeError`` if another run works
    on the same output; ``OSError`` if the disk is full, with the finished sentences kept.
    """
    from indextts.request import check_output

    begin = time.perf_counter()
    check_output(output_path)
    path = Path(output_path).expanduser()
    if path.suffix.lower() not in (".wav", ".flac"):
        raise ValueError(f"output_path {output_path} must end in .wav or .flac")
    wrong = sorted(set(arguments).intersection(NOT_ALLOWED))
    if wrong:
        raise TypeError(f"infer_long has no argument {wrong[0]}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
    if not isinstance(text, str):
        raise TypeError(f"text must be str, got {type(text).__name__}")
    sentences = read_script(text, voices or (), pauses)
    jobs, skipped = _plan(tts, voice, voices or {}, sentences, arguments, seed, batch_size)
    with PartStore(Path(work_dir) if work_dir is not None else path.with_name(path.name + ".parts")) as store:
        made = _render(tts, pool, jobs, store, batch_size, progress)
        pieces = _assembly(jobs, sentences, store, tts.sample_rate)
        samples = join(store, pieces, path, tts.sample_rate)
        if not keep_parts:
            store.remove()
    if progress is not None:
        progress(1.0, "done")
    count = len(jobs)
    return LongResult(path, count, made, count - made, skipped, samples / tts.sample_rate, time.perf_counter() - begin)


def _plan(
    tts: IndexTTS2,
    voice: Any,
    voices: Mapping[str, Any],
    sentences: list[Sentence],
    arguments: dict[str, Any],
    seed: int,
    batch_size: int,
) -> tuple[dict[int, _Job], int]:
    """The sentences to render by index, all of them checked, and how many hold nothing to pronounce."""
    clips = _clips(voice, voices, {sentence.speaker: sentence.line for sentence in reversed(sentences) if sentence.text})
    common = _identity(tts, arguments)
    emotion = _emotion_key(arguments)
    seen: Counter[str] = Counter()
    jobs: dict[int, _Job] = {}
    skipped = 0
    for index, sentence in enumerate(sentences):
        if not sentence.text:
            continue
        if not _can_be_spoken(tts, sentence.text):
            skipped += 1
            logger.info("line %d holds nothing to pronounce: %r", sentence.line, sentence.text[:60])
            continue
        key, clip = clips[sentence.speaker]
        content = json.dumps([sentence.text, key, emotion, seed])
        seen[content] += 1  # the same words again may sound otherwise
        digest = hashlib.sha256(json.dumps([content, seen[content], common]).encode()).hexdigest()
        own_seed = int(hashlib.sha256(f"{content}{seen[content]}".encode()).hexdigest()[:8], 16)
        request = {**arguments, "text": sentence.text, "spk_audio_prompt": clip, "seed": own_seed}
        jobs[index] = _Job(sentence, digest[:40], request)
    if not jobs:
        raise ValueError("nothing in this text can be pronounced")
    tts._bound_request(next(iter(jobs.values())).request)  # the settings, as infer would check them
    if batch_size > 1:
        jobs = _regrouped(jobs, batch_size)
    return jobs, skipped


def _can_be_spoken(tts: IndexTTS2, text: str) -> bool:
    with tts._text_lock:
        try:
            return bool(tts.frontend.segments(text, on_unknown="ignore"))
        except ValueError:
            return False


def _regrouped(jobs: dict[int, _Job], batch_size: int) -> dict[int, _Job]:
    """What is rendered together may differ in the last bit from what is rendered alone, so the key covers the whole batch."""
    groups = _groups(list(jobs.items()), batch_size)
    result: dict[int, _Job] = {}
    for group in groups:
        together = "".join(job.key for _, job in group)
        for position, (index, job) in enumerate(group):
            result[index] = _Job(job.sentence, hashlib.sha256(f"{together}{position}".encode()).hexdigest()[:40], job.request)
    return result


def _groups(items: list[Any], size: int) -> list[list[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def _clips(voice: Any, voices: Mapping[str, Any], lines: Mapping[str | None, int]) -> dict[str | None, tuple[str, Any]]:
    """The decoded clip of everyone who speaks, with the key of its content. ``lines``: where each first speaks."""
    from indextts.audio import content_key, load_audio

    clips: dict[str | None, tuple[str, Any]] = {}
    for speaker, line in lines.items():
        source = voice if speaker is None else voices[speaker]
        if source is None:
            raise ValueError(
                f"line {line} names no voice, and there is none for such lines; name one (--voice), or begin the line with a name"
            )
        samples, rate = load_audio(source, role="voice" if speaker is None else f"voice of {speaker}")
        clips[speaker] = (content_key(samples, rate), (rate, samples))
    return clips


def _identity(tts: IndexTTS2, arguments: dict[str, Any]) -> list[Any]:
    """What else decides the sound: weights, settings, arguments."""
    weights = hashlib.sha256()
    for name in ("_source_gpt", "s2mel", "vocoder", "semantic_codec", "campplus"):
        state = getattr(tts._stages, name).state_dict()
        for key in sorted(state)[:: max(1, len(state) // 8)]:
            weights.update(key.encode() + state[key].detach().flatten()[:64].float().cpu().numpy().tobytes())
    plain = {name: value for name, value in sorted(arguments.items()) if name != "emo_audio_prompt"}
    return [weights.hexdigest(), tts.device.type, tts.precision, tts.use_accel, repr(plain)]


def _emotion_key(arguments: Mapping[str, Any]) -> str:
    from indextts.audio import content_key, load_audio

    source = arguments.get("emo_audio_prompt")
    return "" if source is None else content_key(*load_audio(source, sample_rate=arguments.get("sample_rate"), role="emo_audio_prompt"))


def _render(
    tts: IndexTTS2,
    pool: WorkerPool | None,
    jobs: dict[int, _Job],
    store: PartStore,
    batch_size: int,
    progress: Callable[[float, str], None] | None,
) -> int:
    """Make what is missing; how many sentences that were."""
    groups = [group for group in _groups(list(jobs.values()), batch_size) if any(store.get(job.key) is None for job in group)]
    missing = [job for group in groups for job in group]
    pace = _Pace(len(jobs), sum(len(job.request["text"]) for job in jobs.values()), missing, progress)
    results: Iterator[Any]
    if pool is None:
        results, render = _one_by_one(tts, groups), lambda request: tts.infer_batch([request])[0]
    else:
        results, render = pool.map((job.request for job in missing), on_error="return"), lambda request: pool.submit(request).result()
    for job, result in zip(missing, results, strict=True):
        _, samples = _once_more(render, job, result) if isinstance(result, Exception) else result
        store.put(job.key, samples.reshape(-1))
        pace.done(job)
    return len(missing)


def _one_by_one(tts: IndexTTS2, groups: Iterable[list[_Job]]) -> Iterator[Any]:
    for group in groups:
        try:
            yield from tts.infer_batch([job.request for job in group])
        except RuntimeError as error:
            if len(group) == 1:
                yield error
            else:  # whichever it was, alone they are told apart
                yield from _one_by_one(tts, [[job] for job in group])


def _once_more(render: Callable[[dict[str, Any]], Any], job: _Job, error: Exception) -> Any:
    """Now and then the model ends at once for one seed; a book must not fail for that. The other seeds are always the same ones."""
    for attempt in range(1, OTHER_SEEDS + 1):
        if not (isinstance(error, RuntimeError) and NO_SOUND in str(error)):
            break
        try:
            return render({**job.request, "seed": job.request["seed"] + attempt})
        except RuntimeError as another:
            error = another
    if isinstance(error, RuntimeError):
        raise RuntimeError(f"line {job.sentence.line}: {error} ({job.sentence.text[:60]!r})") from error
    raise error


class _Pace:
    """Progress and the time that is left, by the characters spoken in this run."""

    def __init__(self, total: int, characters: int, missing: list[_Job], progress: Callable[[float, str], None] | None) -> None:
        self._total, self._characters, self._progress = total, characters, progress
        self._left = sum(len(job.request["text"]) for job in missing)
        self._todo = self._left
        self._finished = total - len(missing)
        self._begin = time.monotonic()
        if progress is not None and missing:
            progress(1 - self._left / characters, f"sentence {self._finished + 1} of {total}")

    def done(self, job: _Job) -> None:
        self._left -= len(job.request["text"])
        self._finished += 1
        if self._progress is not None:
            seconds = (time.monotonic() - self._begin) * self._left / max(1, self._todo - self._left)
            left = f", {duration(seconds)} left" if self._left else ""
            self._progress(0.99 * (1 - self._left / self._characters), f"sentence {self._finished} of {self._total}{left}")


def duration(seconds: float) -> str:
    """``"45 s"``, ``"12 min"``, ``"3 h 20 min"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _assembly(jobs: dict[int, _Job], sentences: list[Sentence], store: PartStore, sample_rate: int) -> list[Part | int]:
    """Parts and silences (in samples) in order; no silence after the last word."""
    pieces: list[Part | int] = []
    last = max(jobs)
    for index, sentence in enumerate(sentences[: last + 1]):
        if index in jobs:
            part = store.get(jobs[index].key)
            if part is None:
                raise OSError(f"a finished sentence in {store.folder} has vanished; run again")
            pieces.append(part)
        if index != last:
            pieces.append(sentence.pause_ms * sample_rate // 1000)
    return pieces
