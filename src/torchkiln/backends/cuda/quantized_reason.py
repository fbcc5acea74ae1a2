"""quantized_reason: which quantize/dequantize pairs the CUDA backend computes."""

from __future__ import annotations

import math

import torch

from ...quantized_ops import Quantization


def why_not_a_number(grid: Quantization) -> str:
    """Why a pair on an activation is left to PyTorch; "" when it is of int8 or uint8, by one scale and one zero point that are numbers."""
    if grid.axis is not None or not isinstance(grid.scale, float) or not isinstance(grid.zero_point, int):
        return "the CUDA backend takes activations quantized by one constant scale"
    if not 0 < grid.scale < math.inf:  # above 0, the largest value is that of the largest integer
        return f"the CUDA backend takes scales above 0, not {grid.scale}"
    if grid.dtype not in (torch.int8, torch.uint8):
        return f"the CUDA backend takes pairs of integers of 8 bits, not of {str(grid.dtype).removeprefix('torch.')}"
    return ""
