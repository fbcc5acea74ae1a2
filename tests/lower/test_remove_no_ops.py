import pytest
import torch
from torch import nn

from torchkiln.lower.graph_edit import insert_call
from torchkiln.lower.remove_no_ops import remove_no_ops

aten = torch.ops.aten


class Module(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


SAME = {
    "view to the same shape": lambda x: x.view(x.shape).relu(),
    "expand to the same shape": lambda x: x.expand(x.shape[0], -1, -1, -1).relu(),
    "identity permutation": lambda x: x.permute(0, 1, 2, 3).relu(),
    "clone": lambda x: x.relu().clone().exp(),
    "whole slice": lambda x: x[:, :].relu(),
    "add zero": lambda x: (x + 0.0).relu(),
    "subtract zero": lambda x: (x - 0).relu(),
    "multiply by one": lambda x: (x * 1.0).relu(),
    "divide by one": lambda x: (x / 1).relu(),
    "pad nothing": lambda x: nn.functional.pad(x, (0, 0, 0, 0)).relu(),
    "roll by nothing": lambda x: torch.roll(x, (0, 0), (2, 3)).relu(),
    "join one": lambda x: torch.cat([x.relu()], 1).exp(),
    "pool to the same size": lambda x: nn.functional.adaptive_avg_pool2d(x, (6, 5)).relu(),
    "repeat once": lambda x: x.repeat(1, 1, 1, 1).relu(),
    "cast to the same dtype": lambda x: x.to(torch.float32, copy=True).relu(),
    "multiply by a constant one": lambda x: (x * torch.tensor(1.0)).relu(),
    "squeeze nothing": lambda x: x.squeeze(2).relu(),
}


@pytest.mark.parametrize("name", SAME)
def test_removes(lowering, name):
    model = Module(SAME[name])
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(4, 3, 6, 5))
    before = lowering.ops(graph_module)
    removed = remove_no_ops(graph_module)
    left = set(lowering.ops(graph_module)) - {"sym_size.int"}
    assert left <= {"relu.default", "exp.default"}
    assert removed == sum(before.values()) - sum(lowering.ops(graph_module).values())
    lowering.check_equal(graph_module, model, torch.randn(3, 3, 6, 5))


DIFFERENT = {
    "square permutation": lambda x: x.permute(0, 1, 3, 2).relu(),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1).relu(),
    "part of a slice": lambda x: x[:, 1:].relu(),
    "every second": lambda x: x[..., ::2].relu(),
    "copy into another layout": lambda x: x.permute(0, 2, 3, 1).contiguous().relu(),
    "integers plus a fraction of nothing": lambda x: (x.long() * 1.0).relu(),
    "cast": lambda x: x.double().relu(),
    "divide and floor": lambda x: torch.div(x, 1, rounding_mode="floor").relu(),
    "multiply by ones that broadcast": lambda x: (x[:, :1] * torch.ones(1, 3, 1, 1)).relu(),
    "pool": lambda x: nn.functional.adaptive_avg_pool2d(x, (3, 6)).relu(),
    "flip": lambda x: x.flip(2).relu(),
    "roll": lambda x: torch.roll(x, (1, 0), (2, 3)).relu(),
    "clone for the caller": lambda x: x.relu().clone(),
    "an input plus zero for the caller": lambda x: x + 0.0,
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_leaves_alone(lowering, name):
    model = Module(DIFFERENT[name])
    graph_module = lowering.capture(model, torch.randn(2, 3, 6, 6))
    remove_no_ops(graph_module)  # what capture itself left in
    before = lowering.ops(graph_module)
    assert remove_no_ops(graph_module) == 0
    assert lowering.ops(graph_module) == before
    x = torch.randn(2, 3, 6, 6)
    lowering.check_equal(graph_module, model, x)
    assert all(out.data_ptr() != x.data_ptr() for out in graph_module(x))


def test_leaves_what_depends_on_a_symbol(lowering):
    """A view to (batch, 18) is no no-op for a (batch, 3, 6) tensor; one to (batch * 2, 9) of a (2 * batch, 9) is."""
    model = Module(lambda x: x.view(x.shape[0], -1).relu().view(x.shape[0] * 2, 9).view(-1, 9).exp())
    graph_module = lowering.capture_dynamic_batch(model, torch.randn(4, 3, 6))
    assert remove_no_ops(graph_module) == 1
    assert lowering.ops(graph_module)["view.default"] == 2
    for batch in (1, 5):
        lowering.check_equal(graph_module, model, torch.randn(batch, 3, 6))


def test_removes_eval_dropout_and_keeps_training_dropout(lowering):
    graph_module = lowering.capture(Module(lambda x: x.relu().exp()), torch.randn(2, 3))
    relu, exp = (n for n in graph_module.graph.nodes if n.op == "call_function")
    for probability, training in ((0.5, False), (0.0, True), (0.5, True)):
        dropout = insert_call(graph_module, aten.dropout.default, (relu, probability, training), before=exp)
        exp.replace_input_with(exp.args[0], dropout)
        relu = dropout
    assert remove_no_ops(graph_module) == 2
    assert lowering.ops(graph_module)["dropout.default"] == 1


def test_removes_assertions_that_the_types_prove(lowering):
    graph_module = lowering.capture(Module(lambda x: x.relu()), torch.randn(2, 3))
    relu = next(n for n in graph_module.graph.nodes if n.op == "call_function")
    output = graph_module.graph.output_node()
    with graph_module.graph.inserting_before(output):
        graph_module.graph.call_function(aten._assert_tensor_metadata.default, (relu, [2, 3], None, torch.float32))
        wrong = graph_module.graph.call_function(aten._assert_tensor_metadata.default, (relu, None, None, torch.float16))
    assert remove_no_ops(graph_module) == 1
    assert [n for n in graph_module.graph.nodes if n.target is aten._assert_tensor_metadata.default] == [wrong]
