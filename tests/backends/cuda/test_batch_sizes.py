"""The batch sizes that a dynamic segment is built for, and models whose batch must not be padded."""

from __future__ import annotations

import pytest
import torch
from tests.backends.make_segment import make_segment
from torch.fx import Graph, GraphModule

from torchkiln.backends.cuda.batch_sizes import MAX_BUCKETS, batch_sizes, check_rows_independent
from torchkiln.errors import BuildFailed
from torchkiln.partition.segment import Segment


def segment(*ranges, opt=4):
    """A segment of nothing, with an input [opt, 3] for each range."""
    return Segment("segment_7", GraphModule(torch.nn.Module(), Graph()), ranges, tuple(torch.zeros(opt, 3) for _ in ranges), 0)


@pytest.mark.parametrize(
    ("low", "opt", "high", "expected"),
    [(1, 4, 16, (1, 2, 4, 8, 16)), (3, 5, 9, (3, 4, 5, 8, 9)), (0, 1, 2, (1, 2)), (6, 6, 7, (6, 7)), (1, 1, 1, (1,))],
)
def test_sizes(low, opt, high, expected):
    assert batch_sizes(segment({0: (low, high)}, {0: (low, high)}, opt=opt)) == expected


def test_fixed_shapes():
    assert batch_sizes(segment({}, {})) == ()


@pytest.mark.parametrize("high", [8, 100, 129, 4096, 1_000_000])
@pytest.mark.parametrize("opt", [1, 7])
def test_never_too_many(opt, high):
    sizes = batch_sizes(segment({0: (1, high)}, opt=opt))
    assert {1, opt, high} <= set(sizes)
    assert sizes == tuple(sorted(set(sizes)))
    assert len(sizes) <= MAX_BUCKETS


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        ([{1: (1, 4)}], r"segment_7: input 0 varies in dimensions \[1\]"),
        ([{0: (1, 4)}, {0: (1, 4), 1: (2, 3)}], r"input 1 varies in dimensions \[0, 1\]"),
        ([{0: (1, 4)}, {}], "input 1 is fixed"),
        ([{0: (1, 4)}, {0: (1, 5)}], "different batch ranges"),
    ],
)
def test_other_dimensions(ranges, reason):
    with pytest.raises(BuildFailed, match=reason):
        batch_sizes(segment(*ranges))


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("weight", torch.randn(5, 5))

    def forward(self, x):
        return self.function(x, self.weight)


def dynamic_outputs(function, x=None):
    x = torch.randn(4, 5) if x is None else x
    return check_rows_independent(make_segment(Function(function), [x], [{0: (2, 64)}]))


def test_rows_that_stay_apart():
    assert dynamic_outputs(lambda x, w: torch.softmax(torch.relu(x @ w), 1)) == (True,)
    assert dynamic_outputs(lambda x, w: (x.reshape(x.shape[0], 1, 5).mean(2), w * 2, x > 0)) == (True, False, True)
    assert dynamic_outputs(lambda x, w: w[x], torch.randint(0, 5, (4, 3))) == (True,)


def test_many_rows_are_checked_with_few():
    assert dynamic_outputs(lambda x, w: x @ w, torch.randn(50, 5)) == (True,)


def test_a_model_that_makes_nan():
    assert dynamic_outputs(lambda x, w: (x * 0) / (x * 0)) == (True,)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x - x.mean(0),
        lambda x, w: x.mean(0),
        lambda x, w: torch.softmax(x, 0),
        lambda x, w: x.cumsum(0),
        lambda x, w: x.flip(0),
        lambda x, w: (x, x @ x.T @ x),
    ],
)
def test_rows_that_mix(function):
    with pytest.raises(BuildFailed, match=r"segment_0: output [01] mixes the rows of a batch.*give a fixed batch size"):
        dynamic_outputs(function)


def test_rows_that_mix_behind_integers_that_hide_nan():
    with pytest.raises(BuildFailed, match="mixes the rows of a batch"):
        dynamic_outputs(lambda x, w: (x.relu() * 10).to(torch.int32).amax(0, keepdim=True) * x, torch.randn(1, 5).repeat(4, 1))


def test_a_batch_elsewhere():
    with pytest.raises(BuildFailed, match="the batch elsewhere than in dimension 0"):
        dynamic_outputs(lambda x, w: x.T.contiguous())
