from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchkiln.errors import ModelSourceError

from ..one_node import TensorProto, check, float32, int64, integers, normal, run_both


@pytest.mark.parametrize("attributes", [{}, {"start": 1}, {"start": -2, "end": -1}])
def test_shape(attributes: dict[str, int], tmp_path: Path) -> None:
    check("Shape", [normal(3, 5, 7)], tmp_path, **attributes)


def test_size_and_identity(tmp_path: Path) -> None:
    check("Size", [normal(3, 5, 7)], tmp_path)
    check("Identity", [normal(3, 5)], tmp_path)


@pytest.mark.parametrize("attributes", [{"value_ints": [3, 1]}, {"value_float": 1.5}, {"value_int": 4}, {"value_floats": [0.1, 2.0]}])
def test_constant(attributes: dict[str, Any], tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    nodes = [helper.make_node("Constant", [], ["c"], **attributes), helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Add", ["x", "f"], ["y"]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])], [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    ours, theirs = run_both(model, [normal(3, 2)], tmp_path)
    assert np.array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("target", [(15, 7), (0, -1), (3, 0, 7, 1), (-1,)])
def test_reshape(target: tuple[int, ...], tmp_path: Path) -> None:
    check("Reshape", [normal(3, 5, 7), int64(*target)], tmp_path, {1: int64(*target)})


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int, tmp_path: Path) -> None:
    check("Flatten", [normal(3, 5, 7)], tmp_path, axis=axis)


def test_transpose(tmp_path: Path) -> None:
    check("Transpose", [normal(3, 5, 7)], tmp_path)
    check("Transpose", [normal(3, 5, 7)], tmp_path, perm=[1, 2, 0])


def test_squeeze_and_unsqueeze(tmp_path: Path) -> None:
    check("Squeeze", [normal(3, 1, 5, 1)], tmp_path)
    check("Squeeze", [normal(3, 1, 5, 1), int64(-1)], tmp_path, {1: int64(-1)})
    check("Squeeze", [normal(3, 1, 5, 1)], tmp_path, opset=11, axes=[1])
    check("Unsqueeze", [normal(3, 5), int64(0, -1)], tmp_path, {1: int64(0, -1)})
    check("Unsqueeze", [normal(3, 5)], tmp_path, opset=11, axes=[1, 2])


def test_concat(tmp_path: Path) -> None:
    check("Concat", [normal(3, 2, 4), normal(3, 5, 4, seed=1), normal(3, 1, 4, seed=2)], tmp_path, axis=-2)


def test_split(tmp_path: Path) -> None:
    check("Split", [normal(3, 7), int64(2, 4, 1)], tmp_path, {1: int64(2, 4, 1)}, outputs=3, axis=1)
    check("Split", [normal(3, 7)], tmp_path, outputs=3, axis=1, num_outputs=3)
    check("Split", [normal(3, 6)], tmp_path, outputs=3, opset=13, axis=1)
    check("Split", [normal(3, 6)], tmp_path, outputs=2, opset=11, axis=1, split=[4, 2])


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 5), (2, 3, 1), (1,)])
def test_expand(shape: tuple[int, ...], tmp_path: Path) -> None:
    check("Expand", [normal(3, 1), int64(*shape)], tmp_path, {1: int64(*shape)})


def test_tile(tmp_path: Path) -> None:
    check("Tile", [normal(3, 5), int64(2, 3)], tmp_path, {1: int64(2, 3)})


@pytest.mark.parametrize("start", [0.0, -1.5])
def test_range(start: float, tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    # A lone Range would have no input: it is added to one.
    bounds = [np.array(v, np.float32) for v in (start, 5.0, 0.75)]
    nodes = [helper.make_node("Range", ["a", "b", "c"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 1])]
    weights = [numpy_helper.from_array(v, n) for v, n in zip(bounds, "abc", strict=True)]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], weights)
    ours, theirs = run_both(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), [normal(2, 1)], tmp_path)
    assert np.allclose(ours[0], theirs[0])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str, tmp_path: Path) -> None:
    pads, fill = int64(0, 1, 2, 0, 2, 1), np.array(0.5, np.float32)
    if mode == "constant":
        check("Pad", [normal(3, 5, 7), pads, fill], tmp_path, {1: pads, 2: fill}, mode=mode)
        check("Pad", [normal(3, 5, 7), int64(0, -1, 2, 0, 2, -1), fill], tmp_path, {1: int64(0, -1, 2, 0, 2, -1), 2: fill})
    else:
        check("Pad", [normal(3, 5, 7), pads], tmp_path, {1: pads}, opset=19, mode=mode)


def test_pad_of_some_axes_and_by_attributes(tmp_path: Path) -> None:
    pads, axes = int64(1, 2, 3, 0), int64(2, 0)
    check("Pad", [normal(3, 5, 7), pads, None, axes], tmp_path, {1: pads, 3: axes})
    check("Pad", [normal(3, 5)], tmp_path, opset=10, pads=[1, 0, 0, 2], value=0.25)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, tmp_path: Path) -> None:
    check("DepthToSpace", [normal(2, 12, 3, 5)], tmp_path, blocksize=2, mode=mode)


def test_space_to_depth(tmp_path: Path) -> None:
    check("SpaceToDepth", [normal(2, 3, 4, 6)], tmp_path, blocksize=2)


@pytest.mark.parametrize("upper", [0, 1])
def test_trilu(upper: int, tmp_path: Path) -> None:
    check("Trilu", [normal(2, 4, 5)], tmp_path, upper=upper)
    check("Trilu", [normal(2, 4, 5), np.array(-1)], tmp_path, {1: np.array(-1)}, upper=upper)


def test_eye_like(tmp_path: Path) -> None:
    check("EyeLike", [normal(4, 5)], tmp_path, k=1)
    check("EyeLike", [normal(4, 5)], tmp_path, dtype=TensorProto.INT64)


@pytest.mark.parametrize("axis", [-1, 1])
def test_one_hot(axis: int, tmp_path: Path) -> None:
    depth, values = np.array(4), float32(-1.0, 2.0)
    check("OneHot", [integers(-5, 6, 3, 5), depth, values], tmp_path, {1: depth, 2: values}, axis=axis)


def test_non_zero(tmp_path: Path) -> None:
    check("NonZero", [integers(0, 2, 3, 5)], tmp_path)


def test_a_shape_computed_from_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"the_node.*Reshape.*computed from a tensor's data"):
        check("Reshape", [normal(3, 5), int64(5, 3)], tmp_path)
