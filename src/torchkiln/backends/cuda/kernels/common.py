"""common: device functions that several kernels call."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin(PDL: tl.constexpr):
    """At the top of every kernel: let the next kernel be scheduled, then wait until the ones before have written their results."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def release(PDL: tl.constexpr):
    """First half of ``begin``: let the next kernel be scheduled. What follows may compute, but reads nothing that another kernel writes."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Second half of ``begin``: wait until the kernels before have written their results."""
    if PDL:
        gdc_wait()


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr):
    """``x`` (float32) through the activation of that name."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)  # and not maximum: a NaN stays one
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        t = 2.0 / (1.0 + tl.exp(-2.0 * (0.7978845608028654 * (x + 0.044715 * x * x * x)))) - 1.0
        x = 0.5 * x * (1.0 + t)
    elif ACTIVATION == "hardswish":
        x = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    elif ACTIVATION == "hardsigmoid":
        x = tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0, x, x * ALPHA)
    elif ACTIVATION == "sigmoid":
        x = 1.0 / (1.0 + tl.exp(-x))
    elif ACTIVATION == "tanh":
        x = 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x
