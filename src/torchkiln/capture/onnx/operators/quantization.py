"""quantization: QuantizeLinear and DequantizeLinear as torch's own pair of operators, so that they stay visible as such, and integer products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators quantized_decomposed::*

from ..node import Call, Node, Value
from .convolution import convolve

_q = torch.ops.quantized_decomposed
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def _range_of(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return info.min, info.max


def _known_scale(call: Call) -> tuple[float, int] | None:
    """One scale and zero point for the whole tensor, known while tracing; else None."""
    scale, zero = call.numbers(1), call.numbers(2)
    if scale is None or scale.values.size != 1 or (call.has(2) and zero is None):
        return None
    return float(scale.flat()[0]), int(zero.flat()[0]) if zero is not None else 0


def _channel_points(call: Call, scale: torch.Tensor) -> torch.Tensor:
    return call.tensor(2).long() if call.has(2) else torch.zeros_like(scale, dtype=torch.int64)


def _is_for_channels(call: Call) -> bool:
    shape = call.inputs[1].shape
    return len(shape) == 1 and shape[0] != 1 and not call.get("block_size", 0)


def _quantize_linear(call: Call) -> Value:
    value = call.tensor(0)
    asked = call.get("output_dtype", 0)
    dtype = call.inputs[2].dtype if call.has(2) else call.dtype(asked) if asked else torch.uint8
    if dtype in _FLOAT8:
        limit = torch.finfo(dtype).max
        return torch.clamp(value / _spread(call, call.tensor(1), value), -limit, limit).to(dtype)
    low, high = _range_of(dtype)
    known = _known_scale(call)
    if known is not None:
        return _q.quantize_per_tensor(value, *known, low, high, dtype)
    scale = call.tensor(1)
    if _is_for_channels(call):
        return _q.quantize_per_channel(value, scale.float(), _channel_points(call, scale), call.get("axis", 1) % value.dim(), low, high, dtype)
    rounded = torch.round(value / _spread(call, scale, value))
    if call.has(2):
        rounded = rounded + _spread(call, call.tensor(2), value).to(rounded.dtype)
    return torch.clamp(rounded, low, high).to(dtype)


def _dequantize_linear(call: Call) -> Value:
    value, out_dtype = call.tensor(0), call.inputs[1].dtype
    if value.dtype in _FLOAT8:
        return value.to(out_dtype) * _spread(call, call.tensor(1), value)
    low, high = _range_of(value.dtype)
    known = _known_scale(call)
    if known is not None:
        return _q.dequantize_per_tensor(value, *known, low, high, value.dtype, out_dtype=out_dtype)
    scale = call.tensor(1)
    if _is_for_channels(call):
        axis, points = call.get("axis", 1) % value.dim(), _channel_points(call, scale)
        return _q.dequantize_per_channel(value, scale, points, axis, low, high, value.dtype, out_dtype=out_dtype)
    wide = value.to(out_dtype)
    if call.has(2):
        wide = wide - _spread(call, call.tensor(2), value).to(out_dtype)
    return wide * _spread(call, scale, value)


def _spread(call: Call, parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A scale or zero point so that it broadcasts with ``value``: one for all, one for a channel, or one for a block of the axis."""
    axis, block = call.get("axis", 1) % max(value.dim(), 1), call.get("block_size", 0)
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, value.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if d == axis else 1 for d in range(value.dim())])


def _dynamic_quantize_linear(call: Call) -> Value:
    value = call.tensor(0)
    low, high = torch.clamp(value.amin(), max=0), torch.clamp(value.amax(), min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / safe), 0, 255)
    quantized = torch.clamp(torch.round(value / safe) + zero, 0, 255).to(torch.uint8)
    return quantized, scale, zero.to(torch.uint8)


def _centred(call: Call, index: int, zero: int, dtype: torch.dtype) -> torch.Tensor:
    value = call.tensor(index).to(dtype)
    point = call.optional(zero)
    if point is None:
        return value
    point = point.to(dtype)
    if point.dim() == 1 and point.numel() > 1 and index == 0:
        point = point.unsqueeze(-1)  # one for a row of the left factor
    return value - point


def _matmul_integer(call: Call) -> Value:
    # float64 holds every sum of products of 8-bit integers exactly, and has a fast product.
    return torch.matmul(_centred(call, 0, 2, torch.float64), _centred(call, 1, 3, torch.float64)).to(torch.int32)


def _conv_integer(call: Call) -> Value:
    weight = call.tensor(1).to(torch.float64)
    zero = call.optional(3)
    if zero is not None:
        weight = weight - (zero.to(torch.float64).reshape(-1, *[1] * (weight.dim() - 1)) if zero.numel() > 1 else zero.to(torch.float64).reshape(()))
    point = call.optional(2)
    value = call.tensor(0).to(torch.float64)
    value = value if point is None else value - point.to(torch.float64).reshape(())
    return convolve(call, value, weight, None).to(torch.int32)


def _part(call: Call, operator: Callable[[Call], Any], inputs: tuple[int, ...], axis: int = 1) -> torch.Tensor:
    node = Node(call.node.op_type, call.node.domain, call.opset, call.node.name, (), ("",), {"axis": axis}, {})
    return operator(Call(node, [call.inputs[i] if call.has(i) else None for i in inputs], call.setting))


def _requantized(call: Call, result: torch.Tensor, scale: int, zero: int) -> torch.Tensor:
    node = Node(call.node.op_type, call.node.domain, call.opset, call.node.name, (), ("",), {}, {})
    return _quantize_linear(Call(node, [result, call.inputs[scale], call.inputs[zero]], call.setting))


def _qlinear_matmul(call: Call) -> Value:
    a = _part(call, _dequantize_linear, (0, 1, 2), axis=-2)
    b = _part(call, _dequantize_linear, (3, 4, 5), axis=-1)
    return _requantized(call, torch.matmul(a, b), 6, 7)


def _qlinear_conv(call: Call) -> Value:
    value = _part(call, _dequantize_linear, (0, 1, 2))
    weight = _part(call, _dequantize_linear, (3, 4, 5), axis=0)
    bias = call.optional(8)
    if bias is not None:
        bias = bias.to(value.dtype) * (call.tensor(1).reshape(()) * call.tensor(4).reshape(-1))
    return _requantized(call, convolve(call, value, weight, bias), 6, 7)


OPERATORS: dict[str, Callable[[Call], Value]] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "MatMulInteger": _matmul_integer,
    "ConvInteger": _conv_integer,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearConv": _qlinear_conv,
}
