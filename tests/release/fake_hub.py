"""A Hugging Face hub on this machine: lists repositories with checksums and serves files, in pieces if asked; can misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 20_000  # bytes; from here on a file counts as stored outside git


class FakeHub:
    """``repos``: {id: {name: bytes}}. ``corrupt``: {name: how often to damage it}. ``requests``: (name, Range header) of every fetch."""

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.corrupt: dict[str, int] = {}
        self.cut: dict[str, int] = {}  # {name: bytes after which to drop the connection, once}
        self.ignores_ranges = False
        self.requests: list[tuple[str, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def listing(self, repo_id: str) -> dict[str, Any]:
        """What the hub's API says of a repository."""
        siblings = []
        for name, data in self.repos[repo_id].items():
            entry: dict[str, Any] = {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if len(data) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": repo_id, "modelId": repo_id, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

    def payload(self, name: str, data: bytes) -> bytes:
        """The file's bytes, damaged as often as ``corrupt`` says."""
        if self.corrupt.get(name, 0) < 1:
            return data
        self.corrupt[name] -= 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if path.startswith("/api/models/"):
                    self._send_listing(path.removeprefix("/api/models/"))
                elif path.startswith("/storage/"):
                    self._send_file(path.removeprefix("/storage"))
                else:  # the real hub, too, keeps the bytes elsewhere
                    self.send_response(302)
                    self.send_header("Location", f"{hub.endpoint}/storage{self.path}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def _send_listing(self, repo_id: str) -> None:
                if repo_id not in hub.repos:
                    self.send_error(404)
                    return
                body = json.dumps(hub.listing(repo_id)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _send_file(self, path: str) -> None:
                repo_id, name = path.strip("/").split(f"/resolve/{COMMIT}/", 1)
                wanted = self.headers.get("Range")
                hub.requests.append((name, wanted))
                data = hub.payload(name, hub.repos[repo_id][name])
                start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and not hub.ignores_ranges else 0
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.end_headers()
                end = hub.cut.pop(name, len(data))
                self.wfile.write(data[start:end])

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler
