"""An ONNX model of one node, run by the importer and by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from torchkiln.capture.onnx.load import load_onnx

Array = np.ndarray


def model_of(
    op_type: str,
    inputs: list[Array | None],
    constants: dict[int, Array] | None = None,
    outputs: int = 1,
    opset: int = 18,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """One node; ``inputs`` with a constant at that position are initializers, None is an input left out."""
    constants = constants or {}
    names = ["" if value is None and i not in constants else f"in{i}" for i, value in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"out{i}" for i in range(outputs)], name="the_node", domain=domain, **attributes)
    values = [
        helper.make_tensor_value_info(f"in{i}", helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for i, v in enumerate(inputs)
        if v is not None and i not in constants
    ]
    # Without types of outputs: ONNX Runtime infers them.
    results = [onnx.ValueInfoProto(name=f"out{i}") for i in range(outputs)]
    weights = [numpy_helper.from_array(v, f"in{i}") for i, v in constants.items()]
    graph = helper.make_graph([node], "one", values, results, weights)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8 if opset < 21 else 10)


def run_both(model: onnx.ModelProto, feeds: list[Array], folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """``(ours, ONNX Runtime's)``."""
    path = folder / "m.onnx"
    onnx.save(model, path)
    module, inputs = load_onnx(path)
    assert len(inputs) == len(feeds)
    with torch.no_grad():
        result = module(*(torch.from_numpy(np.asarray(f).copy()) for f in feeds))
    ours = list(result.values()) if isinstance(result, dict) else [result]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    theirs = session.run(None, dict(zip((i.name for i in session.get_inputs()), feeds, strict=True)))
    return ours, [torch.from_numpy(np.asarray(t)) for t in theirs]


def check(
    op_type: str,
    inputs: list[Array | None],
    folder: Path,
    constants: dict[int, Array] | None = None,
    outputs: int = 1,
    opset: int = 18,
    tolerance: float = 1e-5,
    steps: int = 0,
    domain: str = "",
    **attributes: Any,
) -> None:
    """The node gives ONNX Runtime's shapes, dtypes and numbers. ``steps``: by how much integers may differ (a rounding on the edge)."""
    model = model_of(op_type, inputs, constants, outputs, opset, domain, **attributes)
    feeds = [v for i, v in enumerate(inputs) if v is not None and i not in (constants or {})]
    ours, theirs = run_both(model, feeds, folder)
    assert len(ours) == len(theirs)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.shape == wanted.shape
        assert mine.dtype == wanted.dtype
        if steps:
            assert int((mine.int() - wanted.int()).abs().max()) <= steps
        elif mine.is_floating_point():
            torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            assert torch.equal(mine, wanted)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(low: int, high: int, *shape: int, dtype: Any = np.int64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def int64(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def float32(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


__all__ = ["Array", "TensorProto", "check", "float32", "int64", "integers", "model_of", "normal", "run_both"]
