"""activations: device functions that cost few instructions, for epilogues and pointwise kernels. Values come in float32 (or float64).

Errors are a few units in the last place of float32. Where ``PRECISE`` is given, it is True for a float32 tensor; without it the error is far below
that of a half.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: The interpreter knows no assembly.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def exp2(x):
    """2**x in one instruction for float32, with an error of 2 units in the last place; subnormal numbers are zeros."""
    if INTERPRETED or x.dtype != tl.float32:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """1 / x in one instruction for float32, with an error of 1 unit in the last place; subnormal numbers are zeros."""
    if INTERPRETED or x.dtype != tl.float32:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid(x):
    return reciprocal(1.0 + exp2(x * -1.4426950408889634))


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def gelu(x, PRECISE: tl.constexpr):
    """x times the normal distribution's Phi(x). For halves by erfc's approximation 7.1.26 of Abramowitz and Stegun, which takes half the
    instructions of erf and keeps its relative accuracy in the negative tail."""
    if PRECISE:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    a = tl.minimum(tl.abs(x), 20.0)  # so that an infinity times erfc's 0 is no NaN
    t = reciprocal(1.0 + 0.23164189 * a)  # 0.3275911 / sqrt(2)
    series = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * series * exp2(a * a * -0.7213475204444817)


@triton.jit
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)), which is x sigmoid(2 u)."""
    return x * reciprocal(1.0 + exp2(-2.302208198144325 * (x + 0.044715 * x * x * x)))
