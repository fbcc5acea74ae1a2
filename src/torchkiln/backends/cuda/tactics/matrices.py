"""matrices: a linear layer or a 1x1 convolution as a product of matrices whose rows the tensor memory accelerator can walk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..recipe import ALIGNMENT_BYTES, Config, TensorSpec
from .conv_geometry import leading_dims


@dataclass(frozen=True)
class Matrices:
    """y[rows, columns] = x[rows, depth] w[columns, depth]^T. Strides: elements from row to row."""

    rows: int
    columns: int
    depth: int
    x_stride: int
    residual_stride: int
    y_stride: int
    has_residual: bool


def rows_reject(specs: Sequence[TensorSpec]) -> str:
    """Why x, the residual where there is one, and y (``specs``, their channels last) are no rows of one stride; "" when they are."""
    for spec in specs:
        if spec.numel == 0:
            return "an empty tensor"
        if spec.strides[-1] != 1 and spec.shape[-1] != 1:
            return "elements of a row that do not lie next to each other"
    sizes, strides = leading_dims(specs)
    if len(sizes) > 1:
        return "rows that no common stride walks"
    for spec, stride in zip(specs, strides, strict=True):
        if stride and (stride[0] <= 0 or stride[0] * spec.dtype.itemsize % ALIGNMENT_BYTES):
            return f"rows {stride[0] * spec.dtype.itemsize} bytes apart, not a multiple of {ALIGNMENT_BYTES}"
    return ""


def matrices_of(specs: Sequence[TensorSpec]) -> Matrices:
    """The product of ``specs`` that ``rows_reject`` takes. A single row has a stride all the same: of whole aligned units."""
    sizes, strides = leading_dims(specs)
    apart = [own[0] if own else round_up(spec.shape[-1], spec.dtype.itemsize) for own, spec in zip(strides, specs, strict=True)]
    return Matrices(sizes[0] if sizes else 1, specs[-1].shape[-1], specs[0].shape[-1], apart[0], apart[1], apart[-1], len(specs) == 3)


def round_up(length: int, itemsize: int) -> int:
    """Elements of ``itemsize`` bytes, as many as whole aligned units hold."""
    unit = ALIGNMENT_BYTES // itemsize
    return -(-length // unit) * unit


def tile_count(shape: Matrices, config: Config) -> int:
    """Tiles of BM x BN that y has."""
    return -(-shape.rows // config["BM"]) * -(-shape.columns // config["BN"])
