"""quantization: rules of the dialect's ``quantize`` and ``dequantize``, so that pairs no int8 kernel takes in are part of pointwise kernels."""

from __future__ import annotations

import torch

from ....fused_ops import quantize as _quantize  # noqa: F401  (registers the operators)
from .rules import RULES, Call, literal


def _quantized(c: Call) -> str:
    x, inverse = c("x", torch.float32, exact=True), c("inverse", torch.float32)
    zero_point, low, high = (literal(c.value(name), torch.float32) for name in ("zero_point", "low", "high"))
    return f"quantize({x} * {inverse}, {zero_point}, {low}, {high}).to(tl.{'int8' if c.dtype == torch.int8 else 'uint8'})"


def _dequantized(c: Call) -> str:
    zero_point = c.value("zero_point")
    x = c("x", torch.float32)
    return f"({x} - {literal(zero_point, torch.float32)}) * {c('scale', torch.float32)}" if zero_point else f"{x} * {c('scale', torch.float32)}"


RULES[torch.ops.torchkiln.quantize.default] = _quantized
RULES[torch.ops.torchkiln.dequantize.default] = _dequantized
