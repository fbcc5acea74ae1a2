"""torchkiln::int8_conv, int8_linear, int8_max_pool and int8_layer_norm: operators of int8 tensors, with everything that fits their epilogue.

All zero points are 0. What is between the sums and the result is float32, whatever comes in and goes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .activation import activate
from .define import define
from .norms import layer_norm
from .quantize import quantize

aten = torch.ops.aten


def int8_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    residual_scale: torch.Tensor | None,
    inverse: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    alpha: float,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """activation(convolution(x, weight) * scales + bias + residual * residual_scale), quantized by ``inverse`` or in a floating ``dtype``.

    Args:
        x: int8 [N, Cin, *spatial], 1 to 3 spatial dimensions.
        weight: int8 [Cout, Cin, *kernel].
        scales: float32 [Cout], that of x times those of the weight.
        bias: floating [Cout].
        residual: of the output's shape, floating, or int8 with a residual_scale, float32 [].
        inverse: float32 [], one over the result's scale, for a ``dtype`` of torch.int8; None for the others.
        low, high: the smallest and the largest integer of the result.
    """
    zeros = [0] * len(stride)
    # Sums of products of 8 bits are exact in float64, which every device has convolutions for.
    sums = aten.convolution.default(x.double(), weight.double(), None, stride, padding, dilation, False, zeros, 1)
    shape = (-1, *[1] * len(stride))
    value = sums.float() * scales.reshape(shape)
    if bias is not None:
        value = value + bias.float().reshape(shape)
    return _finish(value, residual, residual_scale, inverse, activation, alpha, low, high, dtype)


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    residual_scale: torch.Tensor | None,
    inverse: torch.Tensor | None,
    activation: str,
    alpha: float,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``int8_conv`` of a matrix product, x weight^T. x: int8 [..., K], weight: int8 [N, K], residual: [..., N]."""
    value = F.linear(x.double(), weight.double()).float() * scales
    if bias is not None:
        value = value + bias.float()
    return _finish(value, residual, residual_scale, inverse, activation, alpha, low, high, dtype)


def _finish(
    value: torch.Tensor,
    residual: torch.Tensor | None,
    residual_scale: torch.Tensor | None,
    inverse: torch.Tensor | None,
    activation: str,
    alpha: float,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    if residual is not None:
        value = value + (residual.float() if residual_scale is None else residual.float() * residual_scale)
    value = activate(value, activation, alpha)
    return value.to(dtype) if inverse is None else quantize(value, inverse, 0, low, high, dtype)


def int8_max_pool(
    x: torch.Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> torch.Tensor:
    """``max_pool2d`` or ``max_pool3d`` of int8 [N, C, *spatial], as many spatial dimensions as ``kernel_size`` has."""
    pool = {2: aten.max_pool2d.default, 3: aten.max_pool3d.default}[len(kernel_size)]
    return pool(x.float(), kernel_size, stride, padding, dilation, ceil_mode).to(x.dtype)


def int8_layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    inverse: torch.Tensor,
    low: int,
    high: int,
) -> torch.Tensor:
    """``torchkiln::layer_norm`` in float32, quantized: int8. ``inverse``, ``low``, ``high``: as for ``int8_conv``."""
    return quantize(layer_norm(x, normalized_shape, weight, bias, eps, torch.float32), inverse, 0, low, high, torch.int8)


def int8_layer_norm_both(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    inverse: torch.Tensor,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``int8_layer_norm``, and the same before it is quantized, in a floating ``dtype``."""
    value = layer_norm(x, normalized_shape, weight, bias, eps, torch.float32)
    return quantize(value, inverse, 0, low, high, torch.int8), value.to(dtype)


_EPILOGUE = "str activation, float alpha, SymInt low, SymInt high, ScalarType dtype"
_OPERANDS = "Tensor x, Tensor weight, Tensor scales, Tensor? bias, Tensor? residual, Tensor? residual_scale, Tensor? inverse"

define(f"int8_conv({_OPERANDS}, SymInt[] stride, SymInt[] padding, SymInt[] dilation, {_EPILOGUE}) -> Tensor", int8_conv)
define(f"int8_linear({_OPERANDS}, {_EPILOGUE}) -> Tensor", int8_linear)
define(
    "int8_max_pool(Tensor x, SymInt[] kernel_size, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool ceil_mode) -> Tensor",
    int8_max_pool,
)

_NORM = "Tensor x, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, Tensor inverse, SymInt low, SymInt high"
define(f"int8_layer_norm({_NORM}) -> Tensor", int8_layer_norm)
define(f"int8_layer_norm_both({_NORM}, ScalarType dtype) -> (Tensor, Tensor)", int8_layer_norm_both)
