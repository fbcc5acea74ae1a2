"""logger: what the library says while it works, kept for our own messages."""

from __future__ import annotations

from functools import cache
from typing import Any

from ...log import CODE, STEPS, log
from .library import Library

#: What a machine without a GPU is told again and again: building needs none.
_NO_GPU = ("CUDA driver version is insufficient", "cudaError 35", "no CUDA-capable device", "CUDA initialization failure")


@cache
def _logger_class(trt: Any) -> type:
    class KeptLogger(trt.ILogger):
        """Keeps errors; passes warnings and the rest on to torchkiln's log."""

        def __init__(self, needs_gpu: bool) -> None:
            trt.ILogger.__init__(self)
            self._needs_gpu = needs_gpu
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                if self._needs_gpu or not any(text in message for text in _NO_GPU):
                    self._errors.append(_plain(message))
            else:
                log(STEPS if severity == trt.ILogger.WARNING else CODE, "tensorrt: %s", message)

        def errors(self) -> str:
            """The errors since the last time, each once, as one text; "" when there are none."""
            text = "; ".join(dict.fromkeys(self._errors))
            self._errors.clear()
            return text

    return KeptLogger


def make_logger(library: Library, *, needs_gpu: bool = True) -> Any:
    """A logger of the library's class. It must live as long as the builder, parser or runtime that writes to it.

    ``needs_gpu=False``: that there is no GPU, or no driver, is no error.
    """
    return _logger_class(library.module)(needs_gpu)


def _plain(message: str) -> str:
    """Without the library's own file names, which say nothing to its user."""
    return message.partition("  In ")[0].partition(" In compileGraph")[0].strip()
