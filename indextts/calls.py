"""The ways to call an engine: checked arguments in, arrays, files or streams out. The recipe itself is in ``indextts.pipeline``."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from indextts.audio import pcm16, write_wav
from indextts.engine.telemetry import Telemetry
from indextts.engine.worker import Job, ProgressCallback
from indextts.rendering import Rendering, named
from indextts.request import ALIASES, Request, build_request

if TYPE_CHECKING:
    from indextts.emotion_text import EmotionClassifier
    from indextts.longform import LongResult
    from indextts.text import TextFrontend

logger = logging.getLogger(__name__)


class Calls(Rendering):
    """What ``IndexTTS2`` adds around its recipe (``_render``) to make calls of it."""

    frontend: TextFrontend
    emotion_classifier: EmotionClassifier | None
    gr_progress: Any
    _text_lock: threading.Lock
    infer: Callable[..., Any]

    def infer_generator(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The release's generator form: the pieces with ``stream_return=True``, else the one result."""
        result = self.infer(*args, **kwargs)
        if inspect.isgenerator(result):
            yield from result
        else:
            yield result

    def infer_batch(self, requests: Sequence[Mapping[str, Any]], *, progress: ProgressCallback | None = None) -> list[Any]:
        """Render several requests (dicts of :meth:`infer`'s arguments) together; all are checked before the first starts.

        Returns, in order, what :meth:`infer` would return for each: a request's own ``seed`` gives the same sound in any company. Segments
        are rendered ``batch_size`` at a time; those that differ in generation arguments, steps or guidance are not rendered together.
        Errors: those of :meth:`infer`, with the request's index; no file is written then.
        """
        if isinstance(requests, Mapping):
            raise TypeError("requests must be a list of dicts of infer's arguments, got one dict")
        checked = []
        for index, given in enumerate(requests):
            try:
                if not isinstance(given, Mapping):
                    raise TypeError(f"a request is a dict of infer's arguments, got {type(given).__name__}")
                if given.get("stream_return"):
                    raise ValueError("stream_return is for single calls of infer")
                checked.append(self._bound_request(given))
            except (ValueError, TypeError, RuntimeError, OSError) as error:
                raise named(error, index) from error
        if not checked:
            return []
        rendered = self._worker.call(lambda job: self._render_many(checked, job), self._progress_to(progress))
        return [self._finish(request, wave, record) for request, (wave, record) in zip(checked, rendered, strict=True)]

    def infer_long(self, voice: Any, text: str, output_path: Any, **options: Any) -> LongResult:
        """Speak a book or a script into one file, going on where a run before stopped: see :func:`indextts.longform.infer_long`."""
        from indextts.longform import infer_long

        return infer_long(self, voice, text, output_path, **options)  # type: ignore[arg-type]

    def infer_forced(self, codes: int, **arguments: Any) -> Any:
        """:meth:`infer` with exactly ``codes`` codes in every segment, the stop code ruled out: for measuring."""
        return self._run(self._bound_request({**arguments, "forced_codes": codes}), arguments.get("progress"))

    def _bound_request(self, given: Mapping[str, Any]) -> Request:
        """A request from a dict of infer's arguments; ``forced_codes`` besides, for measuring: see :meth:`infer_forced`."""
        given = dict(given)
        codes = given.pop("forced_codes", None)
        if codes is not None and not 1 <= codes <= self.cfg.gpt.max_mel_tokens:
            raise ValueError(f"codes must be between 1 and {self.cfg.gpt.max_mel_tokens}, got {codes}")
        bound = inspect.signature(self.infer).bind(**given)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        generation = arguments.pop("generation_kwargs")
        return dataclasses.replace(self._request(arguments, generation), forced_codes=codes)

    def _request(self, arguments: dict[str, Any], generation: dict[str, Any]) -> Request:
        for old, new in ALIASES.items():
            if old in generation:
                arguments[new] = generation.pop(old)
        if arguments["verbose"]:
            logger.info("text: %s", arguments["text"])
        with self._text_lock:  # the grammar's automata are not known to be safe for several threads
            request = build_request(self.frontend, self.cfg, arguments, generation)
        if request.emo_text is not None and self.emotion_classifier is None:
            raise RuntimeError(
                "use_emo_text needs the text emotion model: construct IndexTTS2 with use_qwen_emo=True and fetch the model with "
                "`indextts download --emotion-text`"
            )
        return request

    def _run(self, request: Request, progress: ProgressCallback | None) -> Any:
        wave, record = self._worker.call(lambda job: self._render_whole(request, job), self._progress_to(progress))
        return self._finish(request, wave, record)

    def _finish(self, request: Request, wave: Tensor, record: Telemetry) -> Any:
        """Say what went short, then return or write the result (in the caller's thread)."""
        self._warn_about(request, record)
        samples = pcm16(32767 * wave)
        if request.output_path is None:
            return self.sample_rate, samples.reshape(-1, 1)
        write_wav(request.output_path, samples, self.sample_rate)
        return request.output_path

    def _streamed(self, request: Request, progress: ProgressCallback | None) -> Iterator[Tensor]:
        pieces, records = [], []

        def work(job: Job) -> None:
            records.append(self._render_stream(request, job, job.put))

        for piece in self._worker.stream(work, progress):
            if request.output_path is not None:
                pieces.append(piece)
            yield piece
        if pieces:
            self._finish(request, torch.cat(pieces, dim=1), records[0])
        else:
            self._warn_about(request, records[0])

    @staticmethod
    def _warn_about(request: Request, record: Telemetry) -> None:
        empty = [segment.index + 1 for segment in record.segments if segment.samples == 0]
        if empty:
            warnings.warn(f"no sound for segment {empty} of {len(record.segments)}: the model stopped before its first code", stacklevel=4)
        if any(segment.hit_limit for segment in record.segments):
            warnings.warn(
                f"generation was stopped at max_mel_tokens={request.sampling.max_mel_tokens} codes, so speech may be cut off; "
                "raise max_mel_tokens or lower max_text_tokens_per_segment",
                RuntimeWarning,
                stacklevel=4,
            )

    def _progress_to(self, progress: ProgressCallback | None) -> ProgressCallback | None:
        if self.gr_progress is None:
            return progress

        def both(fraction: float, message: str) -> None:
            self.gr_progress(fraction, desc=message)
            if progress is not None:
                progress(fraction, message)

        return both

    def _render_whole(self, request: Request, job: Job) -> tuple[Tensor, Telemetry]:
        if len(request.segments) > 1 and self.batch_size > 1:
            return self._render_many([request], job)[0]
        pieces: list[Tensor] = []
        record = self._render(request, job, pieces.append)
        return torch.cat(pieces, dim=1), record
