"""int8_conv: convolution of one to three spatial dimensions, and matrix product, of 8-bit integers, as one implicit GEMM with its whole epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import prefetch, release, wait
from .conv import sum_of_parts
from .int8_epilogue import add_residual, quantized, scaled_sums


@triton.jit
def int8_conv(
    x_ptr,
    w_ptr,
    scales_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    inverse_ptr,
    y_ptr,
    partial_ptr,
    counter_ptr,
    M: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
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
    HAS_RESIDUAL_SCALE: tl.constexpr,
    POINTWISE: tl.constexpr,
    FLAT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT: tl.constexpr,
    EARLY: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, :, od, oh, ow] = quantized(activation(sum over taps and channels of x * w, times scales, + bias + residual)); see ``fused_ops.int8``.

    Rows of the GEMM are output positions, columns output channels, K runs over taps and input channels, as in ``conv_gemm``. Sums are int32.

    x: int8 [N, CI, D, H, W] with strides XN ... XW; y and residual: [N, CO, OD, OH, OW], int8 or floating; M = N * OD * OH * OW.
    w: int8 [CO, WK] with K contiguous and zeros from the last tap's channels to WK: K is (tap, channel), channels padded to a multiple of BK unless
        FLAT; with FLAT it is (tap, channel) without padding in between, for few input channels.
    scales: float32 [CO]; bias: [CO]; residual_scale and inverse: float32 [1], the latter read where y is int8.
    partial: with SPLIT > 1, int32 [tiles, SPLIT, BM, BN]; the last program of a tile to arrive adds them up.
    counter: int32 [tiles], zero before and after.
    EARLY: ask for the residual before the products, so that it arrives while they are computed.
    PREFETCH: ask for the weights while the kernel in front still runs: for grids of which all programs start at once.
    Grid: (tiles of M times tiles of CO, 1, SPLIT).
    """
    release(PDL)
    pid = tl.program_id(0)
    split = tl.program_id(2)
    tiles_m: tl.constexpr = (M + BM - 1) // BM
    tiles_n: tl.constexpr = (CO + BN - 1) // BN
    in_band: tl.constexpr = GROUP_M * tiles_n
    first_m = (pid // in_band) * GROUP_M
    band_m = tl.minimum(tiles_m - first_m, GROUP_M)
    tile_m = first_m + (pid % in_band) % band_m
    tile_n = (pid % in_band) // band_m

    columns = tile_n * BN + tl.arange(0, BN)
    rows = tile_m * BM + tl.arange(0, BM)
    row_ok = rows < M
    column_ok = columns < CO
    ow = rows % OW
    oh = (rows // OW) % OH
    od = (rows // (OW * OH)) % OD
    n = rows // (OW * OH * OD)
    iw = ow * SW - PW
    ih = oh * SH - PH
    id_ = od * SD - PD
    x_row = n * XN + id_ * XD + ih * XH + iw * XW
    w_column = columns * WK
    ks = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    out_ok = row_ok[:, None] & column_ok[None, :]
    r_row = n * RN + od * RD + oh * RH + ow * RW
    steps: tl.constexpr = WK // BK
    per_split: tl.constexpr = (steps + SPLIT - 1) // SPLIT
    first = split * per_split
    last = tl.minimum(first + per_split, steps)
    if PREFETCH:
        prefetch(w_ptr + tl.minimum(columns, CO - 1) * WK, first * BK, per_split * BK, WK)
    wait(PDL)
    if HAS_RESIDUAL and EARLY:
        residual = tl.load(residual_ptr + r_row[:, None] + (columns * RC)[None, :], mask=out_ok, other=0)

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
            a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok, other=0)
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
                a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok_row[:, None], other=0)
            else:
                a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok_row[:, None] & (channel < CI)[None, :], other=0)
        # Loaded as it lies and turned in shared memory: loaded as [BK, BN], 8-bit operands go from there to registers byte by byte before Hopper.
        if CO % BN == 0:
            b = tl.load(w_ptr + w_column[:, None] + (step * BK + ks)[None, :])
        else:
            b = tl.load(w_ptr + w_column[:, None] + (step * BK + ks)[None, :], mask=column_ok[:, None], other=0)
        acc = tl.dot(a, b.T, acc, out_dtype=tl.int32)

    is_last = True
    if SPLIT > 1:
        tile = (tile_m * tiles_n + tile_n).to(tl.int64)
        within = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        tl.store(partial_ptr + (tile * SPLIT + split) * (BM * BN) + within, acc)
        tl.debug_barrier()  # every thread of the block has stored before one of them counts the block as arrived
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
        is_last = arrived == SPLIT - 1
        if is_last:
            tl.store(counter_ptr + tile, 0)
            acc = sum_of_parts(partial_ptr + tile * (SPLIT * BM * BN) + within, SPLIT, BM * BN)
    if is_last:
        value = scaled_sums(acc, scales_ptr, bias_ptr, columns, column_ok, HAS_BIAS)
        if HAS_RESIDUAL:
            if not EARLY:
                residual = tl.load(residual_ptr + r_row[:, None] + (columns * RC)[None, :], mask=out_ok, other=0)
            value = add_residual(value, residual, residual_scale_ptr, HAS_RESIDUAL_SCALE)
        y_row = n * YN + od * YD + oh * YH + ow * YW
        y = quantized(value, inverse_ptr, ACTIVATION, ALPHA, LOW, HIGH, y_ptr.dtype.element_ty)
        tl.store(y_ptr + y_row[:, None] + (columns * YC)[None, :], y, mask=out_ok)
