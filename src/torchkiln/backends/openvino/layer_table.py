"""layer_table: what OpenVINO runs, layer by layer, and in which precision, as the compiled model tells."""

from __future__ import annotations

from typing import Any

from ...quantized_ops import WEIGHT4, WEIGHT8

#: OpenVINO's name of a type -> the short name of a precision. Where an input is an 8-bit integer, the layer is an int8 kernel.
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "u8": "int8", "i8": "int8"}
#: OpenVINO's name of the type of weights that a floating kernel reads -> its short name.
_WEIGHTS = {"u8": WEIGHT8, "i8": WEIGHT8, "u4": WEIGHT4, "i4": WEIGHT4}
#: What the name of a floating kernel ends with ("brgemm_avx512_bf16"); that of an int8 kernel ends with the integers' type.
_KERNELS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
#: Layers that hold a model's time.
_PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_NO_LAYERS = ("Const", "Input", "Output")


def layer_table(compiled: Any) -> list[dict[str, Any]]:
    """For each layer of an ``openvino.CompiledModel``, after fusion: its name, type, the precision it computes in, and its shape (-1: varies)."""
    rows = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision, kernel = (info[key].astype(str) if key in info else "" for key in ("layerType", "runtimePrecision", "primitiveType"))
        if kind in _NO_LAYERS:
            continue
        shape = [d.get_length() if d.is_static else -1 for d in node.get_output_partial_shape(0)]
        rows.append({"name": node.get_friendly_name(), "type": kind, "dtype": _computed_in(kind, precision, kernel), "shape": shape})
    return rows


def _computed_in(kind: str, precision: str, kernel: str) -> str:
    """``"fp32"``, ``"int8"``, or ``"w4+fp32"`` for a floating kernel that reads weights of 4 bits."""
    floats = _KERNELS.get(kernel.rpartition("_")[2], "")
    if kind == "FullyConnected" and precision in _WEIGHTS and floats:
        return f"{_WEIGHTS[precision]}+{floats}"
    return _PRECISIONS.get(precision, precision)


def count_weights(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """``(kept, all)``: how many of the matrix products read weights of 8 or 4 bits."""
    products = [row for row in rows if row["type"] in ("FullyConnected", "MatMul")]
    return sum(row["dtype"].startswith((f"{WEIGHT8}+", f"{WEIGHT4}+")) for row in products), len(products)


def fused_layers(compiled: Any) -> list[tuple[str, str, list[str]]]:
    """For each layer of an ``openvino.CompiledModel``: its name, the precision it computes in, and the names of the layers that became it."""
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision, names = (info[key].astype(str) if key in info else "" for key in ("layerType", "runtimePrecision", "originalLayersNames"))
        if kind not in _NO_LAYERS:
            found.append((node.get_friendly_name(), _PRECISIONS.get(precision, precision), [name for name in names.split(",") if name]))
    return found


def node_of(layer: str) -> str:
    """The frontend's node in a layer's name: ``linear_1/aten.linear.default/Add`` -> ``linear_1``."""
    return layer.partition("/")[0]


def count_int8(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """``(int8, all)``: how many of the convolutions and matrix products are int8 kernels."""
    products = [row for row in rows if row["type"] in _PRODUCTS]
    return sum(row["dtype"] == "int8" for row in products), len(products)
