"""The speech service behind Ray Serve, for a cluster: its proxy listens, one replica holds the worker pool.

Tried on one machine with CPU workers; a cluster is untried.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from typing import Any


def build_app(pool_options: dict[str, Any], voices: str, service_options: dict[str, Any]) -> Any:
    """Called in the replica: the pool and the application on it."""
    from indextts.parallel import WorkerPool
    from indextts.serve import make_app
    from indextts.serve_voices import VoiceFolder

    folder = VoiceFolder(voices)
    return make_app(WorkerPool(**pool_options), folder, **service_options)


def deploy(
    pool_options: dict[str, Any],
    voices: str,
    service_options: dict[str, Any],
    *,
    host: str,
    port: int,
    address: str | None = None,
    ray_options: dict[str, Any] | None = None,
    most_connections: int = 256,
) -> None:
    """Start Ray (or join the cluster at ``address``) and deploy; returns when the service answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    if not ray.is_initialized():
        options: dict[str, Any] = {"log_to_driver": False}
        if address is None and not os.environ.get("RAY_ADDRESS"):  # Ray's own way to name a cluster
            # Without an address Ray would join whatever cluster this machine happens to run. It listens no more than it must.
            address, options = "local", {**options, "include_dashboard": False}
        ray.init(address=address, **{**options, **(ray_options or {})})
    serve.start(http_options={"host": host, "port": port})
    # The key travels to the replica as an argument, not as an environment variable that Ray would show.
    build = functools.partial(build_app, pool_options, voices, service_options)
    replica = serve.ingress(_named(build))()
    deployment = serve.deployment(
        name="indextts",
        num_replicas=1,
        max_ongoing_requests=most_connections,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )
    serve.run(deployment(replica).bind(), name="indextts", route_prefix="/")


def _named(build: Any) -> Any:
    """Ray Serve tells a function that builds an application from an application by what kind of object it is."""

    def application() -> Any:
        return build()

    return application


def wait_for_signal() -> None:
    """Until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def shut_down() -> None:
    """End the service and Ray, if it was started here."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
