"""Panels that notice what a notebook's cells do to the engine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["after_cells"]


def after_cells(function: Callable[[], object]) -> Callable[[], None]:
    """Call the bound method ``function()`` after every cell that is run; returns the way out. Nothing happens outside IPython.

    The method is held weakly, so that a forgotten panel can go.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return lambda: None
    shell: Any = get_ipython()
    if shell is None:
        return lambda: None
    method = weakref.WeakMethod(function)

    def call(*_: Any) -> None:
        alive = method()
        if alive is None:
            stop()
        else:
            alive()

    def stop() -> None:
        if call in shell.events.callbacks["post_run_cell"]:
            shell.events.unregister("post_run_cell", call)

    shell.events.register("post_run_cell", call)
    return stop
