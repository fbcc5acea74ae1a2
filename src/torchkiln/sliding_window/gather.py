"""Gather: windows of a volume as a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grid import Place
from .runs import find_runs, strided


class Gather:
    """Reads the windows of one box. On a GPU, a batch is one indexing operation; on the CPU, one strided copy for windows in a row.

    Args:
        source: (images, channels, *space): the box's part of the images.
        places: the box's windows, relative to ``source``, in order.
        roi_size: of a window.
        by_index: whether to read by an indexing operation; default: on a GPU.
    """

    def __init__(self, source: torch.Tensor, places: Sequence[Place], roi_size: Sequence[int], *, by_index: bool | None = None) -> None:
        self.source, self._places, self._roi = source, places, tuple(roi_size)
        self._by_index = source.is_cuda if by_index is None else by_index
        if self._by_index:
            rank = len(self._roi)
            starts = torch.tensor(places, dtype=torch.int64)
            # From pinned memory the CPU does not wait for the copy.
            self._starts = starts.pin_memory().to(source.device, non_blocking=True) if source.is_cuda else starts
            self._steps = torch.arange(max(self._roi), device=source.device)
            self._channels = torch.arange(source.shape[1], device=source.device).view(1, -1, *[1] * rank)

    def read(self, low: int, high: int, out: torch.Tensor) -> None:
        """Windows ``low`` to ``high`` (exclusive) into ``out``: (at least that many, channels, *roi_size), contiguous. Rows that are left hold
        the last of the windows once more."""
        count = high - low
        rows = out[:count]
        if self._by_index:
            self._index(low, high, rows)
        else:
            for run in find_runs(self._places[low:high]):
                rows[run.first : run.first + run.count].copy_(strided(self.source, run, self._roi))
        if count < len(out):
            out[count:].copy_(out[count - 1 : count].expand(len(out) - count, *out.shape[1:]))

    def _index(self, low: int, high: int, rows: torch.Tensor) -> None:
        starts, count, rank = self._starts[low:high], high - low, len(self._roi)
        voxels = starts[:, 1:, None] + self._steps  # (windows, dimensions, longest side)
        index = [starts[:, 0].view(count, *[1] * (rank + 1)), self._channels]
        for d, size in enumerate(self._roi):
            index.append(voxels[:, d, :size].view(count, 1, *[1] * d, size, *[1] * (rank - d - 1)))
        if rows.dtype is self.source.dtype:
            torch.ops.aten.index.Tensor_out(self.source, index, out=rows)
        else:
            rows.copy_(self.source[tuple(index)])
