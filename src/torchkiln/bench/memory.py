"""MemoryProbe: how much memory a runner takes, from before its build to the peak of its calls.

CUDA: torch's allocator counts: what the runner holds (memory reserved after the calls less before the build, unused blocks given back both
times) and what its calls need for a while (peak less remaining allocation). Reserved, not allocated, because a CUDA graph keeps the memory of
its intermediate tensors without their being allocated between replays; so the figure is in the allocator's steps of 2 to 20 MB. Memory that
a library takes from the driver itself (contexts, ONNX Runtime's arena) is not seen, and such runners have no figure.

CPU: the kernel counts: the resident set's high-water mark during the calls (``VmHWM``, reset through ``/proc/self/clear_refs``) less the
resident set before the build. Every runner holds its own copy of the weights, so the figure is weights, workspace and library together. It is
an estimate: memory that earlier builds gave back to the allocator but not to the system makes later figures smaller (the heap is trimmed
first, where the C library can), and the first runner of a library pays for loading it. Linux only; elsewhere there is no figure.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class MemoryProbe:
    """``MemoryProbe(device)`` before the build, ``start_peak()`` before the calls, ``peak_bytes()`` after them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._can_measure = True
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            self._before = torch.cuda.memory_reserved(device)
        elif device.type == "cpu" and sys.platform == "linux":
            _trim_heap()
            self._before = _status_bytes("VmRSS")
        else:
            self._can_measure = False

    def start_peak(self) -> None:
        """Forget the peak of the build: only what the calls need counts."""
        if not self._can_measure:
            return
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        gc.collect()
        _trim_heap()
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:  # a sandbox or an old kernel: then the mark cannot be told from the build's
            self._can_measure = False

    def peak_bytes(self) -> int | None:
        """Bytes above what was in use before the build, 0 at least; None where it cannot be measured."""
        if not self._can_measure:
            return None
        if self._device.type == "cpu":
            return max(0, _status_bytes("VmHWM") - self._before)
        passing = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
        torch.cuda.empty_cache()
        return max(0, torch.cuda.memory_reserved(self._device) - self._before) + passing


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")


def _trim_heap() -> None:
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
