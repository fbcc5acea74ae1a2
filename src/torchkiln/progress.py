"""Progress: how a long step tells whoever is watching how far it is, without knowing who that is.

A library call stays silent. The command line wraps it in ``with report_progress(callback)`` and draws a bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Called with the phase's name ("capture", "build candidates"), the steps done and the steps in all (0: not known).
ProgressCallback = Callable[[str, int, int], None]

# A context variable, not a global: two threads that compile at once report to their own callbacks.
_callback: ContextVar[ProgressCallback | None] = ContextVar("torchkiln_progress", default=None)


@contextmanager
def report_progress(callback: ProgressCallback) -> Iterator[None]:
    """Within the block, ``progress`` calls of this thread (and of tasks that inherit its context) go to ``callback``."""
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)


def progress(phase: str, done: int, total: int) -> None:
    """Say that ``done`` of ``total`` steps of ``phase`` are done. Does nothing unless someone is watching."""
    callback = _callback.get()
    if callback is not None:
        callback(phase, done, total)
