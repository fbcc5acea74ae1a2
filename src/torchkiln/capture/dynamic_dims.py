"""dynamic_dims: the ranges of the Inputs as torch.export's dynamic shapes, and the shapes to trace at."""

from __future__ import annotations

from typing import Any

from torch.export import Dim, ShapesCollection

from ..inputs import Input, Shape
from .arguments import Arguments


def trace_shape(spec: Input) -> Shape:
    """The shape to trace at: opt, but no dynamic dimension of size 0 or 1 (torch.export would take such a size for a constant)."""
    return tuple(
        size if lo == hi or size >= 2 else min(max(2, lo), hi) for lo, size, hi in zip(spec.min_shape, spec.opt_shape, spec.max_shape, strict=True)
    )


def dynamic_shapes(arguments: Arguments) -> ShapesCollection | None:
    """torch.export's description of the dimensions that vary; None when every shape is fixed.

    A range is given as ``Dim.DYNAMIC``: torch.export then finds relations between dimensions by itself and fails, rather than
    quietly making one constant.
    """
    if not any(spec.is_dynamic for spec in arguments.inputs):
        return None
    shapes = ShapesCollection()
    for tensor, spec in zip(arguments.tensors, arguments.inputs, strict=True):
        dims: dict[int, Any] = {d: Dim.DYNAMIC(min=spec.min_shape[d], max=spec.max_shape[d]) for d in spec.dynamic_dims}
        if dims:
            shapes[tensor] = dims
    return shapes
