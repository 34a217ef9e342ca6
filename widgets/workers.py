"""Many requests on a pool of workers: a queue, who does what, progress, and the results as they come."""

from __future__ import annotations

import html
import importlib.util
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from typing import Any

import ipywidgets as W

from indextts.parallel import PoolFullError, PoolFuture, WorkerPool
from widgets.base import Panel, Ticker, group, words
from widgets.choice import Choice
from widgets.loop import on_loop
from widgets.memory import figures_html
from widgets.player import Player
from widgets.session import Session
from widgets.synthesis_voice import VoicePicker
from widgets.table import Table

__all__ = ["QueuedRequest", "WorkersPanel"]

INTERVAL_S = 0.5
MOST_KEPT = 200
NO_RAY = "needs Ray: pip install 'indextts2-lab[cluster]'"
EXAMPLE = "The ferry came in at seven.\nNobody was waiting on the pier.\nThe lamps along the harbour went out one by one."


class QueuedRequest:
    """One request on its way through the pool, seen from the panel."""

    def __init__(self, number: int, request: Mapping[str, Any]) -> None:
        self.id, self.text = number, str(request["text"])
        self.progress: tuple[float, str] = (0.0, "")
        self.future: PoolFuture | None = None

    def report(self, fraction: float, message: str) -> None:
        """Progress, from whichever thread."""
        self.progress = (fraction, message)

    @property
    def state(self) -> str:
        """``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
        future = self.future
        if future is None or not (future.running() or future.done()):
            return "waiting"
        if not future.done():
            return "running"
        if future.cancelled():
            return "cancelled"
        return "failed" if future.exception() is not None else "done"

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.future is not None and self.future.done()


class WorkersPanel(Panel):
    """A queue over a :class:`WorkerPool`: this engine in this process, or processes of their own through Ray.

    ``pool``: one that is there already; it stays open. Without it one is started with the first request, or by its button.
    """

    title = "Workers"

    def __init__(self, session: Session, pool: WorkerPool | None = None) -> None:
        super().__init__(session)
        self.pool, self._given = pool, pool is not None
        self.requests: list[QueuedRequest] = []
        self._number, self._starting = 0, False
        ray = None if importlib.util.find_spec("ray") else NO_RAY
        self.kind = Choice([("This engine", "here", None), ("Processes of their own", "processes", ray)])
        self.size = W.BoundedIntText(2, min=1, max=64, description="Workers", disabled=True)
        self.toggle = W.Button(description="Start", icon="power-off")
        self.figures, self.note = W.HTML(), W.HTML()
        self.workers = Table(
            [
                {"key": "name", "label": "Worker"},
                {"key": "state", "label": "State"},
                {"key": "device", "label": "Device"},
                {"key": "load", "label": "At work on", "number": True},
                {"key": "done", "label": "Done", "number": True},
                {"key": "failed", "label": "Failed", "number": True},
                {"key": "restarts", "label": "Restarts", "number": True},
                {"key": "rtf", "label": "RTF", "number": True},
                {"key": "memory", "label": "Memory, MB", "number": True},
            ],
            empty="No workers yet: they start with the first request.",
        )
        self.texts = W.Textarea(EXAMPLE, rows=4, layout={"width": "100%"}, placeholder="One request a line")
        self.voice = VoicePicker(session.tts)
        self.queue = W.Button(description="Queue all lines", button_style="primary", icon="list")
        self.cancel = W.Button(description="Cancel all", icon="stop", disabled=True)
        self.tidy = W.Button(description="Clear finished", icon="eraser", disabled=True)
        self.table = Table(
            [
                {"key": "id", "label": "Request", "number": True},
                {"key": "text", "label": "Text", "wide": True},
                {"key": "state", "label": "State"},
                {"key": "progress", "label": "Progress", "wide": True},
                {"key": "audio", "label": "Sound, s", "number": True},
            ],
            (("play", "Play"), ("cancel", "Cancel")),
            self._act,
            empty="No requests yet.",
        )
        self.player = Player()
        self.player.layout.display = "none"
        self.kind.observe(lambda _: self._show(), "value")
        self.toggle.on_click(lambda _: self.stop_pool() if self.pool is not None else self.start_pool())
        self.queue.on_click(lambda _: self.queue_lines())
        self.cancel.on_click(lambda _: self.cancel_all())
        self.tidy.on_click(lambda _: self.clear_finished())
        head = W.HBox([self.kind, self.size, self.toggle, self.note])
        actions = W.HBox([self.queue, self.cancel, self.tidy])
        for row in (head, actions):
            row.add_class("itl-actions")
        form = W.Box([W.VBox([self.texts, actions]), self.voice])
        form.add_class("itl-columns")
        self.set_content(group("Pool", head, self.figures, self.workers), group("Requests", form, self.table, self.player))
        self.ticker: Ticker = self.own(Ticker(INTERVAL_S, self.refresh))
        self._show()

    # ------------------------------------------------------------------------------------------------------------ pool

    def start_pool(self, then: Any = None) -> None:
        """Start the workers in the background; ``then()`` runs when they are ready."""
        if self.pool is not None or self._starting:
            return
        self.clear_error()
        self._starting = True
        here, size, tts = self.kind.value == "here", self.size.value, self.session.tts
        options = engine_options(tts)

        def start() -> None:
            try:
                pool = WorkerPool(engine=tts, warm_up=False) if here else WorkerPool(size, **options)
            except Exception as error:
                on_loop(self._started, None, error, None)
            else:
                on_loop(self._started, pool, None, then)

        threading.Thread(target=start, name="indextts-pool-start", daemon=True).start()
        self._show()

    def stop_pool(self) -> None:
        """Cancel what waits and end the workers."""
        pool, self.pool = self.pool, None
        self.ticker.stop()
        if pool is not None and not self._given:
            threading.Thread(target=pool.close, kwargs={"cancel": True, "timeout_s": 5.0}, name="indextts-pool-stop", daemon=True).start()
        self._show()

    def close(self) -> None:
        """Cancel this panel's requests, end the pool if it was started here, and close."""
        if not self.closed:
            self.cancel_all()
            self.stop_pool()
        super().close()

    def _started(self, pool: WorkerPool | None, error: BaseException | None, then: Any) -> None:
        self._starting = False
        if self.closed:
            if pool is not None:
                threading.Thread(target=pool.close, kwargs={"cancel": True}, daemon=True).start()
            return
        self.pool = pool
        if error is not None:
            self.show_error(error)
        elif then is not None:
            then()
        self._show()

    # -------------------------------------------------------------------------------------------------------- requests

    def queue_lines(self) -> None:
        """Queue every line of the text as a request; the pool starts if there is none."""
        self.clear_error()
        lines = [line.strip() for line in self.texts.value.splitlines() if line.strip()]
        try:
            if not lines:
                raise ValueError("there is no text: write one request a line")
            voice = self.voice.voice.source
        except (ValueError, OSError) as error:
            self.show_error(error)
            return
        self.submit([{"spk_audio_prompt": voice, "text": line} for line in lines])

    def submit(self, requests: list[dict[str, Any]]) -> None:
        """Queue requests, dicts of ``infer``'s arguments. What the pool refuses is said in words."""
        if self.pool is None:
            self.start_pool(lambda: self.submit(requests))
            return
        for place, request in enumerate(requests):
            self._number += 1
            entry = QueuedRequest(self._number, request)
            try:
                entry.future = self.pool.submit({**request, "progress": entry.report})
            except PoolFullError as error:
                self.show_error(f"{words(error)} {len(requests) - place} requests were not taken.")
                break
            except (ValueError, TypeError, OSError, RuntimeError) as error:
                self.show_error(error)
                continue
            self.requests.append(entry)
        self._forget()
        self.ticker.start()
        self.refresh()

    def cancel_all(self) -> None:
        """Give up all requests that have not ended."""
        for entry in self.requests:
            if entry.future is not None and not entry.over:
                entry.future.cancel()

    def clear_finished(self) -> None:
        """Forget requests that have ended, and their sound."""
        self.requests = [entry for entry in self.requests if not entry.over]
        self.refresh()

    def refresh(self) -> None:
        """Show pool and requests as they are; the timer ends when nothing is under way."""
        if self.closed:
            return
        stats = self.pool.stats() if self.pool is not None else None
        self.figures.value = figures_html(_figures(stats)) if stats else ""
        self.workers.show([_worker_row(row) for row in stats["workers"]] if stats else [])
        self.table.show([_request_row(entry) for entry in reversed(self.requests)])
        active = any(not entry.over for entry in self.requests)
        self.cancel.disabled = not active
        self.tidy.disabled = not any(entry.over for entry in self.requests)
        if not active and not (stats and stats["running"]):
            self.ticker.stop()

    def _forget(self) -> None:
        """Keep at most so many ended requests: each holds its sound."""
        ended = [entry for entry in self.requests if entry.over]
        for entry in ended[: max(0, len(self.requests) - MOST_KEPT)]:
            self.requests.remove(entry)

    def _act(self, name: str, number: Any) -> None:
        entry = next((entry for entry in self.requests if entry.id == number), None)
        if entry is None or entry.future is None:
            return
        if name == "cancel":
            entry.future.cancel()
        elif entry.state == "done":
            rate, samples = entry.future.result()
            self.player.layout.display = None
            self.player.autoplay = True
            self.player.set_sound(samples, rate, f"request {entry.id}")

    def _show(self) -> None:
        running = self.pool is not None
        self.size.disabled = self.kind.value == "here" or running or self._starting
        for key, button in self.kind._buttons.items():
            button.disabled = running or self._starting or key in self.kind.reasons
        self.toggle.description = "Stop" if running else "Starting…" if self._starting else "Start"
        self.toggle.disabled = self._starting or self._given
        reasons = " ".join(f"{html.escape(reason)}." for reason in self.kind.reasons.values())
        self.note.value = f'<span class="itl-hint">Processes of their own: {reasons}</span>' if reasons else ""
        self.refresh()


