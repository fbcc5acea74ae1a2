"""layer_table: what OpenVINO runs, layer by layer, and in which precision, as the compiled model tells."""

from __future__ import annotations

from typing import Any

#: OpenVINO's name of a type -> the short name of a precision. Where an input is an 8-bit integer, the layer is an int8 kernel.
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "u8": "int8", "i8": "int8"}
#: Layers that hold a model's time.
_PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_NO_LAYERS = ("Const", "Input", "Output")


def layer_table(compiled: Any) -> list[dict[str, Any]]:
    """For each layer of an ``openvino.CompiledModel``, after fusion: its name, type, the precision it computes in, and its shape (-1: varies)."""
    rows = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision = (info[key].astype(str) if key in info else "" for key in ("layerType", "runtimePrecision"))
        if kind in _NO_LAYERS:
            continue
        shape = [d.get_length() if d.is_static else -1 for d in node.get_output_partial_shape(0)]
        rows.append({"name": node.get_friendly_name(), "type": kind, "dtype": _PRECISIONS.get(precision, precision), "shape": shape})
    return rows


def count_int8(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """``(int8, all)``: how many of the convolutions and matrix products are int8 kernels."""
    products = [row for row in rows if row["type"] in _PRODUCTS]
    return sum(row["dtype"] == "int8" for row in products), len(products)
