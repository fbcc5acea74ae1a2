"""convert_fake_quantize: the fake_quantize operators of quantization-aware training as pairs of quantize and dequantize.

Both compute the same numbers; the pair says that between them there are integers of 8 bits. Left as they are: ranges of integers beyond 8 bits, and
scales or zero points that are computed from the model's input.

modelopt exports an operator of its own where it has its CUDA extension, ``tensorrt::quantize_op(x, amax, num_bits, exponent_bits, unsigned,
narrow_range)``: ``amax`` stands for 127, or unsigned for 255. It becomes a pair too, or raises UserError when it is not int8: no backend has it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from ..errors import UserError
from ..quantized_ops import register_quantized_ops
from .graph_edit import call_functions, constant_of, insert_call, insert_constant, replace

aten = torch.ops.aten
_MODELOPT = ("tensorrt::quantize_op", "tensorrt::dynamic_block_quantize_op")
#: A scale where all that was seen is zero: values become zero.
_SMALLEST_SCALE = 1e-12
_PER_TENSOR = (aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams)


def convert_fake_quantize(graph_module: GraphModule) -> int:
    """Returns the number of operators converted."""
    converted = 0
    for node in list(graph_module.graph.nodes):
        if isinstance(node.target, OpOverload) and node.target._schema.name in _MODELOPT:
            _convert_modelopt(graph_module, node)
            converted += 1
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
    _replace_by_pair(graph_module, node, quantize, dequantize, (source, *arguments))
    return True


def _convert_modelopt(graph_module: GraphModule, node: Node) -> None:
    given: dict[str, Any] = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore[union-attr]
    where, amax = f"node {node.name}: modelopt's {node.target}", constant_of(given.get("amax"))
    if "block_size" in given or given["num_bits"] != 8 or given["exponent_bits"] != 0:
        bits, exponent = given["num_bits"], given["exponent_bits"]
        raise UserError(
            f"{where}: expected integers of 8 bits with one scale a tensor or a channel, got {bits} bits, {exponent} of them exponent"
            f"{', in blocks' if 'block_size' in given else ''}: quantize the model with INT8_DEFAULT_CFG, or disable this quantizer"
        )
    if amax is None or not bool(amax.isfinite().all()) or (amax.numel() != 1 and amax.numel() not in amax.shape):
        raise UserError(f"{where}: expected a constant range, one for the tensor or for each channel: calibrate the model before its export")
    high = 255 if given["unsigned"] else 127
    low = 0 if given["unsigned"] else -127 if given["narrow_range"] else -128
    dtype, scales = (torch.uint8 if given["unsigned"] else torch.int8), (amax.float() / high).clamp(min=_SMALLEST_SCALE)
    ops = register_quantized_ops()
    if amax.numel() == 1:
        pair = (ops.quantize_per_tensor.default, ops.dequantize_per_tensor.default)
        grid: tuple[Any, ...] = (float(scales), 0, low, high, dtype)
    else:
        axis = next(d for d, size in enumerate(amax.shape) if size == amax.numel())
        zeros = torch.zeros(amax.numel(), dtype=torch.int64, device=amax.device)
        values = (("scales", scales.reshape(-1)), ("zeros", zeros))
        parts = [insert_constant(graph_module, f"{node.name}_{name}", value, before=node) for name, value in values]
        pair = (ops.quantize_per_channel.default, ops.dequantize_per_channel.default)
        grid = (*parts, axis, low, high, dtype)
    _replace_by_pair(graph_module, node, *pair, (given["input"], *grid))


def _replace_by_pair(graph_module: GraphModule, node: Node, quantize: Any, dequantize: Any, arguments: tuple[Any, ...]) -> None:
    """``arguments``: those of ``quantize``; what ``dequantize`` takes is its result, and the same numbers."""
    out_dtype = node.meta["val"].dtype
    kwargs = {} if out_dtype is torch.float32 else {"out_dtype": out_dtype}
    integers = insert_call(graph_module, quantize, arguments, before=node)
    replace(node, insert_call(graph_module, dequantize, (integers, *arguments[1:]), kwargs, before=node))


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
