"""Accumulator: the weighted sum of one output's windows over a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .grid import Place
from .runs import find_runs, strided


class Accumulator:
    """Adds windows in place, those that do not overlap in one operation.

    Args:
        shape: (images, channels, *space) of the box, at the output's resolution.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.total = torch.zeros(tuple(shape), dtype=dtype, device=device)

    def add(self, places: Sequence[Place], windows: torch.Tensor, weight: torch.Tensor | None) -> None:
        """Add a batch of windows (windows, channels, *window), each multiplied by ``weight`` ((1, 1, *window); None: 1), at ``places``."""
        size = windows.shape[2:]
        for run in find_runs(places):
            reach = size[run.axis - 1] if run.axis else 1
            apart = min(run.count, -(-reach // run.step)) if run.step else 1
            for skip in range(apart):
                target = strided(self.total, run, size, every=apart, skip=skip)
                part = windows[run.first + skip : run.first + run.count : apart]
                if weight is None:
                    target.add_(part)
                else:
                    target.addcmul_(part, weight)
