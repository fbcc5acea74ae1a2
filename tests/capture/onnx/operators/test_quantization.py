from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from torchkiln.capture.onnx.load import load_onnx

from ..one_node import Array, check, float32, integers, normal


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("constant", [True, False])
def test_quantize_one_scale(dtype: type, constant: bool, tmp_path: Path) -> None:
    scale, zero = np.array(0.037, np.float32), np.array(3, dtype)
    constants = {1: scale, 2: zero} if constant else {}
    check("QuantizeLinear", [normal(3, 5, 7) * 3, scale, zero], tmp_path, constants, opset=21, steps=1)


def test_quantize_without_a_zero_point(tmp_path: Path) -> None:
    scale = np.array(0.037, np.float32)
    check("QuantizeLinear", [np.abs(normal(3, 5)), scale], tmp_path, {1: scale}, steps=1)


def test_quantize_channels(tmp_path: Path) -> None:
    scale, zero = np.abs(normal(5, seed=1)) * 0.1 + 0.01, integers(-5, 5, 5, dtype=np.int8)
    check("QuantizeLinear", [normal(3, 5, 7), scale, zero], tmp_path, {1: scale, 2: zero}, axis=1, steps=1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("constant", [True, False])
def test_dequantize_one_scale(dtype: type, constant: bool, tmp_path: Path) -> None:
    scale, zero = np.array(0.037, np.float32), np.array(0 if dtype is np.int32 else 3, dtype)
    check("DequantizeLinear", [integers(0, 100, 3, 5, dtype=dtype), scale, zero], tmp_path, {1: scale, 2: zero} if constant else {})


def test_dequantize_channels_and_blocks(tmp_path: Path) -> None:
    value, scale = integers(-100, 100, 4, 6, dtype=np.int8), np.abs(normal(6, seed=1)) + 0.01
    check("DequantizeLinear", [value, scale], tmp_path, axis=1)
    blocks, zero = np.abs(normal(4, 2, seed=1)) + 0.01, integers(-5, 5, 4, 2, dtype=np.int8)
    check("DequantizeLinear", [value, blocks, zero], tmp_path, {1: blocks, 2: zero}, opset=21, axis=1, block_size=3)


def test_the_pair_stays_visible_to_torch_export(tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    scale, zero = numpy_helper.from_array(float32(0.05), "s"), numpy_helper.from_array(np.array([0], np.int8), "z")
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 5])]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], [scale, zero])
    path = tmp_path / "q.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    module, _ = load_onnx(path)
    exported = torch.export.export(module, (torch.randn(3, 5),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC(min=1, max=9)},))
    names = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert names == ["quantized_decomposed.quantize_per_tensor.default", "quantized_decomposed.dequantize_per_tensor.default"]


def test_dynamic_quantize(tmp_path: Path) -> None:
    import onnx

    from ..one_node import model_of, run_both

    model: onnx.ModelProto = model_of("DynamicQuantizeLinear", [normal(3, 5)], outputs=3)
    ours, theirs = run_both(model, [normal(3, 5)], tmp_path)
    assert int((ours[0].int() - theirs[0].int()).abs().max()) <= 1
    torch.testing.assert_close(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])


def bytes_of(*shape: int, seed: int = 0) -> Array:
    return integers(0, 255, *shape, dtype=np.uint8, seed=seed)


def test_integer_products(tmp_path: Path) -> None:
    zeros = [np.array(100, np.uint8), np.array(90, np.uint8)]
    check("MatMulInteger", [bytes_of(3, 5), bytes_of(5, 7, seed=1), *zeros], tmp_path)
    check("ConvInteger", [bytes_of(1, 2, 6, 5), bytes_of(3, 2, 3, 3, seed=1), *zeros], tmp_path, pads=[0, 0, 0, 0])


def test_quantized_products(tmp_path: Path) -> None:
    a, b, y = (np.array(v, np.float32) for v in (0.02, 0.03, 0.4))
    zeros = [np.array(v, np.uint8) for v in (100, 90, 110)]
    check("QLinearMatMul", [bytes_of(3, 5), a, zeros[0], bytes_of(5, 7, seed=1), b, zeros[1], y, zeros[2]], tmp_path, steps=1)
    bias = integers(-50, 50, 3, dtype=np.int32)
    inputs = [bytes_of(1, 2, 6, 5), a, zeros[0], bytes_of(3, 2, 3, 3, seed=1), b, zeros[1], y, zeros[2], bias]
    constants = {i: v for i, v in enumerate(inputs) if i}
    check("QLinearConv", inputs, tmp_path, constants, steps=1, pads=[1, 1, 1, 1])
