"""Partitioning: labels, stages, min_block_size, data-dependent shapes, and that the segments together are the graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkiln.backends.contract import Reject
from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.inputs import Input
from torchkiln.partition.extract import extract, symbol_ranges
from torchkiln.partition.partition import partition
from torchkiln.partition.support import is_compute, location
from torchkiln.settings import CompileSettings

CPU = torch.device("cpu")


class Refuses:
    """A backend that takes everything but the named operators."""

    name = "picky"

    def __init__(self, *ops: str) -> None:
        self._ops = ops

    def supports(self, node):
        return Reject(str(node.target), "not in this test") if any(op in str(node.target) for op in self._ops) else None


class Branchy(nn.Module):
    """Two branches, one through sin, that meet again: a wrong grouping would make a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7)

    def forward(self, x):
        a = torch.relu(self.first(x))
        b = torch.sin(a)
        c = torch.tanh(self.second(a))
        d = c * b
        return torch.sigmoid(d) + c, a


def program_of(model, *inputs):
    return capture(model.eval(), read_arguments(list(inputs), None, CPU, 0))


def run_steps(program, steps, inputs):
    """Run the segments in order, as the engine does, in plain PyTorch."""
    placeholders = [n for n in program.graph_module.graph.nodes if n.op == "placeholder"]
    values = dict(zip(placeholders, inputs, strict=True))
    for step in steps:
        values.update(zip(step.outputs, step.segment.graph_module(*(values[n] for n in step.inputs)), strict=True))
    return [values[n] for n in program.graph_module.graph.output_node().args[0]]


def test_whole_graph_is_one_segment_even_below_min_block_size():
    program = program_of(nn.Linear(5, 3), torch.randn(2, 5))
    plan = partition(program.graph_module, Refuses(), CompileSettings(min_block_size=100))
    assert [p.backend for p in plan.parts] == ["picky"]
    assert plan.rejects == {}


def test_branches_split_into_alternating_stages():
    program = program_of(Branchy(), torch.randn(3, 7))
    plan = partition(program.graph_module, Refuses("sin"), CompileSettings(min_block_size=1))
    assert [p.backend for p in plan.parts] == ["picky", "torch", "picky"]
    # tanh does not wait for sin: it belongs to the first segment.
    assert any("tanh" in n.name for n in plan.parts[0].nodes)
    assert sum(p.op_count for p in plan.parts) == sum(is_compute(n) for n in program.graph_module.graph.nodes)


@pytest.mark.parametrize("refused", [("sin",), ("tanh",), ("mul", "relu"), ("linear",), ("sigmoid", "sin", "relu")])
def test_segments_in_order_compute_what_the_graph_computes(refused):
    program = program_of(Branchy(), torch.randn(3, 7))
    plan = partition(program.graph_module, Refuses(*refused), CompileSettings(min_block_size=1))
    steps = extract(program.graph_module, plan, program.inputs, program.example_inputs)
    x = torch.randn(3, 7)
    for got, expected in zip(run_steps(program, steps, [x]), program.graph_module(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_small_segments_go_back_to_pytorch_with_the_reason():
    program = program_of(Branchy(), torch.randn(3, 7))
    plan = partition(program.graph_module, Refuses("sin"), CompileSettings(min_block_size=4))
    assert [p.backend for p in plan.parts] == ["picky", "torch"]
    reasons = {r.reason for r in plan.rejects.values()}
    assert any("fewer than min_block_size=4" in reason for reason in reasons)


def test_torch_executed_ops_by_packet_and_by_overload():
    program = program_of(Branchy(), torch.randn(3, 7))
    for name in ("aten.tanh", "aten.tanh.default", torch.ops.aten.tanh.default):
        plan = partition(program.graph_module, Refuses(), CompileSettings(min_block_size=1, torch_executed_ops={name}))
        assert {n.name for n in plan.rejects} == {"tanh"}


def test_demoted_nodes_stay_in_pytorch():
    program = program_of(Branchy(), torch.randn(3, 7))
    node = next(n for n in program.graph_module.graph.nodes if "tanh" in n.name)
    plan = partition(program.graph_module, Refuses(), CompileSettings(min_block_size=1), {node: Reject("tanh", "slower")})
    assert any(p.backend == "torch" and node in p.nodes for p in plan.parts)


class KeepsSome(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, score):
        x = torch.relu(self.linear(x)).abs()
        kept = torch.nonzero(score > 0.5).squeeze(1)
        return torch.relu(x[kept]).sum(0), x.mean()


def test_data_dependent_shapes_stay_in_pytorch():
    program = program_of(KeepsSome(), torch.randn(9, 4), torch.rand(9))
    plan = partition(program.graph_module, Refuses(), CompileSettings(min_block_size=1))
    reasons = {r.subject: r.reason for r in plan.rejects.values()}
    assert "depends on the data" in reasons["aten.nonzero.default"]
    for part in plan.backend_parts:
        assert not any("nonzero" in n.name or "index" in n.name for n in part.nodes)
    steps = extract(program.graph_module, plan, program.inputs, program.example_inputs)
    for count in (0, 1, 5):
        x, score = torch.randn(9, 4), torch.zeros(9)
        score[:count] = 1
        for got, expected in zip(run_steps(program, steps, [x, score]), program.graph_module(x, score), strict=True):
            torch.testing.assert_close(got, expected)


class SizesInTheMiddle(nn.Module):
    def forward(self, x):
        y = torch.sin(x).flatten(1)
        return y.view(x.shape[0], -1) * x.shape[2], x.shape[0]


def test_dynamic_sizes_cross_segments():
    spec = Input(min_shape=(1, 3, 5), opt_shape=(3, 3, 7), max_shape=(6, 3, 9))
    program = program_of(SizesInTheMiddle(), spec)
    plan = partition(program.graph_module, Refuses("sin"), CompileSettings(min_block_size=1))
    steps = extract(program.graph_module, plan, program.inputs, program.example_inputs)
    for shape in ((1, 3, 5), (6, 3, 9), (4, 3, 6)):
        x = torch.randn(shape)
        out, batch = run_steps(program, steps, [x])
        torch.testing.assert_close(out, torch.sin(x).flatten(1) * shape[2])
        assert batch == shape[0]
    ranges = {(int(r.lower), int(r.upper)) for r in symbol_ranges(program.graph_module, program.inputs).values()}
    assert ranges == {(1, 6), (5, 9)}


def test_segment_ranges_follow_the_inputs():
    spec = Input(min_shape=(1, 3, 8, 8), opt_shape=(3, 3, 10, 10), max_shape=(6, 3, 12, 12))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Identity(), nn.ReLU())
    program = program_of(model, spec)
    plan = partition(program.graph_module, Refuses("convolution"), CompileSettings(min_block_size=1))
    steps = extract(program.graph_module, plan, program.inputs, program.example_inputs)
    assert steps[1].segment.dim_ranges == ({0: (1, 6), 2: (4, 6), 3: (4, 6)},)


def test_location_names_the_users_line():
    program = program_of(Branchy(), torch.randn(3, 7))
    node = next(n for n in program.graph_module.graph.nodes if "tanh" in n.name)
    assert location(node).startswith("tanh (test_partition.py:")
