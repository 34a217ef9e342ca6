"""A speech service for other programs: the widely used ``POST /v1/audio/speech``, on a worker pool.

>>> app = make_app(pool, VoiceFolder("voices"))                     # an ASGI application  # doctest: +SKIP

| path | answers |
|---|---|
| ``POST /v1/audio/speech`` | JSON ``input``, ``voice``, ``response_format`` (mp3, wav, flac, pcm), ``speed``, ``instructions``, ``stream_format``; beyond the API ``seed``, ``emotion`` (8 values), ``emotion_strength`` |
| ``GET /v1/voices`` | names of the voices |
| ``GET /v1/models`` | the one model |
| ``GET /health`` | 200 while a worker is ready, else 503 |
| ``GET /metrics`` | counters, Prometheus' text format |

``stream_format: "audio"`` sends sound as it is made (``pcm`` always does so: 24 kHz, as the API's clients expect), ``"sse"`` as events.
Texts, keys and headers are never logged. Needs the extra: ``pip install 'indextts2-lab[cluster]'``.
"""  # noqa: E501

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from indextts.parallel import PieceStream, PoolFullError, PoolFuture, WorkerDiedError, WorkerPool
from indextts.serve_audio import MEDIA_TYPES, encode, encode_pieces
from indextts.serve_metrics import Metrics
from indextts.serve_request import LARGEST_BODY, LONGEST_TEXT, ServiceError, SpeechRequest, parse
from indextts.serve_voices import VoiceFolder

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
OPEN_PATHS = ("/health",)
BODY_S = 10.0  # to send a body of at most 64 KiB
POLL_S = 0.25  # how soon a client that went away is noticed


