"""round_low: the same graph with every fp16 or bf16 value rounded to its type and computed with in float32."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from torchkiln.backends.copy_graph_module import copy_graph_module
from torchkiln.backends.onnxruntime.library import import_onnxruntime
from torchkiln.backends.tensorrt.convert import convert_segment
from torchkiln.backends.tensorrt.onnx_check import make_stand_in, onnx_error
from torchkiln.backends.tensorrt.round_low import round_low
from torchkiln.lower.convert_precision import convert_precision
from torchkiln.verify.parity import compare

from ..make_segment import make_segment

ort = pytest.importorskip("onnxruntime")
BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT


def graph(weight: torch.Tensor) -> bytes:
    """x (fp32) -> cast to bf16 -> times a bf16 weight -> plus a bf16 constant -> y (bf16), and its cast to fp32."""
    raw = weight.bfloat16().view(torch.int16).numpy().tobytes()
    tensor = helper.make_tensor("w", BF16, list(weight.shape), raw, raw=True)
    one = helper.make_tensor("one", BF16, [1], torch.tensor([0.1]).bfloat16().view(torch.int16).numpy().tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=BF16),
        helper.make_node("MatMul", ["narrow", "w"], ["product"]),
        helper.make_node("Constant", [], ["tenth"], value=one),
        helper.make_node("Add", ["product", "tenth"], ["y"]),
        helper.make_node("Cast", ["y"], ["wide"], to=FP32),
    ]
    values = [helper.make_tensor_value_info(name, BF16, [3, 5]) for name in ("product",)]
    values += [helper.make_tensor_value_info("narrow", BF16, [3, 7]), helper.make_tensor_value_info("tenth", BF16, [1])]
    outputs = [helper.make_tensor_value_info("y", BF16, [3, 5]), helper.make_tensor_value_info("wide", FP32, [3, 5])]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", FP32, [3, 7])], outputs, [tensor], value_info=values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_values_are_those_of_bf16():
    torch.manual_seed(0)
    weight, x = torch.randn(7, 5), torch.randn(3, 7)
    rounded, _ = round_low(graph(weight), {})
    onnx.checker.check_model(onnx.ModelProto.FromString(rounded), full_check=True)
    session = import_onnxruntime().InferenceSession(rounded, providers=["CPUExecutionProvider"])
    assert [port.type for port in session.get_outputs()] == ["tensor(bfloat16)", "tensor(float)"]
    (wide,) = session.run(["wide"], {"x": x.numpy()})
    product = (x.bfloat16().float() @ weight.bfloat16().float()).bfloat16().float()
    expected = (product + torch.tensor(0.1).bfloat16().float()).bfloat16().float()
    assert torch.equal(torch.from_numpy(wide), expected)
    assert not torch.equal(expected, x @ weight + 0.1)


def test_a_graph_without_either_is_left_alone():
    node = helper.make_node("Relu", ["x"], ["y"])
    ports = [helper.make_tensor_value_info(name, FP32, [3]) for name in "xy"]
    proto = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:])).SerializeToString()
    weights = {"w": torch.ones(3)}
    got, kept = round_low(proto, weights)
    assert got == proto
    assert kept["w"] is weights["w"]


def test_weights_beside_the_graph_are_widened():
    weight = torch.randn(7, 5)
    model = onnx.ModelProto.FromString(graph(weight))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(2 * 35))):
        tensor.external_data.add(key=key, value=value)
    rounded, weights = round_low(model.SerializeToString(), {"w": weight.bfloat16(), "other": torch.ones(2, dtype=torch.int64)})
    assert (weights["w"].dtype, weights["other"].dtype) == (torch.float32, torch.int64)
    (stored,) = onnx.ModelProto.FromString(rounded).graph.initializer
    assert stored.data_type == FP32
    assert {e.key: e.value for e in stored.external_data}["length"] == str(4 * 35)


def test_inputs_of_bf16():
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    ports = [helper.make_tensor_value_info(name, BF16, [3]) for name in "xy"]
    rounded, _ = round_low(helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]), ir_version=10).SerializeToString(), {})
    model = onnx.ModelProto.FromString(rounded)
    assert [p.type.tensor_type.elem_type for p in (*model.graph.input, *model.graph.output)] == [BF16, BF16]
    (mul,) = [n for n in model.graph.node if n.op_type == "Mul"]
    onnx.checker.check_model(model, full_check=True)
    assert list(mul.input) != ["x", "x"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.1), (torch.bfloat16, 0.1)])
def test_results_of_operators_are_rounded_not_weights_alone(dtype, tolerance):
    """The stand-in is as far from fp32 as PyTorch's own narrow graph, and farther than rounded weights are."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(layer for _ in range(8) for layer in (torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU()))).eval()
    for layer in model[::2]:
        torch.nn.init.kaiming_normal_(layer.weight)
        layer.weight.data = layer.weight.to(dtype).float()  # what is left is the rounding of results
        layer.bias.data.zero_()
    x = torch.randn(2, 8, 21, 19).to(dtype).float()
    segment = make_segment(model, (x,))
    graph = convert_segment(segment, dtype)
    found = onnx_error(make_stand_in(graph, 1), segment)
    low = copy_graph_module(segment.graph_module)
    convert_precision(low, dtype)
    with torch.no_grad():
        expected = compare(low(x), segment.graph_module(x)).relative_error
    assert expected > torch.finfo(dtype).eps / 4
    assert found == pytest.approx(expected, rel=tolerance)


def test_an_overflow_of_fp16_is_seen():
    """A sum beyond 65504, which a factor brings back into range: fp32 would hide it."""
    first, second = torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 5, bias=False)
    torch.nn.init.constant_(first.weight, 200.0)
    torch.nn.init.constant_(second.weight, 1e-4)
    x = torch.full((3, 64), 10.0)
    segment = make_segment(torch.nn.Sequential(first, second), (x,))
    graph = convert_segment(segment, torch.float16)
    stand_in = make_stand_in(graph, 1)
    assert torch.isinf(stand_in([x])[0]).all()
    assert onnx_error(stand_in, segment) == float("inf")
