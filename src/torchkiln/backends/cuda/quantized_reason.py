"""quantized_reason: which quantize/dequantize pairs the CUDA backend computes."""

from __future__ import annotations

from ...dtypes import dtype_name
from ...quantized_ops import Quantization


def why_not_a_number(grid: Quantization) -> str:
    """Why a pair on an activation is left to PyTorch; "" when it is of 8 bits, by one scale and one zero point that are numbers."""
    if grid.axis is not None or not isinstance(grid.scale, float) or not isinstance(grid.zero_point, int):
        return "the CUDA backend takes activations quantized by one constant scale"
    if grid.dtype.itemsize != 1:
        return f"the CUDA backend takes pairs of 8 bits, not of {dtype_name(grid.dtype)}"
    return ""
