"""conv: convolution of one to three spatial dimensions, and matrix product, as one implicit GEMM with its whole epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, begin, prefetch, release, wait
from .moments import store_moments


@triton.jit
def conv_gemm(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    scale_ptr,
    y_ptr,
    partial_ptr,
    counter_ptr,
    parts_ptr,
    M: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    GROUPS: tl.constexpr,
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
    RN: tl.constexpr,
    RC: tl.constexpr,
    RD: tl.constexpr,
    RH: tl.constexpr,
    RW: tl.constexpr,
    WK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    MOMENTS: tl.constexpr,
    POINTWISE: tl.constexpr,
    FLAT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT: tl.constexpr,
    EARLY: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, :, od, oh, ow] = activation(sum over taps and channels of x * scale * w + bias + residual).

    Rows of the GEMM are output positions, columns output channels, K runs over taps and input channels.

    x: [N, GROUPS * CI, D, H, W] with strides XN ... XW; y and residual: [N, GROUPS * CO, OD, OH, OW]; M = N * OD * OH * OW.
    w: [GROUPS * CO, WK] with K contiguous and zeros from the last tap's channels to WK: K is (tap, channel), channels padded to a multiple of BK
        unless FLAT; with FLAT it is (tap, channel) without padding in between, for few input channels.
    scale: [N, CI], for GROUPS == 1.
    partial: with SPLIT > 1, float32 [tiles, SPLIT, BM, BN]; the last program of a tile to arrive adds them up, in order.
    counter: int32 [tiles], zero before and after.
    parts: with MOMENTS, float32 [N, tiles of an image, 3, GROUPS * CO]: the moments of every tile of y (see kernels/moments.py), which then has
        positions of one image only.
    EARLY: ask for the residual before the products, so that it arrives while they are computed.
    PREFETCH: ask for the weights while the kernel in front still runs: for grids of which all programs start at once.
    Grid: (tiles of M times tiles of CO, GROUPS, SPLIT).
    """
    release(PDL)
    pid = tl.program_id(0)
    group = tl.program_id(1)
    split = tl.program_id(2)
    # The rows that tiles divide: all, or those of one image.
    span: tl.constexpr = OD * OH * OW if MOMENTS else M
    tiles_span: tl.constexpr = (span + BM - 1) // BM
    tiles_m: tl.constexpr = tiles_span * (M // span)
    tiles_n: tl.constexpr = (CO + BN - 1) // BN
    in_band: tl.constexpr = GROUP_M * tiles_n
    first_m = (pid // in_band) * GROUP_M
    band_m = tl.minimum(tiles_m - first_m, GROUP_M)
    tile_m = first_m + (pid % in_band) % band_m
    tile_n = (pid % in_band) // band_m

    columns = tile_n * BN + tl.arange(0, BN)
    if span == M or span % BM == 0:
        rows = tile_m * BM + tl.arange(0, BM)
        row_ok = rows < M
    else:
        position = (tile_m % tiles_span) * BM + tl.arange(0, BM)
        rows = (tile_m // tiles_span) * span + position
        row_ok = position < span
    column_ok = columns < CO
    ow = rows % OW
    oh = (rows // OW) % OH
    od = (rows // (OW * OH)) % OD
    n = rows // (OW * OH * OD)
    iw = ow * SW - PW
    ih = oh * SH - PH
    id_ = od * SD - PD
    x_row = n * XN + id_ * XD + ih * XH + iw * XW + group * CI * XC
    w_column = (group * CO + columns) * WK
    ks = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    out_column = group * CO + columns
    out_ok = row_ok[:, None] & column_ok[None, :]
    r_row = n * RN + od * RD + oh * RH + ow * RW
    steps: tl.constexpr = WK // BK
    per_split: tl.constexpr = (steps + SPLIT - 1) // SPLIT
    first = split * per_split
    last = tl.minimum(first + per_split, steps)
    if PREFETCH:
        prefetch(w_ptr + (group * CO + tl.minimum(columns, CO - 1)) * WK, first * BK, per_split * BK, WK)
    wait(PDL)
    # Asked for before the products, it is there when they are done; a large tile needs the registers.
    early_bias: tl.constexpr = HAS_BIAS and BM * BN <= 8192
    if early_bias:
        bias = tl.load(bias_ptr + group * CO + columns, mask=column_ok, other=0.0)
    if HAS_RESIDUAL and EARLY:
        residual = tl.load(residual_ptr + r_row[:, None] + (out_column * RC)[None, :], mask=out_ok, other=0.0)

    blocks: tl.constexpr = (CI + BK - 1) // BK
    taps: tl.constexpr = KD * KH * KW
    for step in range(first, last):
        if FLAT:
            k = step * BK + ks
            tap = k // CI
            channel = k % CI
            kw = tap % KW
            kh = (tap // KW) % KH
            kd = tap // (KW * KH)
            offset = channel * XC + kd * (DD * XD) + kh * (DH * XH) + kw * (DW * XW)
            at_w = iw[:, None] + (kw * DW)[None, :]
            at_h = ih[:, None] + (kh * DH)[None, :]
            at_d = id_[:, None] + (kd * DD)[None, :]
            ok = row_ok[:, None] & (tap < taps)[None, :]
            ok = ok & (at_w >= 0) & (at_w < W) & (at_h >= 0) & (at_h < H)
            if KD > 1 or PD > 0:
                ok = ok & (at_d >= 0) & (at_d < D)
            a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok, other=0.0)
        else:
            channel = (step % blocks) * BK + ks
            if POINTWISE:
                ok_row = row_ok
                offset = channel * XC
            else:
                tap = step // blocks
                kw = tap % KW
                kh = (tap // KW) % KH
                kd = tap // (KW * KH)
                offset = channel * XC + (kd * (DD * XD) + kh * (DH * XH) + kw * (DW * XW))
                at_w = iw + kw * DW
                at_h = ih + kh * DH
                ok_row = row_ok & (at_w >= 0) & (at_w < W) & (at_h >= 0) & (at_h < H)
                if KD > 1 or PD > 0:
                    at_d = id_ + kd * DD
                    ok_row = ok_row & (at_d >= 0) & (at_d < D)
            if CI % BK == 0:
                a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok_row[:, None], other=0.0)
            else:
                a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok_row[:, None] & (channel < CI)[None, :], other=0.0)
            if HAS_SCALE:
                if M == OD * OH * OW:
                    gate = tl.load(scale_ptr + channel, mask=channel < CI, other=0.0)[None, :]
                else:
                    gate = tl.load(scale_ptr + n[:, None] * CI + channel[None, :], mask=row_ok[:, None] & (channel < CI)[None, :], other=0.0)
                a = (a.to(tl.float32) * gate.to(tl.float32)).to(a.dtype)
        if CO % BN == 0:
            b = tl.load(w_ptr + w_column[None, :] + (step * BK + ks)[:, None])
        else:
            b = tl.load(w_ptr + w_column[None, :] + (step * BK + ks)[:, None], mask=column_ok[None, :], other=0.0)
        acc = tl.dot(a.to(b.dtype), b, acc, input_precision=PRECISION)

    is_last = True
    if SPLIT > 1:
        tile = (group * (tiles_m * tiles_n) + tile_m * tiles_n + tile_n).to(tl.int64)
        within = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        tl.store(partial_ptr + (tile * SPLIT + split) * (BM * BN) + within, acc)
        tl.debug_barrier()  # every thread of the block has stored before one of them counts the block as arrived
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
        is_last = arrived == SPLIT - 1
        if is_last:
            tl.store(counter_ptr + tile, 0)
            acc = sum_of_parts(partial_ptr + tile * (SPLIT * BM * BN) + within, SPLIT, BM * BN)
    if is_last:
        if HAS_BIAS:
            if not early_bias:
                bias = tl.load(bias_ptr + group * CO + columns, mask=column_ok, other=0.0)
            acc += bias.to(tl.float32)[None, :]
        if HAS_RESIDUAL:
            if not EARLY:
                residual = tl.load(residual_ptr + r_row[:, None] + (out_column * RC)[None, :], mask=out_ok, other=0.0)
            acc += residual.to(tl.float32)
        acc = activate(acc, ACTIVATION, ALPHA, y_ptr.dtype.element_ty == tl.float32)
        y_row = n * YN + od * YD + oh * YH + ow * YW
        y = acc.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + y_row[:, None] + (out_column * YC)[None, :], y, mask=out_ok)
        if MOMENTS:
            store_moments(parts_ptr, tile_m, y.to(tl.float32), row_ok, out_column, column_ok, GROUPS * CO, span % BM != 0)


@triton.jit
def sum_of_parts(at, SPLIT: tl.constexpr, SIZE: tl.constexpr):
    """The sum of SPLIT tiles of SIZE elements, one behind the other, in order. Several are asked for before the first is waited for, as far as
    registers hold them: one after the other, each would take the time of a trip to L2."""
    AT_ONCE: tl.constexpr = 4 if SIZE <= 4096 else (2 if SIZE <= 8192 else 1)
    total = tl.load(at, cache_modifier=".cg")
    for first in tl.static_range(1, SPLIT, AT_ONCE):
        one = tl.load(at + first * SIZE, cache_modifier=".cg")
        if AT_ONCE > 1 and first + 1 < SPLIT:
            two = tl.load(at + (first + 1) * SIZE, cache_modifier=".cg")
        if AT_ONCE > 2 and first + 2 < SPLIT:
            three = tl.load(at + (first + 2) * SIZE, cache_modifier=".cg")
        if AT_ONCE > 3 and first + 3 < SPLIT:
            four = tl.load(at + (first + 3) * SIZE, cache_modifier=".cg")
        total += one
        if AT_ONCE > 1 and first + 1 < SPLIT:
            total += two
        if AT_ONCE > 2 and first + 2 < SPLIT:
            total += three
        if AT_ONCE > 3 and first + 3 < SPLIT:
            total += four
    return total


@triton.jit
def pad_channels(
    x_ptr,
    y_ptr,
    TOTAL: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    DP: tl.constexpr,
    HP: tl.constexpr,
    WP: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    XN: tl.constexpr,
    XC: tl.constexpr,
    XD: tl.constexpr,
    XH: tl.constexpr,
    XW: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """x [N, C, D, H, W] of any strides -> y [N, DP, HP, WP, CP], dense, in y's dtype, zero outside: PD, PH and PW positions in front, what is left
    behind, and CP - C channels. TOTAL: positions of y. Grid: (blocks of positions,)."""
    begin(PDL)
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = position % WP - PW
    h = (position // WP) % HP - PH
    d = (position // (WP * HP)) % DP - PD
    n = position // (WP * HP * DP)
    inside = (position < TOTAL) & (w >= 0) & (w < W) & (h >= 0) & (h < H) & (d >= 0) & (d < D)
    channel = tl.arange(0, CP)
    at = (n * XN + d * XD + h * XH + w * XW)[:, None] + (channel * XC)[None, :]
    x = tl.load(x_ptr + at, mask=inside[:, None] & (channel < C)[None, :], other=0.0)
    tl.store(y_ptr + position[:, None] * CP + channel[None, :], x.to(y_ptr.dtype.element_ty), mask=(position < TOTAL)[:, None])
