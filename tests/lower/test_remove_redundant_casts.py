import itertools

import pytest
import torch
from torch import nn

from torchkiln.lower.remove_no_ops import remove_no_ops
from torchkiln.lower.remove_redundant_casts import is_lossless, remove_redundant_casts


class Casts(nn.Module):
    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.dtypes = dtypes

    def forward(self, x):
        x = x.abs()
        for dtype in self.dtypes:
            x = x.to(dtype)
        return x.abs()


@pytest.mark.parametrize(
    ("source", "through", "left"),
    [
        (torch.float16, (torch.float32, torch.float16), 0),
        (torch.float16, (torch.float32, torch.bfloat16), 1),
        (torch.bfloat16, (torch.float64, torch.float32, torch.bfloat16), 0),
        (torch.uint8, (torch.float16, torch.float32, torch.int64), 1),
    ],
)
def test_drops_casts_that_lose_nothing(lowering, source, through, left):
    x = (torch.randn(7, 5) * 60).abs().to(source)
    model = Casts(*through)
    graph_module = lowering.capture(model, x)
    remove_no_ops(graph_module)  # each cast comes with an assertion of the dtype before it
    assert remove_redundant_casts(graph_module) == len(through) - 1
    assert lowering.ops(graph_module)["_to_copy.default"] == left
    lowering.check_equal(graph_module, model, x, tolerance=0)


@pytest.mark.parametrize("through", [(torch.float16, torch.float32), (torch.bfloat16, torch.float16), (torch.int32, torch.float32)])
def test_leaves_casts_that_round(lowering, through):
    model = Casts(*through)
    graph_module = lowering.capture(model, torch.randn(7, 5))
    assert remove_redundant_casts(graph_module) == 0
    lowering.check_equal(graph_module, model, torch.randn(7, 5) * 10, tolerance=0)


def test_keeps_a_wide_value_that_is_read(lowering):
    class Both(nn.Module):
        def forward(self, x):
            wide = x.float()
            return wide + 1, wide.half() * 2

    x = torch.randn(4).half()
    graph_module = lowering.capture(Both(), x)
    remove_no_ops(graph_module)
    assert remove_redundant_casts(graph_module) == 1
    assert lowering.ops(graph_module)["_to_copy.default"] == 1
    lowering.check_equal(graph_module, Both(), x, tolerance=0)


def test_lossless_means_that_every_value_survives():
    """Against the values themselves: extremes, small numbers, and neighbours of powers of two."""
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
    for source, target in itertools.product(dtypes, dtypes):
        if source == torch.bool:
            values = torch.tensor([False, True])
        elif source.is_floating_point:
            info = torch.finfo(source)
            values = torch.tensor([info.max, info.min, info.smallest_normal, 1 + info.eps, -1 - info.eps], dtype=source)
        else:
            info = torch.iinfo(source)
            values = torch.tensor([info.max, info.min, info.max - 1, info.min + 1], dtype=source)
        survives = values.to(target).tolist() == values.tolist()  # Python compares int and float exactly
        assert is_lossless(source, target) == survives, (source, target)
