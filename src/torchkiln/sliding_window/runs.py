"""runs: windows a fixed step apart, which one strided view reaches all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .grid import Place


@dataclass(frozen=True)
class Run:
    """``count`` windows of a batch, from number ``first`` at ``place`` on, each ``step`` voxels after the one before along ``axis`` (0: images)."""

    first: int
    count: int
    place: Place
    axis: int
    step: int


def find_runs(places: Sequence[Place]) -> list[Run]:
    """The batch as runs that are as long as can be, in order."""
    runs: list[Run] = []
    index = 0
    while index < len(places):
        count, axis, step = 1, 0, 0
        while index + count < len(places):
            here, there = places[index + count - 1], places[index + count]
            moved = [d for d in range(len(here)) if there[d] != here[d]]
            if len(moved) != 1 or there[moved[0]] < here[moved[0]]:
                break
            if count > 1 and (moved[0] != axis or there[axis] - here[axis] != step):
                break
            axis = moved[0]
            step = there[axis] - here[axis]
            count += 1
        runs.append(Run(index, count, places[index], axis, step))
        index += count
    return runs


def strided(tensor: torch.Tensor, run: Run, window: Sequence[int], *, every: int = 1, skip: int = 0) -> torch.Tensor:
    """The windows of a run in ``tensor`` (images, channels, *space), as a view (windows, channels, *window): of ``every`` windows the one after
    ``skip``. Windows of the view share memory where they overlap."""
    strides = tensor.stride()
    along = strides[run.axis + 1] if run.axis else strides[0]
    offset = tensor.storage_offset() + run.place[0] * strides[0] + skip * run.step * along
    offset += sum(place * stride for place, stride in zip(run.place[1:], strides[2:], strict=True))
    count = -(-(run.count - skip) // every)
    return tensor.as_strided((count, tensor.shape[1], *window), (every * run.step * along, *strides[1:]), offset)
