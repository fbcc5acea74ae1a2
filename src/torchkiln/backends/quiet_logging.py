"""quiet_logging: exporters and converters log to the root logger what is no error here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_inside = 0
_before = logging.NOTSET


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Without log messages of any logger. Safe in several threads: the first in turns logging off, the last out restores what was."""
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = logging.root.manager.disable
            logging.disable(logging.CRITICAL)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                logging.disable(_before)
