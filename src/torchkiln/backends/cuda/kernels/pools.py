"""pools: max and average pooling in two and three dimensions."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import begin


@triton.jit
def _tap(
    held,
    source,
    d,
    h,
    w,
    inside_c,
    D: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    XD: tl.constexpr,
    XH: tl.constexpr,
    XW: tl.constexpr,
    MAX: tl.constexpr,
):
    """Take in one position of every window of the tile."""
    inside = (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    mask = inside[:, None] & inside_c[None, :]
    at = (d * XD + h * XH + w * XW)[:, None]
    if MAX:
        LEAST: tl.constexpr = -128 if held.dtype == tl.int8 else float("-inf")
        values = tl.load(source + at, mask=mask, other=LEAST).to(held.dtype)
        held = tl.maximum(held, values, propagate_nan=tl.PropagateNan.ALL)
    else:
        held += tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
    return held


@triton.jit
def _extent(first, K: tl.constexpr, SIZE: tl.constexpr, PADDING: tl.constexpr, COUNT_PADDING: tl.constexpr):
    """How many positions of a window count, in one dimension."""
    if COUNT_PADDING:
        extent = tl.minimum(first + K, SIZE + PADDING) - first
    else:
        extent = tl.maximum(tl.minimum(first + K, SIZE) - tl.maximum(first, 0), 0)
    return extent


@triton.jit
def pool(
    x,
    y,
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
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DD: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
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
    MAX: tl.constexpr,
    COUNT_PADDING: tl.constexpr,
    DIVISOR: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """Max pooling (MAX), else average pooling with COUNT_PADDING and DIVISOR (0 for none) as torch.nn.AvgPool3d has them.

    A program has BLOCK_H by BLOCK_W output positions of one item and depth, and BLOCK_C channels: windows that overlap are read from DRAM once.
    K, S, P, D with an axis: kernel size, stride, padding, dilation.
    """
    begin(PDL)
    BLOCKS_H: tl.constexpr = (OH + BLOCK_H - 1) // BLOCK_H
    BLOCKS_W: tl.constexpr = (OW + BLOCK_W - 1) // BLOCK_W
    item = tl.program_id(0)
    p = tl.arange(0, BLOCK_H * BLOCK_W)
    ow = item % BLOCKS_W * BLOCK_W + p % BLOCK_W
    oh = item // BLOCKS_W % BLOCKS_H * BLOCK_H + p // BLOCK_W
    od = item // (BLOCKS_W * BLOCKS_H) % OD
    n = item // (BLOCKS_W * BLOCKS_H * OD)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = od * SD - PD
    h = oh * SH - PH
    w = ow * SW - PW
    source = x + n * XN + (c * XC)[None, :]
    if MAX:
        # Maxima of float16 and int8 are taken as such; Triton would take those of bfloat16 in float32 anyway.
        KEPT: tl.constexpr = tl.float32 if x.dtype.element_ty == tl.bfloat16 else x.dtype.element_ty
        LEAST: tl.constexpr = -128 if tl.int8 == KEPT else float("-inf")
        held = tl.full([BLOCK_H * BLOCK_W, BLOCK_C], LEAST, KEPT)
    else:
        held = tl.zeros([BLOCK_H * BLOCK_W, BLOCK_C], tl.float32)
    if UNROLL:
        for kd in tl.static_range(KD):
            for kh in tl.static_range(KH):
                for kw in tl.static_range(KW):
                    held = _tap(held, source, d + kd * DD, h + kh * DH, w + kw * DW, c < C, D, H, W, XD, XH, XW, MAX)
    else:
        for kd in range(KD):
            for kh in range(KH):
                for kw in range(KW):
                    held = _tap(held, source, d + kd * DD, h + kh * DH, w + kw * DW, c < C, D, H, W, XD, XH, XW, MAX)
    if not MAX:
        if DIVISOR != 0:
            held = held / DIVISOR
        else:
            counted = _extent(d, KD, D, PD, COUNT_PADDING) * _extent(h, KH, H, PH, COUNT_PADDING) * _extent(w, KW, W, PW, COUNT_PADDING)
            held = held / tl.maximum(counted, 1).to(tl.float32)[:, None]
    target = y + n * YN + (od * YD + oh * YH + ow * YW)[:, None] + (c * YC)[None, :]
    tl.store(target, held.to(y.dtype.element_ty), mask=((oh < OH) & (ow < OW))[:, None] & (c < C)[None, :])
