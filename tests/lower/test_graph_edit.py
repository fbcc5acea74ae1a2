import pytest
import torch
from torch import nn

from torchkiln.lower.graph_edit import constant_of, insert_call, insert_constant, is_pure, is_same_sizes, unique_name
from torchkiln.lower.remove_dead_code import remove_dead_code

aten = torch.ops.aten


@pytest.fixture
def graph_module(lowering):
    return lowering.capture_dynamic_batch(nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), torch.randn(3, 2, 3))


def test_insert_call_keeps_symbols(graph_module, lowering):
    linear = next(n for n in graph_module.graph.nodes if n.target is aten.linear.default)
    output = graph_module.graph.output_node()
    doubled = insert_call(graph_module, aten.cat.default, ([linear, linear], 1), before=output, like=linear)
    batch = graph_module.graph.find_nodes(op="placeholder")[0].meta["val"].shape[0]
    assert is_same_sizes(doubled.meta["val"].shape, (batch, 8))
    assert not is_same_sizes(doubled.meta["val"].shape, (3, 8))
    assert doubled.meta["stack_trace"] == linear.meta["stack_trace"]
    output.args = ((doubled,),)
    graph_module.recompile()
    lowering.check_graph(graph_module)
    assert graph_module(torch.randn(5, 2, 3))[0].shape == (5, 8)


def test_insert_constant_takes_a_free_name(graph_module):
    output = graph_module.graph.output_node()
    nodes = [insert_constant(graph_module, "0.table", torch.full((2,), float(i)), before=output) for i in range(3)]
    assert [n.target for n in nodes] == ["t_0_table", "t_0_table_1", "t_0_table_2"]
    assert [constant_of(n).tolist() for n in nodes] == [[0, 0], [1, 1], [2, 2]]
    assert unique_name(graph_module, "t_0_table") == "t_0_table_3"
    assert unique_name(graph_module, "forward") == "forward_1"


def test_constant_of_other_things(graph_module):
    assert constant_of(graph_module.graph.find_nodes(op="placeholder")[0]) is None
    assert constant_of(graph_module.graph.output_node()) is None
    assert constant_of(1.5) is None
    assert constant_of(None) is None


def test_purity(graph_module):
    placeholder = graph_module.graph.find_nodes(op="placeholder")[0]
    calls = {
        aten.relu.default: True,
        aten.sym_size.int: True,
        aten.relu_.default: False,
        aten.rand_like.default: False,
        aten.bernoulli.default: False,
        aten.empty_like.default: False,
        aten._assert_async.default: False,
    }
    with graph_module.graph.inserting_after(placeholder):
        for target, expected in calls.items():
            node = graph_module.graph.call_function(target, (placeholder, 0) if target is aten.sym_size.int else (placeholder,))
            assert is_pure(node) is expected, target
    assert not is_pure(placeholder)


def test_remove_dead_code(graph_module):
    output = graph_module.graph.output_node()
    x = graph_module.graph.find_nodes(op="placeholder")[0]
    dead = insert_call(graph_module, aten.relu.default, (x,), before=output)
    insert_call(graph_module, aten.exp.default, (dead,), before=output)
    insert_constant(graph_module, "unread", torch.ones(2), before=output)
    checked = insert_call(graph_module, aten.gt.Scalar, (x, 0), before=output)
    total = insert_call(graph_module, aten.all.default, (checked,), before=output)
    with graph_module.graph.inserting_before(output):
        graph_module.graph.call_function(aten._assert_async.msg, (total, "must be positive"))
    assert remove_dead_code(graph_module) == 4  # two calls, a get_attr, a tensor
    assert not hasattr(graph_module, "unread")
    assert remove_dead_code(graph_module) == 0
    graph_module(torch.rand(2, 2, 3) + 1)
    with pytest.raises(RuntimeError, match="must be positive"):
        graph_module(-torch.rand(2, 2, 3))
