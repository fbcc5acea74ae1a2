"""round_low: an ONNX graph that rounds every value to fp16 or bf16 where another graph has that type, and computes in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..onnx_export import import_onnx_ir

#: Attributes that name a type by its number.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def round_low(proto: bytes, weights: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, torch.Tensor]]:
    """The graph and its weights with float32 in place of fp16 and bf16, each value that was narrow rounded to what its type holds.

    A graph without either is given back as it is. Inputs and outputs keep their types.
    """
    ir = import_onnx_ir()
    import onnx

    model = ir.serde.deserialize_model(onnx.ModelProto.FromString(proto))
    graph = model.graph
    fp32 = ir.DataType.FLOAT
    low = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    if not _has_low(graph, low):
        return proto, dict(weights)
    for value in graph.initializers.values():
        if value.dtype in low:
            _widen_initializer(ir, value, fp32)
    # Values to round, and what they were: before the rewrite makes them float32.
    produced = [(node, output, output.dtype) for node in graph for output in node.outputs if output.dtype in low]
    for node in graph:
        _widen_attributes(ir, node, low, fp32)
    outputs = set(graph.outputs)
    for node, value, dtype in produced:
        value.dtype = fp32
        narrow = ir.node("Cast", [value], {"to": dtype})
        narrow.outputs[0].dtype = dtype
        wide = ir.node("Cast", [narrow.outputs[0]], {"to": fp32})
        wide.outputs[0].dtype = fp32
        for rounded in (narrow.outputs[0], wide.outputs[0]):
            rounded.shape = value.shape
        if value in outputs:
            position = list(graph.outputs).index(value)
            narrow.outputs[0].name, value.name = value.name, f"{value.name}_wide"
            graph.outputs[position] = narrow.outputs[0]
        value.replace_all_uses_with(wide.outputs[0])
        narrow.replace_input_with(0, value)
        node.graph.insert_after(node, [narrow, wide])
    first = next(iter(graph))
    for value in graph.inputs:
        if value.dtype in low:
            wide = ir.node("Cast", [value], {"to": fp32})
            wide.outputs[0].dtype, wide.outputs[0].shape = fp32, value.shape
            value.replace_all_uses_with(wide.outputs[0])
            wide.replace_input_with(0, value)
            graph.insert_before(first, wide)
    widened = {name: weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight for name, weight in weights.items()}
    return ir.serde.serialize_model(model).SerializeToString(), widened


def _has_low(graph: Any, low: set[Any]) -> bool:
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    return any(value.dtype in low for value in values)


def _widen_initializer(ir: Any, value: Any, fp32: Any) -> None:
    constant = value.const_value
    value.dtype = fp32
    if isinstance(constant, ir.ExternalTensor):
        length = constant.length * 2
        value.const_value = ir.ExternalTensor(
            location=constant.location, offset=0, length=length, dtype=fp32, shape=constant.shape, name=constant.name
        )
    else:
        value.const_value = ir.tensor(constant.numpy().astype("float32"), dtype=fp32, name=constant.name)


def _widen_attributes(ir: Any, node: Any, low: set[Any], fp32: Any) -> None:
    for attribute in list(node.attributes.values()):
        if attribute.name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.value in {int(dtype) for dtype in low}:
            node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(fp32))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in low:
            wide = ir.tensor(attribute.value.numpy().astype("float32"), dtype=fp32)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, wide)
