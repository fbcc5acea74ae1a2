import torch
from torch import nn

from torchkiln.lower.merge_common_subexpressions import merge_common_subexpressions


class Repeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x):
        a = (x * self.weight).view(x.shape[0], 15).relu()
        b = (x * self.weight).view(x.shape[0], 15).relu()
        return a + b


def test_merges_chains(lowering):
    graph_module = lowering.capture_dynamic_batch(Repeats(), torch.randn(4, 5, 3))
    assert merge_common_subexpressions(graph_module) >= 3
    assert lowering.ops(graph_module)["mul.Tensor"] == lowering.ops(graph_module)["view.default"] == lowering.ops(graph_module)["relu.default"] == 1
    torch.manual_seed(1)
    model = Repeats()
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(4, 5, 3))
    merge_common_subexpressions(graph_module)
    lowering.check_equal(graph_module, model, torch.randn(3, 5, 3))


class Distinct(nn.Module):
    """Numbers that compare equal in Python, and draws that are never equal."""

    def forward(self, x, ids):
        return ids + 1, ids + 1.0, x * 0.0, x * -0.0, torch.rand(3), torch.rand(3), x.sum(0), x.sum(1)


def test_leaves_what_differs(lowering):
    model = Distinct()
    args = torch.randn(3, 3), torch.arange(4)
    graph_module = lowering.capture(model, *args)
    assert merge_common_subexpressions(graph_module) == 0
    outputs = graph_module(*args)
    assert outputs[0].dtype == torch.int64
    assert outputs[1].dtype == torch.float32
    assert not torch.equal(outputs[4], outputs[5])


class SameTwice(nn.Module):
    def forward(self, x):
        return x.relu(), x.relu()


def test_two_outputs_stay_two_tensors(lowering):
    graph_module = lowering.capture(SameTwice(), torch.randn(3))
    assert merge_common_subexpressions(graph_module) == 0
    a, b = graph_module(torch.randn(3))
    assert a.data_ptr() != b.data_ptr()
