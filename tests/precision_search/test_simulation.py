"""Units cover the graph, and a simulated assignment gives the numbers of the graph that a backend compiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch.fx import Interpreter

from torchkiln.lower.keep_float32 import computes_float32, keep_float32
from torchkiln.partition.support import is_compute
from torchkiln.precision_search.assignment import Assignment, Narrowing
from torchkiln.precision_search.simulation import Simulation
from torchkiln.precision_search.units import find_units
from torchkiln.quantize.quantize_program import copy_graph
from torchkiln.verify.parity import compare

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32


def test_every_operator_is_in_one_unit(constant, calibrator) -> None:
    layers = Narrowing(constant, calibrator).int8_layers()
    units = find_units(constant.graph_module, layers)
    assert [unit.name for unit in units] == ["stem", "offset", "plain", "head"]
    assert [unit.int8 for unit in units] == [(), ("offset",), ("plain",), ("head",)]
    nodes = [name for unit in units for name in unit.nodes]
    assert nodes == [n.name for n in constant.graph_module.graph.nodes if is_compute(n) and computes_float32(n)]
    joined = find_units(constant.graph_module, layers, most=2)
    assert [unit.name for unit in joined] == ["stem to offset", "plain to head"]
    assert [name for unit in joined for name in unit.nodes] == nodes
    assert joined[1].int8 == ("plain", "head")


def test_what_is_kept_is_in_no_unit(constant) -> None:
    marked = copy_graph(constant.graph_module)
    keep_float32(n for n in marked.graph.nodes if n.name == "convolution_1")
    units = find_units(marked, [])
    assert "convolution_1" not in [name for unit in units for name in unit.nodes]
    assert len([name for unit in units for name in unit.nodes]) == len([n for n in marked.graph.nodes if is_compute(n)]) - 1


@pytest.mark.parametrize(
    "assignment",
    [
        Assignment(BRAIN),
        Assignment(HALF),
        Assignment(BRAIN, frozenset({"convolution_1", "add"})),
        Assignment(FLOAT, int8=frozenset({"plain", "head"})),
    ],
    ids=["bf16", "fp16", "bf16 with a layer kept", "int8"],
)
def test_the_error_is_that_of_the_converted_graph(assignment, constant, calibrator) -> None:
    narrowing = Narrowing(constant, calibrator)
    simulation = Simulation(narrowing, constant.example_inputs)
    own = simulation.error(assignment)
    with torch.inference_mode():
        native = Interpreter(narrowing.graph(assignment)).run(*constant.example_inputs)
        expected = compare(native, constant.graph_module(*constant.example_inputs)).relative_error
    assert own == pytest.approx(expected, rel=0.5)  # native kernels round here and there
    assert own > 1e-5
    assert simulation.error(assignment) == own
    assert simulation.runs == 1


def test_nothing_narrow_has_no_error_and_everything_kept_neither(constant) -> None:
    simulation = Simulation(Narrowing(constant), constant.example_inputs)
    assert simulation.error(Assignment(FLOAT)) == 0
    everything = frozenset(n.name for n in constant.graph_module.graph.nodes)
    assert simulation.error(Assignment(BRAIN, everything)) == 0


def test_only_what_is_affected_is_run_again(constant) -> None:
    narrowing = Narrowing(constant)
    simulation = Simulation(narrowing, constant.example_inputs)
    graph = narrowing.graph(Assignment(BRAIN, frozenset(n.name for n in constant.graph_module.graph.nodes if n.name != "linear")))
    known = {node.name for node in simulation._unaffected(graph)}
    assert {"convolution", "convolution_2", "mean"} <= known
    assert not {"linear"} & known


def test_overflow_is_an_infinite_error(overflow) -> None:
    simulation = Simulation(Narrowing(overflow), overflow.example_inputs)
    assert math.isinf(simulation.error(Assignment(HALF)))
    assert simulation.error(Assignment(BRAIN)) < 0.1
    assert simulation.error(Assignment(HALF, frozenset({"mul_1", "unsqueeze"}))) < 1e-2
