"""int8_epilogue: what int8 kernels do with their sums."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate


@triton.jit
def scaled_sums(acc, scales_ptr, bias_ptr, columns, column_ok, HAS_BIAS: tl.constexpr):
    """int32 sums [rows, columns] times the scale of their column, and the bias: float32."""
    value = acc.to(tl.float32) * tl.load(scales_ptr + columns, mask=column_ok, other=0.0)[None, :]
    if HAS_BIAS:
        value += tl.load(bias_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def add_residual(value, residual, scale_ptr, HAS_SCALE: tl.constexpr):
    """``value`` (float32) and a residual, int8 with a scale or floating."""
    wide = residual.to(tl.float32)
    if HAS_SCALE:
        wide = wide * tl.load(scale_ptr)
    return value + wide


@triton.jit
def quantized(value, inverse_ptr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, DTYPE: tl.constexpr):
    """The activation of ``value`` (float32) as DTYPE: rounded to even integers between LOW and HIGH for int8, else cast."""
    value = activate(value, ACTIVATION, ALPHA, tl.float32 == DTYPE)
    if tl.int8 == DTYPE:
        held = tl.minimum(tl.maximum(value * tl.load(inverse_ptr), LOW), HIGH)
        # Within 2**22, adding 1.5 * 2**23 leaves no place for a fraction: the hardware rounds it, halves to even.
        value = (held + 12582912.0) - 12582912.0
    return value.to(DTYPE)
