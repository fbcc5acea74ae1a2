"""reduce: sums, means and maxima over any dimensions, adaptive average pooling; and `strided`, the offsets of collapsed dimensions."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import begin


@triton.jit
def strided(
    index,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D3: tl.constexpr,
    D4: tl.constexpr,
    S0: tl.constexpr,
    S1: tl.constexpr,
    S2: tl.constexpr,
    S3: tl.constexpr,
    S4: tl.constexpr,
):
    """Offset of element ``index``, counted row-major, of dimensions [_, D1, D2, D3, D4] with strides S0 to S4. Sizes of 1 cost nothing."""
    offset = tl.zeros_like(index)
    if D4 > 1:
        offset += (index % D4) * S4
        index = index // D4
    if D3 > 1:
        offset += (index % D3) * S3
        index = index // D3
    if D2 > 1:
        offset += (index % D2) * S2
        index = index // D2
    if D1 > 1:
        offset += (index % D1) * S1
        index = index // D1
    return offset + index * S0


@triton.jit
def maximum_or_nan(a, b):
    """The larger of two; a NaN if either is one."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def reduce(
    x,
    y,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SPLIT: tl.constexpr,
    Y_SPLIT: tl.constexpr,
    SCALE: tl.constexpr,
    OPERATION: tl.constexpr,
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
    C1: tl.constexpr,
    C2: tl.constexpr,
    C3: tl.constexpr,
    C4: tl.constexpr,
    XC0: tl.constexpr,
    XC1: tl.constexpr,
    XC2: tl.constexpr,
    XC3: tl.constexpr,
    XC4: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[row, split] = SCALE * (sum or max over SPLIT columns of x[row, :]), in float32.

    Rows are the kept dimensions, columns the reduced ones. Program (i, s) has BLOCK_ROWS rows and the columns from s * SPLIT (a multiple of
    BLOCK_COLS), and writes Y_SPLIT * s elements further on. The compiler lays threads along whichever of rows and columns is contiguous.
    """
    begin(PDL)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    keep = rows < ROWS
    source = x + strided(rows, R1, R2, R3, R4, XR0, XR1, XR2, XR3, XR4)[:, None]
    IDENTITY: tl.constexpr = float("-inf") if OPERATION == "max" else 0.0
    held = tl.full([BLOCK_ROWS, BLOCK_COLS], IDENTITY, tl.float32)
    for start in range(0, SPLIT, BLOCK_COLS):
        cols = tl.program_id(1) * SPLIT + start + tl.arange(0, BLOCK_COLS)
        mask = keep[:, None] & (cols < COLS)[None, :]
        offsets = strided(cols, C1, C2, C3, C4, XC0, XC1, XC2, XC3, XC4)[None, :]
        values = tl.load(source + offsets, mask=mask, other=IDENTITY).to(tl.float32)
        if OPERATION == "max":
            held = maximum_or_nan(held, values)
        else:
            held += values
    if OPERATION == "max":
        total = tl.reduce(held, 1, maximum_or_nan)
    else:
        total = tl.sum(held, 1) * SCALE
    target = y + strided(rows, R1, R2, R3, R4, YR0, YR1, YR2, YR3, YR4) + tl.program_id(1) * Y_SPLIT
    tl.store(target, total.to(y.dtype.element_ty), mask=keep)


@triton.jit
def adaptive_avg_pool(
    x,
    y,
    N: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    OD: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    XN: tl.constexpr,
    XC: tl.constexpr,
    XD: tl.constexpr,
    XH: tl.constexpr,
    XW: tl.constexpr,
    YN: tl.constexpr,
    YC: tl.constexpr,
    YD: tl.constexpr,
    YH: tl.constexpr,
    YW: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """Means over the windows [floor(o * D / OD), ceil((o + 1) * D / OD)) in each dimension; KD, KH, KW: the largest windows.

    A program has BLOCK_P output positions, counted over [N, OD, OH, OW], and BLOCK_C channels. Source: torch.nn.AdaptiveAvgPool3d.
    """
    begin(PDL)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    w = p % OW
    h = p // OW % OH
    d = p // (OW * OH) % OD
    n = p // (OW * OH * OD)
    d0 = d * D // OD
    h0 = h * H // OH
    w0 = w * W // OW
    d1 = (d * D + D + OD - 1) // OD
    h1 = (h * H + H + OH - 1) // OH
    w1 = (w * W + W + OW - 1) // OW
    source = x + (n * XN + d0 * XD + h0 * XH + w0 * XW)[:, None] + (c * XC)[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for kd in range(KD):
        for kh in range(KH):
            inside = (n < N) & (d0 + kd < d1) & (h0 + kh < h1)
            for kw in range(KW):
                mask = (inside & (w0 + kw < w1))[:, None] & (c < C)[None, :]
                total += tl.load(source + (kd * XD + kh * XH + kw * XW), mask=mask, other=0.0).to(tl.float32)
    mean = total / ((d1 - d0) * (h1 - h0) * (w1 - w0)).to(tl.float32)[:, None]
    target = y + (n * YN + d * YD + h * YH + w * YW)[:, None] + (c * YC)[None, :]
    tl.store(target, mean.to(y.dtype.element_ty), mask=(n < N)[:, None] & (c < C)[None, :])
