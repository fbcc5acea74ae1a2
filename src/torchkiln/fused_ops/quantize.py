"""torchkiln::quantize and dequantize: ``quantized_decomposed``'s operators per tensor, with the scale in a tensor: one kernel for every scale."""

from __future__ import annotations

import torch

from .define import define


def quantize(x: torch.Tensor, inverse: torch.Tensor, zero_point: int, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
    """clamp(round(x * inverse) + zero_point, low, high) in an integer dtype; computed in float32, halves rounded to even.

    Args:
        x: floating, of any shape.
        inverse: float32 [], one over the scale.
    """
    return torch.clamp(torch.round(x.float() * inverse) + zero_point, low, high).to(dtype)


def dequantize(x: torch.Tensor, scale: torch.Tensor, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
    """(x - zero_point) * scale of integers, computed in float32, in ``dtype``. scale: float32 []."""
    return ((x.float() - zero_point) * scale).to(dtype)


define("quantize(Tensor x, Tensor inverse, SymInt zero_point, SymInt low, SymInt high, ScalarType dtype) -> Tensor", quantize)
define("dequantize(Tensor x, Tensor scale, SymInt zero_point, ScalarType dtype) -> Tensor", dequantize)
