"""gpu: all that the runtime asks of torch.cuda, for one device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import TargetMismatch


class Gpu:
    """One CUDA device of this machine."""

    def __init__(self, device: torch.device) -> None:
        index = device.index if device.index is not None else torch.cuda.current_device()
        self.device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(index)
        self.target = f"sm_{major}{minor}"
        self.name = torch.cuda.get_device_name(index)
        self._index = index

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Makes this the current device of the thread: TensorRT works on that one."""
        return contextlib.nullcontext() if torch.cuda.current_device() == self._index else torch.cuda.device(self._index)

    def current_stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def new_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def new_event(self) -> torch.cuda.Event:
        return torch.cuda.Event()

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured into a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Fresh memory, from torch's caching allocator, for the current stream."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)


def find_gpu(device: torch.device) -> Gpu:
    """The GPU that ``device`` names. Raises TargetMismatch when it is no CUDA device or is not there."""
    if device.type != "cuda":
        raise TargetMismatch(
            f"tensorrt segment: expected a CUDA device, got {device}: a TensorRT plan runs on a GPU only. "
            "Load with device='cuda', or build for the CPU (target='cpu')."
        )
    if not torch.cuda.is_available():
        raise TargetMismatch(
            "tensorrt segment: this machine has no GPU that PyTorch can use. Load the engine where there is one, or build for the CPU (target='cpu')."
        )
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise TargetMismatch(f"tensorrt segment: {device} was asked for, but this machine has {torch.cuda.device_count()} GPU(s).")
    return Gpu(device)
