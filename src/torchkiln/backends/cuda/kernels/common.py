"""common: device functions that several kernels call."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import INTERPRETED, gelu, gelu_tanh, sigmoid, silu


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
def prefetch(rows, first, COUNT: tl.constexpr, LENGTH: tl.constexpr):
    """Ask for a part of weights to be brought into L2, before ``wait``, while the kernel in front still runs.

    rows: pointers to rows of LENGTH elements each; of each, COUNT elements from ``first`` on, as far as there are.
    """
    if not INTERPRETED:
        LINE: tl.constexpr = 1024 // rows.dtype.element_ty.primitive_bitwidth
        LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(COUNT, LINE))
        at = tl.minimum(first + tl.arange(0, LINES) * LINE, LENGTH - 1)
        code: tl.constexpr = "{ prefetch.global.L2 [$1]; mov.b32 $0, 0; }"
        lines = (rows[:, None] + at[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(code, "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, PRECISE: tl.constexpr = True):
    """``x`` (float32) through the activation of that name; PRECISE: for a result that is kept in float32."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)  # and not maximum: a NaN stays one
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "silu":
        x = silu(x)
    elif ACTIVATION == "gelu":
        x = gelu(x, PRECISE)
    elif ACTIVATION == "gelu_tanh":
        x = gelu_tanh(x)
    elif ACTIVATION == "hardswish":
        x = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    elif ACTIVATION == "hardsigmoid":
        x = tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0, x, x * ALPHA)
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    elif ACTIVATION == "tanh":
        x = 2.0 * sigmoid(2.0 * x) - 1.0
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x
