"""keep_float32: names, marks in the graph, and what the backends make of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.backends.copy_graph_module import copy_graph_module
from torchkiln.errors import UserError
from torchkiln.lower.convert_precision import convert_precision
from torchkiln.lower.keep_float32 import is_kept_float32, keep_named, shortest_names
from torchkiln.precision_search.assignment import Narrowing
from torchkiln.quantize.quantize_program import copy_graph, quantize_program

from .models import draw, program_of


def kept_in(graph_module, *patterns: str) -> list[str]:
    copied = copy_graph(graph_module)
    keep_named(copied, patterns)
    return [node.name for node in copied.graph.nodes if is_kept_float32(node)]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["mul_1"], ["mul_1", "unsqueeze"]),  # a view goes with what it shows
        (["aten.linear"], ["linear", "linear_1", "linear_2"]),
        (["aten.linear.default"], ["linear", "linear_1", "linear_2"]),
        (["mid", "head"], ["linear_1", "linear_2"]),
        (["*e?d"], ["linear_2"]),
    ],
)
def test_names(overflow, patterns, expected) -> None:
    assert kept_in(overflow.graph_module, *patterns) == expected
    assert not any(is_kept_float32(node) for node in overflow.graph_module.graph.nodes)


def test_a_name_that_names_nothing(overflow) -> None:
    with pytest.raises(UserError, match=r"'hed' names no operator, node or module of the lowered graph .*; did you mean 'head'"):
        kept_in(overflow.graph_module, "hed")


def test_shortest_names(constant) -> None:
    nodes = [n for n in constant.graph_module.graph.nodes if n.op == "call_function"]
    chosen = [n for n in nodes if n.name in ("convolution_1", "relu_1")]
    assert shortest_names(chosen, nodes) == ["offset", "relu_1"]


class Names(nn.Module):
    """A module that is called twice and has the name of its first node; one whose name begins with an underscore."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self._linear = nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(self.relu(self.relu(x) - 0.5))


def test_names_of_modules_and_of_nodes_are_told_apart() -> None:
    graph_module = program_of(Names().eval(), draw(2, 5)).graph_module
    assert kept_in(graph_module, "relu") == ["relu", "relu_1"]
    assert kept_in(graph_module, "_linear") == ["linear"]
    nodes = [n for n in graph_module.graph.nodes if n.op == "call_function"]
    for name in ("relu", "relu_1", "linear"):
        found = shortest_names([n for n in nodes if n.name == name], nodes)
        assert kept_in(graph_module, *found) == [name]
    assert shortest_names([n for n in nodes if n.name.startswith("relu")], nodes) == ["relu"]


def test_a_kept_node_computes_in_float32_and_its_readers_do_not(constant) -> None:
    module = copy_graph_module(constant.graph_module)
    keep_named(module, ["offset"])
    convert_precision(module, torch.bfloat16)
    dtypes = {n.name: n.meta["val"].dtype for n in module.graph.nodes if n.op == "call_function"}
    assert [dtypes[f"convolution{end}"] for end in ("", "_1", "_2")] == [torch.bfloat16, torch.float32, torch.bfloat16]
    (output,) = module(*constant.example_inputs)
    assert output.dtype == torch.float32


def test_a_kept_layer_is_not_quantized(constant, calibrator) -> None:
    program = Narrowing(constant, calibrator).program
    marked = type(program)(**{**program.__dict__, "graph_module": copy_graph(program.graph_module)})
    keep_named(marked.graph_module, ["plain"])
    found = quantize_program(marked, calibrator)
    assert any("kept in float32 (keep_float32) (plain)" in note for note in found.notes)
    assert any("int8: 2 of 4 layers" in note for note in found.notes)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(inputs, 8, 3, padding=1) for inputs in (3, 8, 8))
        self.linear = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x).relu()).sigmoid())
        return self.linear(x.relu().mean((2, 3))).softmax(-1) * 2


