"""``indextts serve``: the speech service."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEY_VARIABLE = "INDEXTTS_API_KEY"


def add_options(serve: argparse.ArgumentParser) -> None:
    """What ``serve`` takes beside the engine's options."""
    serve.add_argument("--voices", metavar="DIR", required=True, help="folder of reference clips; a voice is called like its file")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s); any other needs an API key")
    serve.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    serve.add_argument("--api-key-file", metavar="FILE", help=f"file with the API key (default: environment variable {KEY_VARIABLE})")
    serve.add_argument("--workers", metavar="N", help="worker processes, or auto: one per GPU (default: one engine in this process)")
    serve.add_argument("--address", metavar="ADDR", help="join a running Ray cluster")
    serve.add_argument("--ray-serve", action="store_true", help="listen through Ray Serve's proxy, as on a cluster")
    serve.add_argument("--max-queue", type=int, default=64, metavar="N", help="requests that may wait (default: %(default)s)")
    serve.add_argument("--max-characters", type=int, default=4096, metavar="N", help="longest text (default: %(default)s)")
    serve.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds a request may take (default: %(default)g)")


def read_key(path: str | None) -> str | None:
    """The API key. Errors: ``ValueError``."""
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return Path(path).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--api-key-file {path!r} cannot be read: {getattr(error, 'strerror', None) or 'not ASCII'}") from None


def serve(arguments: argparse.Namespace, make_engine: Callable[[], Any]) -> int:
    """Listen until interrupted."""
    from indextts.serve import LOOPBACK, check_listening, closing_pool, make_app
    from indextts.serve_voices import VoiceFolder

    key = read_key(arguments.api_key_file)
    check_listening(arguments.host, key)
    if not 1 <= arguments.port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {arguments.port}")
    for name, value in (
        ("--max-queue", arguments.max_queue),
        ("--max-characters", arguments.max_characters),
        ("--timeout", arguments.timeout),
    ):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")
    if arguments.workers not in (None, "auto") and not (arguments.workers.isdigit() and int(arguments.workers) >= 1):
        raise ValueError(f"--workers must be a whole number >= 1 or auto, got {arguments.workers!r}")
    voices = VoiceFolder(arguments.voices)
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError("the service needs an extra: pip install 'indextts2-lab[cluster]'") from error

    workers = int(arguments.workers) if arguments.workers and arguments.workers.isdigit() else arguments.workers
    pool_options = {"num_workers": workers, "engine": make_engine, "max_queue": arguments.max_queue, "timeout_s": arguments.timeout}
    service_options = {
        "api_key": key,
        "hosts": LOOPBACK if arguments.host in LOOPBACK else None,
        "longest_text": arguments.max_characters,
        "timeout_s": arguments.timeout,
    }
    url = f"http://{arguments.host}:{arguments.port}/v1"
    if arguments.ray_serve:
        from indextts import serve_ray

        if workers is None:
            pool_options["num_workers"] = "auto"
        place = {"host": arguments.host, "port": arguments.port, "address": arguments.address}
        serve_ray.deploy(pool_options, str(voices.folder), service_options, **place)
        _say(f"listening on {url} through Ray Serve, {len(voices.names())} voices; Ctrl-C ends it")
        serve_ray.wait_for_signal()
        serve_ray.shut_down()
        return 0

    from indextts.parallel import WorkerPool

    with closing_pool(WorkerPool(**pool_options, address=arguments.address)) as pool:
        app = make_app(pool, voices, **service_options)
        _say(f"listening on {url}, {pool.workers} worker(s), {len(voices.names())} voices; Ctrl-C ends it")
        uvicorn.run(app, **server_options(arguments.host, arguments.port))
    return 0


def server_options(host: str, port: int) -> dict[str, Any]:
    """Settings of the HTTP server: no access log, which would hold clients' addresses, and no web sockets."""
    quiet = {"access_log": False, "log_level": "warning", "server_header": False, "ws": "none", "lifespan": "off"}
    limits = {
        "timeout_keep_alive": 5,
        "limit_concurrency": 512,
        "timeout_graceful_shutdown": 10,
        "h11_max_incomplete_event_size": 16 * 1024,
    }
    return {"host": host.strip("[]"), "port": port, "http": "h11", **quiet, **limits}


def register(parser: argparse.ArgumentParser, make_engine: Callable[[argparse.Namespace], Any]) -> None:
    """Make ``parser`` the ``serve`` command."""
    add_options(parser)
    parser.set_defaults(run=lambda arguments: serve(arguments, functools.partial(make_engine, arguments)))


def _say(text: str) -> None:
    sys.stderr.write(f"indextts: {text}\n")
    sys.stderr.flush()