def engine_options(tts: Any) -> dict[str, Any]:
    """What a worker process needs to make an engine like ``tts``."""
    options = {"precision": tts.precision, "attention": tts.attention, "use_accel": tts.use_accel}
    if tts.release is not None:
        return {"model_dir": str(tts.release.model_dir), **options}
    from indextts.pipeline import IndexTTS2

    size = "small" if tts.name == "random-small" else "release"
    return {"engine": lambda: IndexTTS2.from_random(size, **options)}


def _figures(stats: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        ("workers ready", f"{stats['ready']} of {len(stats['workers'])}", ""),
        ("waiting", f"{stats['queued']} of at most {stats['max_queue']}", ""),
        ("at work on", str(stats["running"]), ""),
        ("done", str(stats["done"]), ""),
        ("failed", str(stats["failed"]), "bad" if stats["failed"] else ""),
        ("sound made", f"{stats['audio_s']:.1f} s", ""),
        ("sound per second of work", f"{stats['audio_per_s']:.2f} s", ""),
    ]


def _worker_row(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = {key: str(row.get(key) or 0) for key in ("load", "done", "failed", "restarts")}
    device = " ".join(str(row[key]) for key in ("device", "precision") if row.get(key))
    rtf = "" if row.get("rtf") is None else f"{row['rtf']:.3g}"
    memory = f"{row['memory_mb']:,.0f}" if row.get("memory_mb") else ""
    state = f"{row['state']}: {row['error']}" if row.get("error") else str(row["state"])
    return {
        "id": row["name"],
        "name": row["name"],
        "cells": {"name": row["name"], "state": state, "device": device, "rtf": rtf, "memory": memory, **cells},
    }


def _request_row(entry: QueuedRequest) -> dict[str, Any]:
    state, future = entry.state, entry.future
    audio, progress = "", ""
    if state == "running":
        progress = f"{entry.progress[0]:.0%} {entry.progress[1]}".strip()
    elif state == "done" and future is not None:
        rate, samples = future.result()
        audio, progress = f"{len(samples) / rate:.2f}", "100%"
    elif state == "failed" and future is not None:
        error = future.exception()
        progress = "" if error is None or isinstance(error, CancelledError) else words(error)
    text = entry.text if len(entry.text) <= 80 else entry.text[:79] + "…"
    actions = ["play"] if state == "done" else ["cancel"] if state in ("waiting", "running") else []
    return {
        "id": entry.id,
        "name": f"request {entry.id}",
        "cells": {"id": str(entry.id), "text": text, "state": state, "progress": progress, "audio": audio},
        "sort": {"id": entry.id},
        "actions": actions,
    }
