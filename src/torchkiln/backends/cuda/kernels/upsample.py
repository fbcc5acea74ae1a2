"""upsample: nearest and linear resampling of images in one to three dimensions."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import begin


@triton.jit
def _source(at, SIZE: tl.constexpr, SCALE: tl.constexpr, MODE: tl.constexpr):
    """Where output positions ``at`` lie in the input, as aten's area_pixel_compute_source_index and nearest_neighbor_compute_source_index have it.

    Returns:
        (int32, float32): the first position that is read, and the weight of the one behind it.
    """
    scale = tl.full([], SCALE, tl.float32)
    place = at.to(tl.float32)
    if MODE == "centres":
        place = tl.maximum((place + 0.5) * scale - 0.5, 0.0)
    elif MODE == "exact":
        place = (place + 0.5) * scale
    elif MODE != "same":
        tl.static_assert(MODE == "corners" or MODE == "nearest", "unknown mode")
        place = place * scale
    first = tl.minimum(place.to(tl.int32), SIZE - 1)
    return first, tl.minimum(place - first.to(tl.float32), 1.0)


@triton.jit
def _next(first, SIZE: tl.constexpr):
    """The position behind ``first``, or the last one."""
    return tl.minimum(first + 1, SIZE - 1)


@triton.jit
def _row(source, left, right, weight, mask, TWO: tl.constexpr):
    """A row of the input at the columns of the tile. TWO: between two columns."""
    held = tl.load(source + left, mask=mask, other=0.0).to(tl.float32)
    if TWO:
        held = held * (1.0 - weight) + tl.load(source + right, mask=mask, other=0.0).to(tl.float32) * weight
    return held


@triton.jit
def _line(front, back, depth_weight, left, right, weight, mask, TWO_D: tl.constexpr, TWO_W: tl.constexpr):
    """``_row``; TWO_D: between two depths."""
    held = _row(front, left, right, weight, mask, TWO_W)
    if TWO_D:
        held = held * (1.0 - depth_weight) + _row(back, left, right, weight, mask, TWO_W) * depth_weight
    return held


@triton.jit
def upsample(
    x,
    y,
    C: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    OD: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    SCALE_D: tl.constexpr,
    SCALE_H: tl.constexpr,
    SCALE_W: tl.constexpr,
    MODE_D: tl.constexpr,
    MODE_H: tl.constexpr,
    MODE_W: tl.constexpr,
    TWO_D: tl.constexpr,
    TWO_H: tl.constexpr,
    TWO_W: tl.constexpr,
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
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, c, od, oh, ow] from x at the positions that MODE and SCALE of each axis give (see ``_source``), computed in float32.

    A program has up to ROWS output rows of one item and depth, and of each BLOCK_W columns by BLOCK_C channels; or, FLAT, BLOCK_W of a row's columns
    and channels where these lie as one run in y. What neighbouring output rows share of the input is read and interpolated once.

    TWO with an axis: interpolated between two positions, not taken from one.
    """
    begin(PDL)
    columns: tl.constexpr = OW * C if FLAT else OW
    blocks_w: tl.constexpr = (columns + BLOCK_W - 1) // BLOCK_W
    blocks_h: tl.constexpr = (OH + ROWS - 1) // ROWS
    item = tl.program_id(0)
    column = (item % blocks_w * BLOCK_W + tl.arange(0, BLOCK_W))[:, None]
    first_row = item // blocks_w % blocks_h * ROWS
    od = item // (blocks_w * blocks_h) % OD
    n = item // (blocks_w * blocks_h * OD)
    if FLAT:
        ow = column // C
        c = column % C
        mask = column < columns
        target = y + n * YN + od * YD + column
    else:
        ow = column
        c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
        mask = (column < columns) & (c < C)
        target = y + n * YN + od * YD + column * YW + c * YC
    w, weight_w = _source(ow, W, SCALE_W, MODE_W)
    left = w * XW + c * XC
    right = _next(w, W) * XW + c * XC
    d, weight_d = _source(od, D, SCALE_D, MODE_D)
    front = x + n * XN + d * XD
    back = x + n * XN + _next(d, D) * XD
    WIDTH: tl.constexpr = 1 if FLAT else BLOCK_C
    above = tl.zeros([BLOCK_W, WIDTH], tl.float32)
    below = above
    held = tl.full([], -2, tl.int32)
    for row in range(tl.minimum(ROWS, OH - first_row)):
        oh = first_row + row
        h, weight_h = _source(oh, H, SCALE_H, MODE_H)
        if h != held:
            if TWO_H:
                under = _next(h, H)
                if h == held + 1:
                    above = below
                else:
                    above = _line(front + h * XH, back + h * XH, weight_d, left, right, weight_w, mask, TWO_D, TWO_W)
                below = _line(front + under * XH, back + under * XH, weight_d, left, right, weight_w, mask, TWO_D, TWO_W)
            else:
                above = _line(front + h * XH, back + h * XH, weight_d, left, right, weight_w, mask, TWO_D, TWO_W)
            held = h
        value = above
        if TWO_H:
            value = above * (1.0 - weight_h) + below * weight_h
        tl.store(target + oh * YH, value.to(y.dtype.element_ty), mask=mask)
