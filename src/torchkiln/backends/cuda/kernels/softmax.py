"""softmax: whole rows on chip."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import begin
from .reduce import strided


@triton.jit
def softmax(
    x,
    y,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    X_COL: tl.constexpr,
    Y_COL: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    R3: tl.constexpr,
    R4: tl.constexpr,
    XR0: tl.constexpr,
    XR1: tl.constexpr,
    XR2: tl.constexpr,
    XR3: tl.constexpr,
    XR4: tl.constexpr,
    YR0: tl.constexpr,
    YR1: tl.constexpr,
    YR2: tl.constexpr,
    YR3: tl.constexpr,
    YR4: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[row] = softmax(x[row]) in float32; BLOCK_ROWS rows a program, BLOCK_COLS >= COLS."""
    begin(PDL)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_COLS)
    mask = (rows < ROWS)[:, None] & (cols < COLS)[None, :]
    source = x + strided(rows, R1, R2, R3, R4, XR0, XR1, XR2, XR3, XR4)[:, None] + (cols * X_COL)[None, :]
    values = tl.load(source, mask=mask, other=float("-inf")).to(tl.float32)
    # A NaN that the maximum passes over still reaches every element through the sum. Rows beyond the last are NaN and not stored.
    powers = tl.exp(values - tl.max(values, 1)[:, None])
    scaled = powers * (1.0 / tl.sum(powers, 1))[:, None]
    target = y + strided(rows, R1, R2, R3, R4, YR0, YR1, YR2, YR3, YR4)[:, None] + (cols * Y_COL)[None, :]
    tl.store(target, scaled.to(y.dtype.element_ty), mask=mask)
