"""Which convolutions are one product: those whose result is one."""

from __future__ import annotations

import pytest
import torch

from torchkiln.backends.cuda.is_matrix_product import is_matrix_product

CASES = {
    "1-D": ((5, 4, 1), 1, 0, False, 1),
    "2-D": ((5, 4, 1, 1), 1, 0, False, 1),
    "3-D": ((5, 4, 1, 1, 1), 1, 0, False, 1),
    "taps": ((5, 4, 1, 3), 1, 0, False, 1),
    "strided": ((5, 4, 1, 1), 2, 0, False, 1),
    "padded": ((5, 4, 1, 1), 1, 1, False, 1),
    "grouped": ((6, 2, 1, 1), 1, 0, False, 2),
    "transposed": ((4, 5, 1, 1), 1, 0, True, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_those_that_are_one_product_are_computed_as_one(name):
    shape, stride, padding, transposed, groups = CASES[name]
    rank = len(shape) - 2
    x, weight = torch.randn(2, 4, *(3, 5, 2)[:rank]), torch.randn(shape)
    y = torch.ops.aten.convolution.default(x, weight, None, [stride] * rank, [padding] * rank, [1] * rank, transposed, [0] * rank, groups)
    by_rows = torch.movedim(x, 1, -1) @ weight.flatten(1).T if weight[0].numel() == x.shape[1] else None
    is_one = by_rows is not None and by_rows.shape == y.movedim(1, -1).shape and torch.allclose(by_rows, y.movedim(1, -1), atol=1e-5)
    assert is_matrix_product(shape, [stride] * rank, [padding] * rank, transposed, groups) is is_one
