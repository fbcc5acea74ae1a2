"""build_limit: a time limit on building a peer in this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class BuildTimeout(BaseException):
    """The build took longer than it may. A BaseException, as KeyboardInterrupt is, so that a compiler's own handlers do not swallow it."""


@contextmanager
def build_limit(seconds: float) -> Iterator[None]:
    """Raise BuildTimeout when the block takes longer than ``seconds``.

    In the main thread of a POSIX system an alarm interrupts the block at the next Python instruction; a long call into native code runs to
    its end first. Elsewhere nothing can interrupt it, and BuildTimeout is raised when it has ended.
    """
    start = time.monotonic()
    can_interrupt = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not can_interrupt:
        yield
        if time.monotonic() - start > seconds:
            raise BuildTimeout
        return

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise BuildTimeout

    before = signal.signal(signal.SIGALRM, on_alarm)
    outer_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer_s:  # someone else's alarm (a test's time limit) goes on counting
            signal.setitimer(signal.ITIMER_REAL, max(0.001, outer_s - (time.monotonic() - start)))
