"""layout: the order in which a kernel visits elements: dimensions sorted by stride, and merged where every tensor allows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..recipe import TensorSpec


@dataclass(frozen=True)
class Axes:
    """Dimensions from the slowest to the fastest.

    Attributes:
        sizes: of each axis.
        strides: of each tensor over the axes (0: broadcast).
        dims: the dimensions that each axis is made of.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    dims: tuple[tuple[int, ...], ...]

    @property
    def numel(self) -> int:
        return _product(self.sizes)

    @property
    def transposed_axis(self) -> int | None:
        """The axis along which most bytes-to-be-moved lie densely although the last axis is the first tensor's; None where there is none."""
        votes: dict[int, int] = {}
        for strides in self.strides[1:]:
            positive = [(stride, axis) for axis, stride in enumerate(strides) if stride > 0]
            if positive and min(positive)[1] != len(self.sizes) - 1 and strides[-1] > 1:
                axis = min(positive)[1]
                votes[axis] = votes.get(axis, 0) + _product(size for size, stride in zip(self.sizes, strides, strict=True) if stride)
        return max(votes, key=lambda axis: votes[axis]) if votes else None


def _product(sizes: Iterable[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def broadcast_strides(spec: TensorSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of ``spec`` expanded to ``shape``."""
    missing = len(shape) - len(spec.shape)
    strides = [0] * missing
    for size, stride, wanted in zip(spec.shape, spec.strides, shape[missing:], strict=True):
        if size not in (1, wanted):
            raise ValueError(f"{spec.shape} does not broadcast to {tuple(shape)}")
        strides.append(0 if size == 1 else stride)
    return tuple(strides)


def merge_axes(shape: Sequence[int], strides: Sequence[Sequence[int]], apart: Sequence[int] = ()) -> Axes:
    """Axes for tensors of these strides over ``shape``, in the order of the first one's (an output). Sizes of 1 vanish.

    Args:
        apart: dimensions never merged with others, and kept even at size 1 (they come out under the same order rule).
    """
    dims = [d for d in range(len(shape)) if shape[d] != 1 or d in apart]
    dims.sort(key=lambda d: tuple(-s[d] for s in strides))
    merged: list[list[int]] = []
    for d in dims:
        last = merged[-1][-1] if merged else -1
        if merged and d not in apart and last not in apart and all(s[last] == s[d] * shape[d] for s in strides):
            merged[-1].append(d)
        else:
            merged.append([d])
    sizes = tuple(_product([shape[d] for d in run]) for run in merged)
    return Axes(sizes, tuple(tuple(s[run[-1]] for run in merged) for s in strides), tuple(map(tuple, merged)))