class Service:
    """The endpoints."""

    def __init__(
        self,
        pool: WorkerPool,
        voices: VoiceFolder,
        *,
        api_key: str | None = None,
        hosts: tuple[str, ...] | None = LOOPBACK,
        longest_text: int = LONGEST_TEXT,
        timeout_s: float = 300.0,
        most_connections: int = 256,
    ) -> None:
        self.pool, self.voices, self.metrics = pool, voices, Metrics()
        self._key = api_key.encode() if api_key else None
        self._hosts, self._longest_text, self._timeout_s = hosts, longest_text, timeout_s
        self._free = most_connections
        self._threads = ThreadPoolExecutor(most_connections + 4, thread_name_prefix="indextts-serve")

    # ---------------------------------------------------------------------------------------------------------- endpoints

    async def speech(self, request: Request) -> Response:
        """``POST /v1/audio/speech``."""
        from starlette.responses import Response

        begin = time.monotonic()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ServiceError(415, "Content-Type must be application/json")
        asked = parse(await self._body(request), self._longest_text)
        clip = self.voices.get(asked.voice)
        if clip is None:
            raise ServiceError(400, f"there is no voice {asked.voice[:80]!r}; known: {', '.join(self.voices.names()[:50])}", "voice")
        arguments = {**asked.arguments, "spk_audio_prompt": clip, "text": asked.text}
        if asked.stream is not None:
            return await self._streamed(asked, arguments, request, begin)
        future = await self._in_thread(self.pool.submit, arguments)
        rate, samples = await self._result(future, future, request, begin)
        data = await self._in_thread(encode, samples.reshape(-1), rate, asked.kind)
        self.metrics.spoke(time.monotonic() - begin, len(samples) / rate)
        return Response(data, media_type=MEDIA_TYPES[asked.kind])

    async def list_voices(self, _: Request) -> Response:
        """``GET /v1/voices``."""
        names = await self._in_thread(self.voices.names)
        return _json({"object": "list", "voices": names, "data": [{"id": name, "object": "voice", "name": name} for name in names]})

    async def models(self, _: Request) -> Response:
        """``GET /v1/models``."""
        return _json({"object": "list", "data": [{"id": "indextts-2", "object": "model", "created": 0, "owned_by": "indextts"}]})

    async def health(self, _: Request) -> Response:
        """``GET /health``."""
        stats = self.pool.stats()
        return _json(
            {"status": "ok" if stats["ready"] else "unavailable", "workers_ready": stats["ready"], "workers": len(stats["workers"])},
            200 if stats["ready"] else 503,
        )

    async def show_metrics(self, _: Request) -> Response:
        """``GET /metrics``."""
        from starlette.responses import Response

        return Response(self.metrics.text(self.pool.stats()), media_type="text/plain; version=0.0.4")

    # ------------------------------------------------------------------------------------------------------------- around

    def guarded(self, path: str, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """``endpoint`` behind the checks of host and key; every failure is an error object of the API, none a traceback."""

        async def answer(request: Request) -> Response:
            if self._free <= 0:
                response = self._failed(ServiceError(503, "too many connections", kind="server_error"))
            else:
                self._free -= 1
                try:
                    self._admit(request, path)
                    response = await endpoint(request)
                except Exception as error:
                    response = self._failed(error)
                finally:
                    self._free += 1
            self.metrics.answered(path, response.status_code)
            return response

        return answer

    def _admit(self, request: Request, path: str) -> None:
        """Only those who know the key, if there is one; without one only pages and programs that call this host by its own name."""
        if self._hosts is not None:
            host = request.headers.get("host", "")
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if name.lower() not in self._hosts:
                raise ServiceError(403, "this service answers under its own name only")
        if self._key is not None and path not in OPEN_PATHS:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._key):
                raise ServiceError(401, "a valid API key is needed: Authorization: Bearer KEY", kind="authentication_error")

    def _failed(self, error: Exception) -> Response:
        answer = _as_service_error(error)
        if answer.status >= 500 and not isinstance(error, (ServiceError, PoolFullError)):
            logger.error("a request failed: %s", type(error).__name__, exc_info=error)
        headers = {"Retry-After": "5"} if answer.status == 503 else {"WWW-Authenticate": "Bearer"} if answer.status == 401 else None
        return _json(answer.body(), answer.status, headers)

    @staticmethod
    async def _body(request: Request) -> bytes:
        body = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                body.extend(chunk)
                if len(body) > LARGEST_BODY:
                    raise ServiceError(413, f"the body is larger than {LARGEST_BODY // 1024} KiB")

        try:
            await asyncio.wait_for(read(), BODY_S)
        except asyncio.TimeoutError:
            raise ServiceError(408, f"the body did not arrive within {BODY_S:g} s") from None
        return bytes(body)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _result(self, future: Future[Any], work: PoolFuture, request: Request, begin: float) -> Any:
        """The result of ``future``; a client that goes away, or one that waits too long, gives up ``work`` and frees the worker."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
        while not done.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(done.wait(), POLL_S)
                break
            if time.monotonic() - begin > self._timeout_s:
                work.cancel()
                raise ServiceError(504, f"the request took longer than {self._timeout_s:g} s", kind="server_error")
            if await request.is_disconnected():
                work.cancel()
                raise ServiceError(499, "the client closed the connection")
        return future.result()

    async def _streamed(self, asked: SpeechRequest, arguments: dict[str, Any], request: Request, begin: float) -> Response:
        """Headers go out with the first sound, so that whatever fails before it is an ordinary error."""
        from starlette.responses import StreamingResponse

        pieces: PieceStream = await self._in_thread(self.pool.stream, arguments)
        pieces.deadline = begin + self._timeout_s
        rate, counted = self.pool.sample_rate, _Counted(pieces)
        chunks, as_events = encode_pieces(counted, rate, asked.kind), asked.stream == "sse"
        try:
            first = await self._result(self._threads.submit(_next_chunk, chunks, counted), pieces.future, request, begin)
        except BaseException:
            pieces.close()
            raise

        async def send() -> AsyncIterator[bytes]:
            chunk: bytes | None = first
            try:
                while chunk is not None:
                    yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(chunk).decode()}) if as_events else chunk
                    chunk = await self._in_thread(_next_chunk, chunks, None)
                if as_events:
                    yield _event({"type": "speech.audio.done", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}})
                self.metrics.spoke(time.monotonic() - begin, counted.samples / rate)
            except (Exception, CancelledError) as error:
                logger.error("a stream broke off: %s", type(error).__name__)
                if not as_events:
                    raise ConnectionError("the stream broke off") from None
                yield _event({"type": "error", **_as_service_error(error).body()})
            finally:
                pieces.close()

        return StreamingResponse(send(), media_type="text/event-stream" if as_events else MEDIA_TYPES[asked.kind])


class _Counted:
    """Pieces, their samples counted."""

    def __init__(self, pieces: PieceStream) -> None:
        self._pieces, self.samples = pieces, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self._pieces:
            self.samples += len(piece)
            yield piece


def _next_chunk(chunks: Iterator[bytes], until_sound: _Counted | None) -> bytes | None:
    """The next bytes, or None at the end. With ``until_sound`` at least one piece of sound has been made by then."""
    data = b""
    for chunk in chunks:
        data += chunk
        if until_sound is None or until_sound.samples:
            return data
    return data or None


def _as_service_error(error: BaseException) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, PoolFullError):
        return ServiceError(503, "too many requests wait already; try again later", kind="server_error")
    if isinstance(error, (ValueError, TypeError)):
        return ServiceError(400, str(error).removeprefix("request 0: "))
    if isinstance(error, TimeoutError):
        return ServiceError(504, "the request took too long", kind="server_error")
    if isinstance(error, (CancelledError, WorkerDiedError)):
        return ServiceError(503, "the request was given up; try again", kind="server_error")
    if isinstance(error, RuntimeError) and "use_emo_text" in str(error):
        return ServiceError(400, "instructions need the text emotion model, which this server has not", "instructions")
    if isinstance(error, RuntimeError) and "ended every segment" in str(error):
        return ServiceError(422, "the model made no sound of this; another seed or a longer text may help", "input")
    return ServiceError(500, "internal error", kind="server_error")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status, headers)


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def make_app(pool: WorkerPool, voices: VoiceFolder, **options: Any) -> Starlette:
    """The ASGI application. ``options``: of :class:`Service`. Closing the pool is the caller's business."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    service = Service(pool, voices, **options)
    routes = [
        ("/v1/audio/speech", service.speech, "POST"),
        ("/v1/voices", service.list_voices, "GET"),
        ("/v1/models", service.models, "GET"),
        ("/health", service.health, "GET"),
        ("/metrics", service.show_metrics, "GET"),
    ]

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        service.metrics.answered("other", error.status_code)
        return service._failed(ServiceError(error.status_code, str(error.detail)))

    app = Starlette(
        routes=[Route(path, service.guarded(path, endpoint), methods=[verb]) for path, endpoint, verb in routes],
        exception_handlers={HTTPException: refused},
    )
    app.state.service = service
    return app


def check_listening(host: str, api_key: str | None) -> None:
    """Errors: ``ValueError`` for an address that others can reach without a key, or a key that is easily guessed."""
    if host not in LOOPBACK and not api_key:
        raise ValueError(f"{host} can be reached by others: set an API key (environment variable INDEXTTS_API_KEY), or listen on 127.0.0.1")
    if api_key is not None and (len(api_key) < 16 or not api_key.isascii() or not api_key.isprintable() or " " in api_key):
        raise ValueError("the API key must have at least 16 printable ASCII characters and no spaces")


@contextlib.contextmanager
def closing_pool(pool: WorkerPool) -> Iterator[WorkerPool]:
    """Close at the end, giving up what is not finished in 10 s."""
    try:
        yield pool
    finally:
        pool.close(timeout_s=10)
