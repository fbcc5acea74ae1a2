"""grid: where the windows are, and boxes of them."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UserError

Sizes = tuple[int, ...]
#: An image's number and a window's first voxel in each dimension.
Place = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """The windows of one image: every combination of one start in each dimension.

    Attributes:
        image_size: after padding, so at least ``roi_size``.
        roi_size: of a window.
        starts: for each dimension, the first voxel of each window; the last one ends where the image does.
    """

    image_size: Sizes
    roi_size: Sizes
    starts: tuple[Sizes, ...]


@dataclass(frozen=True)
class Box:
    """A range of images, and a range of windows in each dimension.

    Attributes:
        images: first and last + 1.
        layers: for each dimension, the same of ``Grid.starts``.
        outer: the dimension that windows are ordered by first, after the image; None: dimension 0.
    """

    images: tuple[int, int]
    layers: tuple[tuple[int, int], ...]
    outer: int | None = None

    def places(self, grid: Grid) -> list[Place]:
        """Its windows, in the order they run: image by image, the last dimension fastest."""
        chosen = [starts[low:high] for starts, (low, high) in zip(grid.starts, self.layers, strict=True)]
        images = range(*self.images)
        if not self.outer:
            return list(itertools.product(images, *chosen))
        outer = self.outer
        order = [outer, *(d for d in range(len(chosen)) if d != outer)]
        back = [order.index(d) for d in range(len(chosen))]
        return [(image, *(point[i] for i in back)) for image in images for point in itertools.product(*(chosen[d] for d in order))]

    def region(self, grid: Grid) -> tuple[tuple[int, int], ...]:
        """For each dimension, the first voxel of its windows and the last + 1."""
        return tuple(
            (starts[low], starts[high - 1] + size) for starts, (low, high), size in zip(grid.starts, self.layers, grid.roi_size, strict=True)
        )

    def halves(self) -> tuple[Box, Box] | None:
        """Two boxes of half as many images, or half as many windows in the dimension that has most; None for a single window."""
        halves = self.parts(2, along_images=self.images[1] - self.images[0] > 1)
        return (halves[0], halves[1]) if len(halves) == 2 else None

    def parts(self, count: int, *, along_images: bool) -> list[Box]:
        """At most ``count`` boxes that differ in size by one at most, cut between images or in the dimension that has most windows."""
        if along_images:
            return [replace(self, images=images) for images in _cut(self.images, count)]
        longest = max(range(len(self.layers)), key=lambda d: self.layers[d][1] - self.layers[d][0])
        layers = self.layers
        return [replace(self, layers=(*layers[:longest], part, *layers[longest + 1 :])) for part in _cut(layers[longest], count)]

    def shares(self, count: int) -> list[Box]:
        """``parts`` cut where the largest is smallest; between images when that makes no difference, as these share no voxel."""
        return min((self.parts(count, along_images=flag) for flag in (True, False)), key=lambda boxes: max(box.window_count for box in boxes))

    @property
    def window_count(self) -> int:
        count = self.images[1] - self.images[0]
        for low, high in self.layers:
            count *= high - low
        return count


def make_grid(image_size: Sizes, roi_size: Sizes, overlap: Sequence[float]) -> Grid:
    """The windows that MONAI's function of the same arguments runs: ``int(roi_size * (1 - overlap))`` apart, at least 1."""
    starts = []
    for size, roi, part in zip(image_size, roi_size, overlap, strict=True):
        step = roi if roi == size else max(int(roi * (1 - part)), 1)
        count = -(-(size - roi) // step) + 1
        starts.append(tuple(min(index * step, size - roi) for index in range(count)))
    return Grid(image_size, roi_size, tuple(starts))


def whole(grid: Grid, images: int) -> Box:
    """All windows of all images."""
    return Box((0, images), tuple((0, len(starts)) for starts in grid.starts))


def buffered(grid: Grid, images: int, steps: int, dim: int) -> list[Box]:
    """The boxes of ``buffer_steps``: each image by itself, ``steps`` windows along ``dim`` at a time."""
    full = tuple((0, len(starts)) for starts in grid.starts)
    boxes = []
    for image in range(images):
        for low in range(0, len(grid.starts[dim]), steps):
            layers = (*full[:dim], (low, min(low + steps, full[dim][1])), *full[dim + 1 :])
            boxes.append(Box((image, image + 1), layers, dim))
    return boxes


def read_roi_size(roi_size: Sequence[int | None] | int | None, image_size: Sizes) -> Sizes:
    """A size for each dimension; one that is None, 0 or negative is the image's. Raises UserError."""
    given = per_dimension(roi_size, len(image_size), "roi_size")
    if not all(value is None or float(value).is_integer() for value in given):
        raise UserError(f"sliding_window_inference: roi_size: expected whole numbers, got {roi_size!r}")
    return tuple(int(value) if value is not None and value > 0 else size for value, size in zip(given, image_size, strict=True))


def read_overlap(overlap: Sequence[float] | float, rank: int) -> tuple[float, ...]:
    """An overlap for each dimension. Raises UserError."""
    given = per_dimension(overlap, rank, "overlap")
    if not all(0 <= value < 1 for value in given):
        raise UserError(f"sliding_window_inference: overlap: expected at least 0 and less than 1, got {overlap!r}")
    return given


def per_dimension(value: Any, rank: int, name: str) -> tuple[Any, ...]:
    """``value`` for each dimension, where it is one for all. Raises UserError when it is a sequence of another length."""
    if value is None or isinstance(value, numbers.Real):
        return (value,) * rank
    try:
        given = tuple(value)
    except TypeError:
        raise UserError(f"sliding_window_inference: {name}: expected a number or {rank} of them, got {value!r}") from None
    if len(given) != rank:
        raise UserError(
            f"sliding_window_inference: {name}: expected a number or {rank} of them, one for each spatial dimension of the inputs (batch, channel, "
            f"{rank} spatial), got {value!r}. Are the channels last? Then move them: inputs.movedim(-1, 1)"
        )
    return given


def _cut(bounds: tuple[int, int], count: int) -> list[tuple[int, int]]:
    low, high = bounds
    count = min(count, high - low)
    edges = [low + (high - low) * index // count for index in range(count + 1)]
    return list(itertools.pairwise(edges))
