import pytest
import torch
from torch import nn

from torchkiln.lower.remove_no_ops import remove_no_ops
from torchkiln.lower.simplify_views import simplify_views


class Module(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x.relu()).exp()


JOINED = {
    "permutations": (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).permute(1, 0, 2, 3), {"permute.default": 1}),
    "transposes": (lambda x: x.transpose(1, 2).transpose(-1, -2), {"permute.default": 1}),
    "views": (lambda x: x.view(x.shape[0], 3, 20).view(x.shape[0], 60).view(-1, 5, 12), {"view.default": 1}),
    "unsqueeze, then view": (lambda x: x.unsqueeze(1).reshape(x.shape[0], -1), {"view.default": 1}),
}


@pytest.mark.parametrize("name", JOINED)
def test_joins(lowering, name):
    function, expected = JOINED[name]
    model = Module(function)
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(2, 3, 4, 5))
    assert simplify_views(graph_module) >= 1
    ops = lowering.ops(graph_module)
    assert {op: n for op, n in ops.items() if "view" in op or "permute" in op or "squeeze" in op} == expected
    for batch in (1, 3):
        lowering.check_equal(graph_module, model, torch.randn(batch, 3, 4, 5))


def test_permutation_and_its_inverse_vanish(lowering):
    model = Module(lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2))
    graph_module = lowering.capture(model, torch.randn(2, 3, 4, 5))
    assert simplify_views(graph_module) == 1
    assert remove_no_ops(graph_module) == 1
    assert set(lowering.ops(graph_module)) == {"relu.default", "exp.default"}
    lowering.check_equal(graph_module, model, torch.randn(2, 3, 4, 5))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(0, 2, 1, 3).reshape(2, 60),
        lambda x: x.view(2, 12, 5).relu().view(2, 60),
        lambda x: x.permute(0, 2, 1, 3).relu().permute(0, 2, 1, 3),
    ],
    ids=["view of a permutation", "something between two views", "something between two permutations"],
)
def test_leaves_alone(lowering, function):
    model = Module(function)
    graph_module = lowering.capture(model, torch.randn(2, 3, 4, 5))
    before = lowering.ops(graph_module)
    assert simplify_views(graph_module) == 0
    assert lowering.ops(graph_module) == before
    lowering.check_equal(graph_module, model, torch.randn(2, 3, 4, 5))


def test_inner_view_that_is_read_elsewhere_stays(lowering):
    model = Module(lambda x: x.view(2, 12, 5).view(2, 60) + x.view(2, 12, 5).sum(1).sum(-1, keepdim=True))
    graph_module = lowering.capture(model, torch.randn(2, 3, 4, 5))
    assert simplify_views(graph_module) == 1
    lowering.check_equal(graph_module, model, torch.randn(2, 3, 4, 5))
