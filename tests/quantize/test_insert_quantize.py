"""Which layers become int8, what the rewritten graph is, and that passes carry it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchkiln.capture.arguments import read_arguments
from torchkiln.capture.capture import capture
from torchkiln.errors import UserError
from torchkiln.inputs import Input
from torchkiln.lower.convert_precision import convert_precision
from torchkiln.lower.graph_edit import constant_of
from torchkiln.lower.pipeline import lower
from torchkiln.program import Program
from torchkiln.ptq import DataLoaderCalibrator, QuantizeOptions
from torchkiln.quantize.calibration import TensorRange
from torchkiln.quantize.insert_quantize import insert_quantize, quantize_weight
from torchkiln.quantize.layers import find_layers
from torchkiln.quantize.quantize_program import QuantizedProgram, quantize_program
from torchkiln.quantize.tensors import find_tensors
from torchkiln.quantized_ops import is_dequantize, is_quantize, read_quantization

from .digits import Cnn

EVERYTHING = QuantizeOptions(stem=True, head=True, depthwise=True)


def program_of(model: nn.Module, *inputs: Input) -> Program:
    program = capture(model.eval(), read_arguments(list(inputs), None, torch.device("cpu"), 0))
    lower(program)
    return program


def quantized(model: nn.Module, spec: Input, options: QuantizeOptions, *, unsigned: bool = False) -> QuantizedProgram:
    data = [torch.randn(5, *spec.opt_shape[1:], generator=torch.Generator().manual_seed(n)) for n in range(3)]
    return quantize_program(program_of(model, spec), DataLoaderCalibrator(data, algorithm="max", options=options), unsigned=unsigned)


def pairs(found: QuantizedProgram) -> list[torch.fx.Node]:
    return [n for n in found.program.graph_module.graph.nodes if is_quantize(n)]


IMAGE = Input((2, 1, 8, 8))


def reasons(options: QuantizeOptions) -> dict[str, str]:
    return {layer.name: layer.reason for layer in find_layers(program_of(Cnn(), IMAGE).graph_module, options)}


def test_names_and_reasons():
    found = reasons(QuantizeOptions())
    assert list(found) == ["stem", "block.first", "block.second", "block.shortcut", "depthwise", "pointwise", "hidden", "head"]
    assert {name for name, reason in found.items() if not reason} == {"block.first", "block.second", "block.shortcut", "pointwise", "hidden"}
    assert "the model's input" in found["stem"]
    assert "the model's output" in found["head"]
    assert "depthwise" in found["depthwise"]


def test_options_choose_layers():
    assert set(reasons(EVERYTHING).values()) == {""}
    found = reasons(QuantizeOptions(skip=("block.*", "hidden")))
    assert {name for name, reason in found.items() if not reason} == {"pointwise"}
    assert "skip" in found["hidden"]
    with pytest.raises(UserError, match="stem: expected True or False"):
        QuantizeOptions(stem=1)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.table = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        x = F.gelu(x)
        a, b = self.first(x), self.second(x)
        c = torch.matmul(a, b.transpose(-1, -2))
        d = F.scaled_dot_product_attention(a[:, None], b[:, None], a[:, None])[:, 0]
        return F.gelu(torch.matmul(F.gelu(c @ d), self.table)).sum(-1)


def test_products_of_activations_stay_floating():
    found = {layer.node.target: layer for layer in find_layers(program_of(Products(), Input((2, 5, 6))).graph_module, EVERYTHING)}
    assert "attention" in found[torch.ops.aten.scaled_dot_product_attention.default].reason
    by_reason = [layer.reason for layer in find_layers(program_of(Products(), Input((2, 5, 6))).graph_module, EVERYTHING)]
    assert sum(reason == "" for reason in by_reason) == 3
    assert sum(reason == "a product of two activations" for reason in by_reason) == 2


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("options", [QuantizeOptions(), EVERYTHING, QuantizeOptions(residuals=False)])
def test_the_graph_is_close_to_the_model(options, unsigned):
    torch.manual_seed(0)
    model = Cnn().eval()
    found = quantized(model, Input(min_shape=(1, 1, 8, 8), opt_shape=(2, 1, 8, 8), max_shape=(9, 1, 8, 8)), options, unsigned=unsigned)
    found.program.graph_module.graph.lint()
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        (got,), expected = found.program.graph_module(x), model(x)
    assert 1e-4 < (got - expected).norm() / expected.norm() < 0.06


def test_one_pair_for_all_readers_of_a_tensor():
    found = quantized(Cnn(), IMAGE, QuantizeOptions())
    names = [n.args[0].name for n in pairs(found)]
    assert len(names) == len(set(names))
    shared = [n for n in found.program.graph_module.graph.nodes if is_dequantize(n) and len(n.users) == 2]
    assert len(shared) == 1, "the block's input, which its first convolution and its shortcut read"


def test_a_sum_reads_integers_beside_the_convolution():
    def residual_inputs(options: QuantizeOptions) -> list[int]:
        graph = quantized(Cnn(), IMAGE, options).program.graph_module.graph
        return [sum(map(is_dequantize, n.all_input_nodes)) for n in graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)]

    assert residual_inputs(QuantizeOptions()) == [1]
    assert residual_inputs(QuantizeOptions(residuals=False)) == [0]


def test_unsigned_only_where_nothing_is_negative():
    model = Cnn()
    signed, unsigned = (quantized(model, IMAGE, EVERYTHING, unsigned=u) for u in (False, True))
    assert {read_quantization(n).dtype for n in pairs(signed)} == {torch.int8}
    for mine, theirs in zip(pairs(unsigned), pairs(signed), strict=True):
        grid = read_quantization(mine)
        is_relu = "relu" in mine.args[0].name or "max_pool" in mine.args[0].name or "view" in mine.args[0].name
        assert grid.dtype is (torch.uint8 if is_relu else torch.int8), mine.args[0].name
        assert grid.high * grid.scale == pytest.approx(127 * read_quantization(theirs).scale)


@pytest.mark.parametrize(
    ("low", "amax", "dtype"),
    [(-0.17, 5.0, torch.uint8), (0.0, 5.0, torch.uint8), (-2.4, 5.0, torch.uint8), (-2.6, 5.0, torch.int8), (-5.0, 5.0, torch.int8)],
)
def test_small_negative_values_have_a_zero_point(low, amax, dtype):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return F.gelu(self.layer(F.gelu(x))).sum(-1)

    graph_module = program_of(Two(), Input((2, 4))).graph_module
    layers = find_layers(graph_module, EVERYTHING)
    tensors = find_tensors(graph_module, layers, EVERYTHING)
    insert_quantize(graph_module, layers, tensors, {t.name: TensorRange(amax, low, amax) for t in tensors}, unsigned=True)
    (node,) = (n for n in graph_module.graph.nodes if is_quantize(n))
    grid = read_quantization(node)
    assert grid.dtype is dtype
    least, most = ((bound - grid.zero_point) * grid.scale for bound in (grid.low, grid.high))
    assert least <= low + 1e-6, "nothing below zero is clipped"
    assert most == pytest.approx(amax, abs=grid.scale)
    assert grid.scale == pytest.approx((amax - low) / 255 if dtype is torch.uint8 else amax / 127)


@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 2), 0), ((4, 7), 1), ((2, 3, 4, 5), 1)])
def test_weights_are_rounded_to_the_nearest_of_their_channel(shape, axis):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(axis))
    weight.select(axis, 1).zero_()
    integers, scales = quantize_weight(weight, axis)
    assert integers.dtype is torch.int8
    assert integers.shape == weight.shape
    spread = scales.reshape([-1 if d == axis else 1 for d in range(weight.dim())])
    assert ((integers * spread - weight).abs() <= spread / 2 * 1.0001).all()
    for channel in range(shape[axis]):
        largest = integers.select(axis, channel).abs().max()
        assert largest == (0 if channel == 1 else 127)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_conversion_leaves_scales_and_pairs(dtype):
    torch.manual_seed(0)
    model = Cnn().eval()
    graph_module = quantized(model, IMAGE, QuantizeOptions()).program.graph_module
    before = [read_quantization(n).scale for n in graph_module.graph.nodes if is_quantize(n)]
    assert convert_precision(graph_module, dtype) > 0
    graph_module.graph.lint()
    assert [read_quantization(n).scale for n in graph_module.graph.nodes if is_quantize(n)] == before
    for node in graph_module.graph.nodes:
        scales = constant_of(read_quantization(node).scale) if is_dequantize(node) else None
        assert scales is None or scales.dtype is torch.float32
    (add,) = graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    assert add.meta["val"].dtype is dtype, "a quantized residual does not draw its sum into float32"
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        (got,), expected = graph_module(x), model(x)
    assert (got - expected).norm() / expected.norm() < 0.08


def test_lowering_a_quantized_graph_again_keeps_it():
    found = quantized(Cnn(), IMAGE, QuantizeOptions())
    graph_module = found.program.graph_module
    x = torch.randn(2, 1, 8, 8)
    before = graph_module(x)[0]
    count = sum(is_quantize(n) or is_dequantize(n) for n in graph_module.graph.nodes)
    lower(found.program)
    assert sum(is_quantize(n) or is_dequantize(n) for n in graph_module.graph.nodes) == count
    torch.testing.assert_close(graph_module(x)[0], before)


def dequantized_weights(graph_module: torch.fx.GraphModule) -> Sequence[torch.Tensor]:
    return [w for n in graph_module.graph.nodes if is_dequantize(n) and (w := constant_of(read_quantization(n).source)) is not None]


def test_a_float64_layer_stays_floating():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6).double()

        def forward(self, x):
            return F.gelu(self.second(F.gelu(self.first(F.gelu(x))).double())).float().sum(-1)

    found = quantized(Mixed(), Input((2, 6)), QuantizeOptions())
    assert found.notes[1] == "int8: 1 of 2 layers; in floating point: 1 it computes in float64 (second)"


def test_a_weight_read_twice_is_stored_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return F.gelu(self.layer(F.gelu(self.layer(F.gelu(x))))).sum(-1)

    found = quantized(Twice(), Input((2, 6)), QuantizeOptions())
    assert len(dequantized_weights(found.program.graph_module)) == 1
    assert found.notes[1] == "int8: 2 of 2 layers"


def test_the_program_itself_is_not_changed():
    program = program_of(Cnn(), IMAGE)
    before = program.graph_module.code
    quantize_program(program, DataLoaderCalibrator([torch.randn(3, 1, 8, 8)], algorithm="max"))
    assert program.graph_module.code == before


def test_nothing_to_quantize_is_an_error():
    with pytest.raises(UserError, match=r"no layer of the model can be quantized.*0 of 1 layers"):
        quantized(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), Input((2, 4)), QuantizeOptions())
