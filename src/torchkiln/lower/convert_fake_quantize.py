"""convert_fake_quantize: the fake_quantize operators of quantization-aware training as pairs of quantize and dequantize.

Both compute the same numbers; the pair says that between them there are integers of 8 bits. Left as they are: ranges of integers beyond 8 bits, and
scales or zero points that are computed from the model's input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..quantized_ops import register_quantized_ops
from .graph_edit import call_functions, constant_of, insert_call, replace

aten = torch.ops.aten
_PER_TENSOR = (aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams)


def convert_fake_quantize(graph_module: GraphModule) -> int:
    """Returns the number of operators converted."""
    converted = 0
    for node in call_functions(graph_module, *_PER_TENSOR, aten.fake_quantize_per_channel_affine.default):
        converted += _convert(graph_module, node)
    if converted:
        graph_module.recompile()
    return converted


def _convert(graph_module: GraphModule, node: Node) -> bool:
    source, scale, zero_point = node.args[:3]
    low, high = node.args[-2:]
    assert isinstance(low, int)
    assert isinstance(high, int)
    dtype = _dtype_of(low, high)
    if dtype is None:
        return False
    ops = register_quantized_ops()
    if node.target in _PER_TENSOR:
        numbers = _number(scale), _number(zero_point)
        if None in numbers:
            return False
        arguments: tuple[Any, ...] = (float(numbers[0]), int(numbers[1]), low, high, dtype)  # type: ignore[arg-type]
        quantize, dequantize = ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default
    else:
        if constant_of(scale) is None or constant_of(zero_point) is None:
            return False
        arguments = (scale, zero_point, node.args[3], low, high, dtype)
        quantize, dequantize = ops.quantize_per_channel.default, ops.dequantize_per_channel.default
    out_dtype = node.meta["val"].dtype
    kwargs = {} if out_dtype is torch.float32 else {"out_dtype": out_dtype}
    integers = insert_call(graph_module, quantize, (source, *arguments), before=node)
    replace(node, insert_call(graph_module, dequantize, (integers, *arguments), kwargs, before=node))
    return True


def _dtype_of(low: int, high: int) -> torch.dtype | None:
    """The dtype of 8 bits that holds the range."""
    for dtype in (torch.int8, torch.uint8):
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return dtype
    return None


def _number(value: Any) -> float | None:
    """A number, or that of a constant of one element."""
    if isinstance(value, (int, float)):
        return value
    tensor = constant_of(value)
    return tensor.item() if tensor is not None and tensor.numel() == 1 else None
