"""The quantize/dequantize dialect: ``torch.ops.quantized_decomposed``, in which every int8 graph of torchkiln is written.

    x -> quantize_per_tensor(scale, zero_point, low, high, int8) -> dequantize_per_tensor(the same) -> layer
    int8 weight -> dequantize_per_channel(scales, zero_points, axis, low, high, int8) -> layer

The operators are torch's own, with a reference in plain torch each, so a quantized graph runs in PyTorch as it is: its numbers are those of an int8
kernel with exact sums. They are registered when ``register_quantized_ops`` is called, not when torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

NAMESPACE = "quantized_decomposed"
_QUANTIZE = ("quantize_per_tensor", "quantize_per_channel")
_DEQUANTIZE = ("dequantize_per_tensor", "dequantize_per_channel")


def register_quantized_ops() -> Any:
    """``torch.ops.quantized_decomposed``, its operators registered."""
    import torch.ao.quantization.fx._decomposed  # the import is the registration

    return torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Quantization:
    """What a quantize or dequantize call says of its integers: ``value = (integer - zero_point) * scale``.

    Attributes:
        source: the tensor that is quantized or dequantized.
        scale, zero_point: numbers, or nodes of 0-D tensors; per channel nodes of 1-D tensors.
        axis: the dimension of the channels; None per tensor.
        low, high: the smallest and the largest integer.
        dtype: the integers' dtype.
    """

    source: Node
    scale: Any
    zero_point: Any
    axis: int | None
    low: int
    high: int
    dtype: torch.dtype

    def is_same_grid(self, other: Quantization) -> bool:
        """Whether both speak of the same integers: all is equal but the source."""
        mine, theirs = ((q.scale, q.zero_point, q.axis, q.low, q.high, q.dtype) for q in (self, other))
        return mine == theirs


def is_quantized_op(node: Node, names: tuple[str, ...] = (*_QUANTIZE, *_DEQUANTIZE)) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and target.namespace == NAMESPACE and target._schema.name.split("::")[1] in names


def is_quantize(node: Any) -> bool:
    """Whether ``node`` makes integers of a floating tensor."""
    return isinstance(node, Node) and is_quantized_op(node, _QUANTIZE)


def is_dequantize(node: Any) -> bool:
    """Whether ``node`` makes a floating tensor of integers."""
    return isinstance(node, Node) and is_quantized_op(node, _DEQUANTIZE)


def has_quantized_ops(graph: torch.fx.Graph) -> bool:
    return any(is_quantized_op(node) for node in graph.nodes)


def read_quantization(node: Node) -> Quantization:
    """What a quantize or dequantize node says. Raises ValueError for another node."""
    if not is_quantized_op(node):
        raise ValueError(f"read_quantization: expected a quantize or dequantize node, got {node.target}")
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return Quantization(
        source=given["input"],
        scale=given.get("scale", given.get("scales")),
        zero_point=given.get("zero_point", given.get("zero_points")),
        axis=given.get("axis"),
        low=given["quant_min"],
        high=given["quant_max"],
        dtype=given["dtype"],
    )
