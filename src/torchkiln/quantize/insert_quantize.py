"""insert_quantize: write quantize/dequantize pairs into a graph, and its weights as int8.

Activations: one scale a tensor, zero stays zero. Integers -128 to 127, 127 standing for the calibrated magnitude; or, where that is asked for and
calibration saw no negative value, or only small ones (after gelu), 0 to 255, with the integer that stands for zero moved up by them. Weights:
symmetric, one scale an output channel, integers -127 to 127, 127 standing for the channel's largest magnitude. Biases stay floating.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.fx import GraphModule, Node

from ..lower.graph_edit import constant_of, insert_call, insert_constant
from ..lower.remove_dead_code import remove_dead_code
from ..quantized_ops import register_quantized_ops
from .calibration import TensorRange
from .layers import Layer
from .tensors import QuantizedTensor

ACTIVATION_RANGE = (-128, 127)
UNSIGNED_RANGE = (0, 255)
#: Unsigned integers with a zero point are used where the values below zero go no further than this share of those above, as after gelu.
_MOST_SHIFT = 0.5
WEIGHT_RANGE = (-127, 127)
#: The scale where all is zero: any would do.
_SMALLEST_SCALE = 1e-12


def insert_quantize(
    graph_module: GraphModule, layers: Sequence[Layer], tensors: Sequence[QuantizedTensor], ranges: Mapping[str, TensorRange], *, unsigned: bool
) -> int:
    """Rewrite ``graph_module``, in place. Returns the number of int8 layers.

    Args:
        ranges: what calibration found of each tensor, by its name.
        unsigned: use 0 to 255 for tensors whose negative values are few or none: CPU kernels take them, and they round half as coarsely. GPU
            kernels do not.
    """
    for tensor in tensors:
        _quantize_activation(graph_module, tensor, ranges[tensor.name], unsigned)
    written: dict[tuple[Node, int], Node] = {}
    quantized = [layer for layer in layers if layer.is_quantized]
    for layer in quantized:
        assert layer.weight is not None
        key = (layer.weight, layer.channel_axis)
        if key not in written:
            written[key] = _quantize_weight(graph_module, layer.weight, layer.channel_axis)
        layer.node.update_arg(layer.weight_index, written[key])
    remove_dead_code(graph_module)
    graph_module.recompile()
    return len(quantized)


def _quantize_activation(graph_module: GraphModule, tensor: QuantizedTensor, found: TensorRange, unsigned: bool) -> None:
    source, ops = tensor.source, register_quantized_ops()
    place = _place_after(source)
    grid = _unsigned_grid(found) if unsigned and -found.low < _MOST_SHIFT * found.amax else None
    grid = grid or (max(found.amax / ACTIVATION_RANGE[1], _SMALLEST_SCALE), 0, *ACTIVATION_RANGE, torch.int8)
    integers = insert_call(graph_module, ops.quantize_per_tensor.default, (source, *grid), before=place, like=source)
    values = insert_call(graph_module, ops.dequantize_per_tensor.default, (integers, *grid), _out_dtype(source), before=place, like=source)
    for reader, position in tensor.readers:
        reader.update_arg(position, values)


def _unsigned_grid(found: TensorRange) -> tuple[float, int, int, int, torch.dtype]:
    """0 to 255 for what lies between the lowest value seen (0 where none is negative) and the calibrated magnitude; one of the integers is zero."""
    below = max(0.0, -found.low)
    scale = max((found.amax + below) / UNSIGNED_RANGE[1], _SMALLEST_SCALE)
    return scale, math.ceil(below / scale - 1e-6), *UNSIGNED_RANGE, torch.uint8


def _quantize_weight(graph_module: GraphModule, weight: Node, axis: int) -> Node:
    """The weight as a dequantized int8 constant, in place of ``weight``: before its first reader."""
    tensor, ops = constant_of(weight), register_quantized_ops()
    assert tensor is not None
    integers, scales = quantize_weight(tensor, axis)
    parts = [
        insert_constant(graph_module, f"{weight.target}_{name}", value, before=weight)
        for name, value in (("int8", integers), ("scales", scales), ("zeros", torch.zeros(len(scales), dtype=torch.int64, device=scales.device)))
    ]
    arguments = (*parts, axis, *WEIGHT_RANGE, torch.int8)
    return insert_call(graph_module, ops.dequantize_per_channel.default, arguments, _out_dtype(weight), before=weight, like=next(iter(weight.users)))


def quantize_weight(weight: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``(integers, scales)``: int8 of the weight's shape, and float32 (channels,) of dimension ``axis``."""
    wide = weight.detach().float()
    others = [d for d in range(wide.dim()) if d != axis]
    scales = (wide.abs().amax(others) / WEIGHT_RANGE[1]).clamp(min=_SMALLEST_SCALE)
    spread = scales.reshape([-1 if d == axis else 1 for d in range(wide.dim())])
    return (wide / spread).round().clamp(*WEIGHT_RANGE).to(torch.int8), scales


def _out_dtype(node: Node) -> dict[str, torch.dtype]:
    dtype = node.meta["val"].dtype
    return {} if dtype is torch.float32 else {"out_dtype": dtype}


def _place_after(node: Node) -> Node:
    if node.op != "placeholder":
        return node.next
    nodes = list(node.graph.nodes)
    return next(n.next for n in reversed(nodes) if n.op == "placeholder")
