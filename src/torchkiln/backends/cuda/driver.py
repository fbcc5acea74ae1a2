"""driver: machine code onto the GPU and launches of it, through the CUDA driver alone: no compiler, no Triton.

Source: the CUDA driver API reference, cuModuleLoadData and cuLaunchKernelEx.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
from collections.abc import Sequence
from functools import cache

import torch

from ...errors import BuildFailed, MissingPackage

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
_NO_PREFERENCE, _ALL_SHARED = -1, 100
_PROGRAMMATIC_STREAM_SERIALIZATION = 6
#: A block gets more dynamic shared memory than this only when it was asked for.
_DEFAULT_SHARED_BYTES = 48 * 1024


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


class _Config(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    ]


@cache
def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise MissingPackage(f"{name}: the NVIDIA driver's library cannot be loaded: {error}") from error


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise BuildFailed(f"CUDA driver: {what}: {(text.value or b'unknown error').decode()} (error {status})")


class Function:
    """A kernel on a device, ready to be launched."""

    def __init__(self, handle: ctypes.c_void_p, threads: int, shared_bytes: int, overlaps: bool) -> None:
        """``overlaps``: it may be scheduled before the kernel in front of it is done, because it waits itself (programmatic dependent launch)."""
        self._handle = handle
        self._threads = threads
        self._shared_bytes = shared_bytes
        self._overlaps = overlaps
        self._launch = _driver().cuLaunchKernelEx

    def prefer_shared(self, all_shared: bool) -> None:
        """Run with as much of a multiprocessor's memory shared, not L1 cache, as there is; False: with as much as the driver thinks best.

        Another division than the kernel's in front makes the multiprocessor wait until it is empty: a microsecond or two. Kernels of a few
        microseconds had best all have the same. Holds for the same code wherever it was loaded on the device.
        """
        value = _ALL_SHARED if all_shared else _NO_PREFERENCE
        _check(_driver().cuFuncSetAttribute(self._handle, _PREFERRED_SHARED_MEMORY_CARVEOUT, value), f"the division of shared memory: {value}")

    def launch(self, grid: Sequence[int], pointers: Sequence[int], stream: int, *, overlap: bool = True) -> None:
        """Launch on ``stream`` (a CUDA stream handle).

        Args:
            grid: blocks in three dimensions.
            pointers: device addresses, the kernel's arguments; global scratch memory last, for code that wants it.
            overlap: False: start only when everything before in the stream is done, even if the kernel could wait itself.
        """
        # Triton appends two pointers to scratch memory: global, which is among the pointers where it is wanted, and the profiler's, which
        # compile_kernel refuses. The driver reads as many as the kernel has.
        values = (ctypes.c_void_p * (len(pointers) + 2))(*pointers, None, None)
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(values) + i * ctypes.sizeof(ctypes.c_void_p) for i in range(len(values))))
        attribute = _Attribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        config = _Config(
            grid=(ctypes.c_uint * 3)(*grid),
            block=(ctypes.c_uint * 3)(self._threads, 1, 1),
            shared_bytes=self._shared_bytes,
            stream=stream,
            attributes=ctypes.pointer(attribute),
            attribute_count=1 if self._overlaps and overlap else 0,
        )
        _check(self._launch(ctypes.byref(config), self._handle, addresses, None), "cuLaunchKernelEx")


_modules: dict[tuple[int, bytes], ctypes.c_void_p] = {}
_lock = threading.Lock()


def load_function(code: bytes, name: str, threads: int, shared_bytes: int, overlaps: bool, device: torch.device) -> Function:
    """Put a cubin on ``device`` and find its kernel. The same code is put there once in the life of the process. Raises BuildFailed with the
    driver's message."""
    driver = _driver()
    torch.cuda.synchronize(device)  # torch makes the device's context, and it is current then
    with torch.cuda.device(device):
        key = (torch.cuda.current_device(), hashlib.sha256(code).digest())
        with _lock:
            if key not in _modules:
                module = ctypes.c_void_p()
                _check(driver.cuModuleLoadData(ctypes.byref(module), code), f"cuModuleLoadData of {name}")
                _modules[key] = module
        handle = ctypes.c_void_p()
        _check(driver.cuModuleGetFunction(ctypes.byref(handle), _modules[key], name.encode()), f"cuModuleGetFunction {name}")
        if shared_bytes > _DEFAULT_SHARED_BYTES:
            _check(driver.cuFuncSetAttribute(handle, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes), f"{name}: {shared_bytes} bytes of shared memory")
    return Function(handle, threads, shared_bytes, overlaps)