@pytest.fixture(scope="module")
def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().eval()


def test_openvino_keeps_a_convolution_and_leaves_a_matrix_product_to_pytorch(mixed) -> None:
    from torchkiln.backends.openvino.precision import reject_precision

    if reject_precision(torch.bfloat16) is not None:
        pytest.skip("this CPU has no bf16")
    x = draw(2, 3, 9, 9)
    options = {"backend": "openvino", "enabled_precisions": {torch.bfloat16}}
    engine = torchkiln.compile(mixed, [x], keep_float32={"second"}, **options)
    (segment,) = engine.contents.segments
    layers = {row["name"].partition("/")[0]: row["dtype"] for row in segment.artifact.metadata["layers"] if row["type"] == "Convolution"}
    assert layers == {"convolution": "bf16", "convolution_1": "fp32", "convolution_2": "bf16"}

    engine = torchkiln.compile(mixed, [x], keep_float32={"linear"}, **options)
    assert [s.backend for s in engine.report().segments][:2] == ["openvino", "torch"]
    (reject,) = [r for r in engine.report().rejects if r.subject == "aten.linear.default"]
    assert "keep_float32: OpenVINO computes it in bf16" in reject.reason


class Softplus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.linear(x).exp().log1p()).sigmoid()


def test_openvino_leaves_to_pytorch_what_it_makes_another_operator_of() -> None:
    from torchkiln.backends.openvino.precision import reject_precision

    if reject_precision(torch.bfloat16) is not None:
        pytest.skip("this CPU has no bf16")
    options = {"backend": "openvino", "enabled_precisions": {torch.bfloat16}, "min_block_size": 1}
    engine = torchkiln.compile(Softplus().eval(), [draw(2, 6)], keep_float32={"exp"}, **options)
    (reject,) = [r for r in engine.report().rejects if "keep_float32" in r.reason]
    assert reject.subject == "aten.exp.default"
    assert [s.backend for s in engine.report().segments] == ["openvino", "torch", "openvino"]


def test_openvino_tells_what_each_node_takes(mixed) -> None:
    from torchkiln.backends.registry import get_backend

    x = draw(2, 3, 9, 9)
    engine = torchkiln.compile(mixed, [x], backend="openvino", verify=False)
    (segment,) = engine.contents.segments
    times = get_backend("openvino").layer_times(segment.artifact, [x], 1)
    assert {"convolution", "convolution_1", "convolution_2", "linear"} <= times.keys()
    assert times.keys() <= {node.name for node in program_of(mixed, x).graph_module.graph.nodes}
    assert all(us >= 0 for us in times.values())
    assert get_backend("torch").layer_times(segment.artifact, [x], 1) == {}


class OwnPairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        round_ = lambda value: torch.fake_quantize_per_tensor_affine(value, 0.02, 0, -128, 127)  # noqa: E731
        return self.head(nn.functional.linear(round_(x), round_(self.linear.weight), self.linear.bias).relu())


def test_a_models_own_int8_is_not_undone() -> None:
    x = draw(2, 6)
    with pytest.raises(UserError, match="keep_float32: linear reads int8 by the model's own quantize/dequantize pairs"):
        torchkiln.compile(OwnPairs().eval(), [x], enabled_precisions={torch.bfloat16}, keep_float32={"linear"})
    with pytest.raises(UserError, match="the model has quantize/dequantize pairs of its own"):
        torchkiln.compile(OwnPairs().eval(), [x], precision="auto", max_error=0.1)


def test_weights_of_what_is_kept_stay_floating() -> None:
    from torchkiln.quantize.weight_layers import find_weight_layers

    program = program_of(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval(), draw(2, 256))
    keep_named(program.graph_module, ["2"])
    first, second = find_weight_layers(program.graph_module, 8, 128)
    assert (first.bits, second.bits) == (8, 0)
    assert second.reason == "kept in float32 (keep_float32)"
