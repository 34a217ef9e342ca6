"""Files between the reader's computer and the kernel, and code to copy."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import anywidget
import traitlets as T

from widgets.base import words
from widgets.player import STYLE, module


class FileDrop(anywidget.AnyWidget):
    """A button, and a place to drop a file on. ``on_file(name, data)`` gets the file; a ``ValueError`` from it is shown in words.

    ``suffixes`` (lower case, with the dot) and ``most_mb`` (10^6 bytes) are checked in the browser before anything is sent, and here
    again. What ``on_file`` returns, if it is text, is shown. Files travel in pieces of 1 MB, because servers refuse larger messages.
    """

    _esm = module("file_drop.js")
    _css = STYLE
    label = T.Unicode("Upload a file").tag(sync=True)
    hint = T.Unicode("").tag(sync=True)
    suffixes = T.List(T.Unicode()).tag(sync=True)
    most_mb = T.Float(20.0).tag(sync=True)
    message = T.Unicode("").tag(sync=True)
    failed = T.Bool(False).tag(sync=True)

    def __init__(self, on_file: Callable[[str, bytes], object], suffixes: Sequence[str], **traits: Any) -> None:
        super().__init__(suffixes=list(suffixes), **traits)
        self._on_file = on_file
        self._arriving: dict[str, Any] | None = None
        self.on_msg(self._hear)

    def take(self, name: str, data: bytes) -> bool:
        """Check a file and hand it to ``on_file``; False, with the reason in ``message``, if it is refused."""
        try:
            self._check(name, len(data))
            answer = self._on_file(name, data)
        except Exception as error:
            self._say(words(error), failed=True)
            return False
        self._say(answer if isinstance(answer, str) else f"{name} loaded.")
        return True

    def clear(self) -> None:
        """Forget what was said about the last file."""
        self._say("")

    def _say(self, message: str, failed: bool = False) -> None:
        with self.hold_sync():
            self.message, self.failed = message, failed

    def _check(self, name: str, size: int) -> None:
        if PurePath(name).suffix.lower() not in self.suffixes:
            raise ValueError(f"{name} is not one of {', '.join(self.suffixes)}")
        if size > self.most_mb * 1e6:
            raise ValueError(f"{name} has {size / 1e6:.1f} MB; at most {self.most_mb:g} MB are taken")
        if size == 0:
            raise ValueError(f"{name} is empty (0 bytes)")

    def _hear(self, _: Any, message: dict[str, Any], buffers: Sequence[Any]) -> None:
        if message.get("type") == "begin":
            name, size = PurePath(str(message["name"])).name, int(message["size"])
            try:
                self._check(name, size)
            except ValueError as error:
                self._say(words(error), failed=True)
                return
            self._arriving = {"id": message["id"], "name": name, "size": size, "data": bytearray()}
        elif message.get("type") == "piece" and self._arriving and message["id"] == self._arriving["id"]:
            data = self._arriving["data"]
            data += buffers[0]
            if len(data) >= self._arriving["size"]:
                arrived, self._arriving = self._arriving, None
                self.take(arrived["name"], bytes(data))


class Download(anywidget.AnyWidget):
    """A button that saves a file on the reader's computer: ``make()`` returns (file name, content) when it is pressed.

    ``on_error(exception)`` hears of what ``make`` raises.
    """

    _esm = module("download.js")
    _css = STYLE
    label = T.Unicode("Download").tag(sync=True)
    tooltip = T.Unicode("").tag(sync=True)
    disabled = T.Bool(False).tag(sync=True)

    def __init__(
        self, label: str, make: Callable[[], tuple[str, bytes]], on_error: Callable[[Exception], object] | None = None, **traits: Any
    ) -> None:
        super().__init__(label=label, **traits)
        self._make, self._on_error = make, on_error
        self.on_msg(self._hear)

    def _hear(self, _: Any, message: dict[str, Any], __: Any) -> None:
        if message.get("type") != "wanted" or self.disabled:
            return
        try:
            name, data = self._make()
        except Exception as error:
            if self._on_error is not None:
                self._on_error(error)
            return
        self.send({"type": "file", "name": name, "mime": mimetypes.guess_type(name)[0] or "application/octet-stream"}, [data])


class CodeBox(anywidget.AnyWidget):
    """``code`` to read, with a button that copies it."""

    _esm = module("code_box.js")
    _css = STYLE
    code = T.Unicode("").tag(sync=True)
