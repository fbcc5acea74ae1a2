"""epilogue: bias, residual and activation on the result of a library's convolution or matrix product."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, begin


@triton.jit
def _elements(
    x,
    bias,
    residual,
    y,
    at,
    mask,
    C: tl.constexpr,
    XR: tl.constexpr,
    RR: tl.constexpr,
    YR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
):
    """The elements ``at`` (row * C + channel); ``mask`` None: all of them exist."""
    row = at // C
    channel = at % C
    held = tl.load(x + (at if XR == C else row * XR + channel), mask=mask).to(tl.float32)
    if HAS_BIAS:
        held += tl.load(bias + channel, mask=mask).to(tl.float32)
    if HAS_RESIDUAL:
        held += tl.load(residual + (at if RR == C else row * RR + channel), mask=mask).to(tl.float32)
    held = activate(held, ACTIVATION, ALPHA, y.dtype.element_ty == tl.float32)
    tl.store(y + (at if YR == C else row * YR + channel), held.to(y.dtype.element_ty), mask=mask)


@triton.jit
def bias_residual_activation(
    x,
    bias,
    residual,
    y,
    N: tl.constexpr,
    C: tl.constexpr,
    XR: tl.constexpr,
    RR: tl.constexpr,
    YR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """y = activation(x + bias + residual) over N elements in rows of C channels; y may be x itself. A program has BLOCK elements.

    Args:
        bias: [C].
        XR, RR, YR: row strides of x, residual and y; channels are next to each other.
    """
    begin(PDL)
    first = tl.program_id(0) * BLOCK
    at = first + tl.arange(0, BLOCK)
    # Masked accesses are as wide as N's alignment allows: a whole block goes without.
    if first + BLOCK <= N:
        _elements(x, bias, residual, y, at, None, C, XR, RR, YR, HAS_BIAS, HAS_RESIDUAL, ACTIVATION, ALPHA)
    else:
        _elements(x, bias, residual, y, at, at < N, C, XR, RR, YR, HAS_BIAS, HAS_RESIDUAL, ACTIVATION, ALPHA)
