"""The quantize/dequantize dialect: ``torch.ops.quantized_decomposed``, in which every int8 graph of torchkiln is written.

    x -> quantize_per_tensor(scale, zero_point, low, high, int8) -> dequantize_per_tensor(the same) -> layer
    int8 weight -> dequantize_per_channel(scales, zero_points, axis, low, high, int8) -> layer
    int4 weight -> dequantize_per_channel_group(scales, zero_points, low, high, int8, group_size, dtype) -> layer

Integers of 4 bits are kept two to a byte, and taken apart by torch's shifts. The operators are torch's own, with a reference in plain torch each,
so a quantized graph runs in PyTorch as it is: its numbers are those of an int8 kernel with exact sums. They are registered when
``register_quantized_ops`` is called, not when torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

NAMESPACE = "quantized_decomposed"
_QUANTIZE = ("quantize_per_tensor", "quantize_per_channel")
_DEQUANTIZE = ("dequantize_per_tensor", "dequantize_per_channel", "dequantize_per_channel_group")

#: What the layers of a quantized graph keep: inputs and weights in 8 bits, or weights alone in 8 or in 4 bits (and 8 where 4 do not fit).
INT8, WEIGHT8, WEIGHT4 = "int8", "w8", "w4"


def register_quantized_ops() -> Any:
    """``torch.ops.quantized_decomposed``, its operators registered."""
    import torch.ao.quantization.fx._decomposed  # the import is the registration

    return torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Quantization:
    """What a quantize or dequantize call says of its integers: ``value = (integer - zero_point) * scale``.

    Attributes:
        source: the tensor that is quantized or dequantized.
        scale, zero_point: numbers, or nodes of 0-D tensors; per channel nodes of 1-D tensors, by group of (channels, groups). No zero point: 0.
        axis: the dimension of the channels; None per tensor.
        low, high: the smallest and the largest integer.
        dtype: the integers' dtype.
        group_size: how many neighbours along the last dimension of a matrix share a scale; None where all of a channel do.
    """

    source: Node
    scale: Any
    zero_point: Any
    axis: int | None
    low: int
    high: int
    dtype: torch.dtype
    group_size: int | None = None

    @property
    def is_4_bit(self) -> bool:
        return self.high - self.low < 16

    def is_same_grid(self, other: Quantization) -> bool:
        """Whether both speak of the same integers: all is equal but the source."""
        mine, theirs = ((q.scale, q.zero_point, q.axis, q.low, q.high, q.dtype, q.group_size) for q in (self, other))
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


def quantization_kind(graph: torch.fx.Graph) -> str:
    """INT8 where an activation is quantized; else WEIGHT8, or WEIGHT4 where an integer of 4 bits is among the weights."""
    if any(map(is_quantize, graph.nodes)):
        return INT8
    return WEIGHT4 if any(is_dequantize(node) and read_quantization(node).is_4_bit for node in graph.nodes) else WEIGHT8


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
        zero_point=zero_point if (zero_point := given.get("zero_point", given.get("zero_points"))) is not None else 0,
        axis=0 if "group_size" in given else given.get("axis"),
        low=given["quant_min"],
        high=given["quant_max"],
        dtype=given["dtype"],
        group_size=given.get("group_size"),
    )
