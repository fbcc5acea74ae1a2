"""Stitch: the parts of boxes as whole outputs."""

from __future__ import annotations

import threading
from typing import Any

import torch

from ..log import SUMMARY, log
from .grid import Box
from .memory import usable_bytes
from .run_box import BoxResult, Part


class Stitch:
    """Adds up the parts of all boxes: where boxes overlap, each has its share of the sum.

    Args:
        images: number of images.
        device: where outputs are wanted. Where a GPU has no room for them, they are put together on the CPU.
    """

    def __init__(self, images: int, device: torch.device) -> None:
        self._images, self._device = images, device
        self._outputs: list[torch.Tensor] = []
        self._is_settled = False
        self._lock = threading.Lock()
        self.keys: list[Any] | None = None

    def bring(self, result: BoxResult) -> BoxResult:
        """``result`` with its parts on the device where they are added. From several threads at once."""
        with self._lock:
            if not self._is_settled:
                self._settle_device(result)
        parts = [Part(part.value.to(self._device), part.begin, part.full_size) for part in result.parts]
        return BoxResult(result.box, result.keys, parts)

    def add(self, result: BoxResult) -> None:
        """Add a result that ``bring`` gave. From one thread: outputs are made, and added to, on its stream."""
        self.keys = result.keys
        if not self._outputs:
            self._outputs = [torch.zeros(self._shape(part), dtype=part.value.dtype, device=self._device) for part in result.parts]
        for output, part in zip(self._outputs, result.parts, strict=True):
            _place(output, result.box, part).add_(part.value)

    def take_whole(self, result: BoxResult) -> None:
        """Take the result of the box of all windows as the outputs, where it is."""
        self.keys = result.keys
        self._outputs = [part.value for part in result.parts]

    @property
    def outputs(self) -> list[torch.Tensor]:
        """The whole outputs, once every box was added."""
        return self._outputs

    def _shape(self, part: Part) -> torch.Size:
        return torch.Size((self._images, part.value.shape[1], *part.full_size))

    def _settle_device(self, result: BoxResult) -> None:
        self._is_settled = True
        needed = sum(self._shape(part).numel() * part.value.dtype.itemsize for part in result.parts)
        if needed > usable_bytes(self._device):
            log(SUMMARY, "sliding windows: outputs are put together on the CPU: they need %d bytes, which %s has not free", needed, self._device)
            self._device = torch.device("cpu")


def _place(output: torch.Tensor, box: Box, part: Part) -> torch.Tensor:
    view = output[slice(*box.images)]
    for dim, (begin, size) in enumerate(zip(part.begin, part.value.shape[2:], strict=True), start=2):
        view = view.narrow(dim, begin, size)
    return view
