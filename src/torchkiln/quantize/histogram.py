"""Histogram: how often each magnitude occurs in a tensor, over any number of batches in one pass, whatever their range."""

from __future__ import annotations

import torch

from ..errors import UserError

#: Bins of a histogram. 16 for each of the 128 magnitudes of an int8 that spans the whole range.
BINS = 2048


class Histogram:
    """Counts of ``|x|`` in BINS bins of equal width from 0 to ``limit``.

    The first tensor that is not all zeros sets ``limit``; where a later one goes beyond, neighbouring bins are joined, which doubles it, so no value
    is ever cut off or counted in another bin than its own.

    Attributes:
        counts: (BINS,) float64 on the CPU.
        limit: the upper edge of the last bin; 0.0 as long as nothing but zeros came.
        low, high: the smallest and largest value, signs kept.
        batches: how many tensors were added.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 0.0
        self.low = 0.0
        self.high = 0.0
        self.batches = 0

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)

    @property
    def bin_width(self) -> float:
        return self.limit / BINS

    def add(self, values: torch.Tensor) -> None:
        """Count the elements of a floating tensor of any shape. Raises UserError when one is not finite."""
        flat = values.detach().float().flatten()
        if flat.numel() == 0:
            return
        low, high = (bound.item() for bound in flat.aminmax())
        peak = max(-low, high)
        if not peak < float("inf"):  # NaN as well
            raise UserError("calibration: the model computes NaN or infinity on this batch: look at the data and its normalisation")
        self.low, self.high = (low, high) if self.batches == 0 else (min(low, self.low), max(high, self.high))
        self.batches += 1
        if peak > 0 and self.limit == 0.0:
            self.limit = peak
        while peak > self.limit:
            self._double()
        if peak == 0:
            self.counts[0] += flat.numel()
        else:
            self.counts += torch.histc(flat.abs(), BINS, 0.0, self.limit).double().cpu()

    def _double(self) -> None:
        joined = self.counts.view(BINS // 2, 2).sum(1)
        self.counts = torch.cat([joined, torch.zeros(BINS // 2, dtype=torch.float64)])
        self.limit *= 2
