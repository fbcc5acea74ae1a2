"""Views between a linear layer and an addition go elsewhere, and the numbers stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkiln.backends.cuda.passes.fuse_linear import fuse_linear
from torchkiln.backends.cuda.passes.hoist_linear_views import hoist_linear_views

from .fusion import PRECISIONS, calls, check


class Net(nn.Module):
    def __init__(self, core):
        super().__init__()
        self.core, self.linear = core, nn.Linear(24, 24)

    def forward(self, x):
        return self.core(x, self.linear)


def both(graph_module):
    hoist_linear_views(graph_module)
    return fuse_linear(graph_module)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sequence_first_projection_with_residual(precision):
    """As in torchvision's attention: [N, S, C] -> rows in the order (S, N) -> projection -> back -> residual."""
    core = lambda x, f: x + f(x.transpose(0, 1).reshape(-1, 24)).view(7, 3, 24).transpose(0, 1)  # noqa: E731
    after = check(Net(core), (3, 7, 24), run=both, precision=precision)
    (linear,) = calls(after, "linear")
    assert linear.args[3] is not None


@pytest.mark.parametrize(
    "core",
    [
        lambda x, f: x + f(x).transpose(1, 2).transpose(1, 2).permute(0, 1, 2),
        lambda x, f: (f(x.transpose(0, 1)).transpose(0, 1) + x) * 2,
    ],
)
def test_permutation_between(core):
    (linear,) = calls(check(Net(core), (3, 7, 24), run=both), "linear")
    assert linear.args[3] is not None


@pytest.mark.parametrize(
    "core",
    [
        lambda x, f: torch.ones(3, 24, 7) + f(x).transpose(1, 2),  # the last dimension moves
        lambda x, f: (lambda p: p + x + p.sum())(f(x.transpose(0, 1)).transpose(0, 1)),  # several users
        lambda x, f: f(x.transpose(0, 1)).transpose(0, 1) + torch.ones(24),  # broadcast
    ],
)
def test_left_alone(core):
    (linear,) = calls(check(Net(core), (3, 7, 24), run=both), "linear")
    assert linear.args[3] is None
