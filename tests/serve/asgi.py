"""Calls an ASGI application directly: no sockets, no client library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """Status, headers (names in lower case) and body of a response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


async def ask(app: Any, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, leave: bool = False) -> Answer:
    """One request. ``leave``: close the connection as soon as the body is sent."""
    sent = {"host": "127.0.0.1:8000", **(headers or {})}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()],
    }  # fmt: skip
    pending = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()
    answer = Answer(0, {}, b"")

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop(0)
        if not leave:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    gone.set()
    return answer


def call(app: Any, method: str, path: str, json_body: Any = None, *, body: bytes | None = None, **options: Any) -> Answer:
    """One request, from ordinary code. ``json_body`` is sent as JSON, ``body`` as it is."""
    headers = dict(options.pop("headers", None) or {})
    if json_body is not None:
        body = json.dumps(json_body).encode()
    if body is not None:
        headers.setdefault("content-type", "application/json")
    return asyncio.run(ask(app, method, path, body or b"", headers, **options))
