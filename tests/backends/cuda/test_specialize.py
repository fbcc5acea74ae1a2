"""A dynamic graph at one set of shapes: sizes are numbers, weights are shared, the results are the same."""

from __future__ import annotations

import pytest
import torch
from tests.backends.make_segment import make_segment

from torchkiln.backends.cuda.specialize import specialize
from torchkiln.errors import BuildFailed


class Heads(torch.nn.Module):
    """Sizes in views, in arithmetic and in an expansion."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 8)

    def forward(self, x):
        batch, length, _ = x.shape
        heads = self.linear(x).view(batch, length, 2, 4).transpose(1, 2).reshape(batch * 2, length, 4)
        return heads, self.linear.bias.expand(batch, length // 2, 8) + length


@pytest.fixture(scope="module")
def dynamic():
    torch.manual_seed(0)
    return make_segment(Heads(), [torch.randn(3, 10, 6)], [{0: (2, 9), 1: (2, 40)}]).graph_module


@pytest.mark.parametrize("shape", [(3, 10, 6), (1, 7, 6), (5, 2, 6)])
def test_same_results(dynamic, shape):
    graph_module = specialize(dynamic, [shape])
    graph_module.graph.lint()
    x = torch.randn(shape)
    with torch.no_grad():
        for got, expected in zip(graph_module(x), Heads.forward(_bound(dynamic), x), strict=True):
            torch.testing.assert_close(got, expected)


def _bound(graph_module):
    """Heads with the graph's weights, for shapes that the dynamic graph itself does not allow (a batch of 1)."""
    heads = Heads()
    heads.load_state_dict({name.replace("module.", ""): tensor for name, tensor in _tensors(graph_module).items()})
    return heads


def _tensors(graph_module):
    """The model's tensors by their names in it."""
    by_shape = {(8, 6): "linear.weight", (8,): "linear.bias"}
    held = {node.target: getattr(graph_module, node.target) for node in graph_module.graph.find_nodes(op="get_attr")}
    return {by_shape[tuple(tensor.shape)]: tensor for tensor in held.values()}


def test_every_size_is_a_number(dynamic):
    graph_module = specialize(dynamic, [(4, 12, 6)])
    for node in graph_module.graph.nodes:
        assert "sym_size" not in str(node.target)
        assert getattr(node.target, "__module__", "") not in ("_operator", "operator") or "getitem" in str(node.target)
        if node.op != "output":
            value = node.meta["val"]
            assert all(type(size) is int for size in (*value.shape, *value.stride()))
    (outputs,) = graph_module.graph.output_node().args
    assert [tuple(node.meta["val"].shape) for node in outputs] == [(8, 12, 4), (4, 6, 8)]


def test_weights_are_shared_and_the_graph_is_left_alone(dynamic):
    before = [node.format_node() for node in dynamic.graph.nodes]
    shapes = [getattr(node.meta.get("val"), "shape", None) for node in dynamic.graph.nodes]
    graph_module = specialize(dynamic, [(4, 12, 6)])
    held = {tensor.data_ptr() for tensor in _tensors(dynamic).values()}
    assert {tensor.data_ptr() for tensor in graph_module.buffers()} == held
    assert [node.format_node() for node in dynamic.graph.nodes] == before
    assert [getattr(node.meta.get("val"), "shape", None) for node in dynamic.graph.nodes] == shapes


def test_shapes_that_do_not_run(dynamic):
    with pytest.raises(BuildFailed, match=r"does not run at input shapes \[\(4, 12, 7\)\]"):
        specialize(dynamic, [(4, 12, 7)])
