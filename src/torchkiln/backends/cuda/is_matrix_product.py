"""is_matrix_product: which convolutions are one product of matrices, for passes and tactics alike."""

from __future__ import annotations

from collections.abc import Sequence


def is_matrix_product(weight: Sequence[int], stride: Sequence[int], padding: Sequence[int], transposed: bool, groups: int) -> bool:
    """Whether a convolution multiplies its positions as rows by one matrix: 1x1, stride 1, no padding, ungrouped, not transposed.

    Args:
        weight: the weight's shape, [Cout, Cin, *kernel].
        stride, padding: one for each spatial dimension.
    """
    return not transposed and groups == 1 and {*weight[2:], *stride} == {1} and not any(padding)
