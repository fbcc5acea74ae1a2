import pytest
import torch
from torch import nn
from torch.export import Dim

from torchkiln.capture.unlift import unlift
from torchkiln.errors import UserError
from torchkiln.lower.decompose import decomposition_table


def _unlifted(model, *args, **kwargs):
    program = torch.export.export(model.eval(), args, **kwargs)
    return unlift(program.run_decompositions(decomposition_table()))


class Tied(nn.Module):
    """A shared weight, a buffer that is not saved, a constant made in forward, and parameter names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
        self.layers[2].weight = self.layers[0].weight
        self.register_buffer("scale", torch.rand(5), persistent=False)

    def forward(self, x):
        return self.layers(x) * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def test_tensors_become_attributes():
    torch.manual_seed(0)
    model = Tied()
    graph_module = _unlifted(model, torch.randn(3, 5))
    assert [n.op for n in graph_module.graph.nodes].count("placeholder") == 1
    attributes = {n.target for n in graph_module.graph.nodes if n.op == "get_attr"}
    assert attributes == set(dict(graph_module.named_buffers()))
    assert all(name.isidentifier() for name in attributes)
    assert sum(b.shape == (5, 5) for b in graph_module.buffers()) == 1  # the shared weight
    assert not any(b.requires_grad for b in graph_module.buffers())
    assert not list(graph_module.parameters())
    x = torch.randn(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(graph_module(x), (model(x),), rtol=0, atol=0)


def test_nodes_keep_values_and_source_lines():
    graph_module = _unlifted(Tied(), torch.randn(3, 5), dynamic_shapes=({0: Dim.DYNAMIC(min=1, max=9)},))
    for node in graph_module.graph.nodes:
        if node.op != "output":
            assert "val" in node.meta, node
        if node.op == "call_function":
            assert "test_unlift.py" in node.meta["stack_trace"] or "torch/nn" in node.meta["stack_trace"]
    assert graph_module(torch.randn(7, 5))[0].shape == (7, 5)


class Mixed(nn.Module):
    def forward(self, x, times, flag):
        y = x * times if flag else x
        return {"y": y, "count": 3, "nothing": None, "batch": x.shape[0], "again": (y, [x])}


def test_constants_are_dropped_on_both_sides():
    x = torch.randn(4, 3)
    graph_module = _unlifted(Mixed(), x, 2, True, dynamic_shapes=({0: Dim.DYNAMIC(min=1, max=9)}, None, None))
    assert [n.name for n in graph_module.graph.nodes if n.op == "placeholder"] == ["x"]
    y, batch, again, same = graph_module(x)
    torch.testing.assert_close(y, x * 2)
    assert batch == 4
    assert again is y
    assert same is x


def test_branches_of_higher_order_operators_come_along():
    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x.exp(), lambda x: x.sin(), (x,))

    graph_module = _unlifted(Branch(), torch.randn(4))
    for sign in (1, -1):
        x = torch.rand(4) * sign
        torch.testing.assert_close(graph_module(x)[0], Branch()(x))


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return x + self.calls


class WritesInput(nn.Module):
    def forward(self, x):
        x.mul_(2)
        return x + 1


@pytest.mark.parametrize(
    ("model", "message"),
    [(CountsCalls(), r"buffer 'calls'.*new tensor"), (WritesInput(), r"input 'x'"), (nn.BatchNorm1d(5), r"buffer 'running_mean'.*model.eval\(\)")],
    ids=["buffer", "input", "training batch norm"],
)
def test_refuses_mutation(model, message):
    program = torch.export.export(model.train(), (torch.randn(3, 5),))
    with pytest.raises(UserError, match=message):
        unlift(program.run_decompositions(decomposition_table()))


def test_refuses_a_dynamic_number():
    class Repeat(nn.Module):
        def forward(self, x, n):
            return x * n

    program = torch.export.export(Repeat(), (torch.randn(3), 4), dynamic_shapes=(None, Dim.DYNAMIC))
    with pytest.raises(UserError, match="0-d tensor"):
        unlift(program.run_decompositions(decomposition_table()))


def test_local_changes_are_fine():
    class Local(nn.Module):
        def forward(self, x):
            y = torch.zeros_like(x)
            y[1:] = x[:-1]
            return y.add_(1)

    x = torch.randn(4, 3)
    torch.testing.assert_close(_unlifted(Local(), x)(x)[0], Local()(x))
