"""conv_transposed: transposed convolution of one to three spatial dimensions as one implicit GEMM with its whole epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, begin


@triton.jit
def conv_transposed(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    M: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    OD: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    QD: tl.constexpr,
    QH: tl.constexpr,
    QW: tl.constexpr,
    TD: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
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
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, :, o] = activation(sum over the taps k and positions i with i * S - P + k * D' == o of w[k] @ x[n, :, i] + bias + residual).

    In each dimension o = q * S + f - P: q is the cell, f the phase. Phase f of cell q reads the positions q - j * D' through the taps f + j * S,
    j < T, whatever the phase is: rows of the GEMM are (n, cell), columns (phase, output channel), and K is (j, input channel). (D' is 1 unless S is.)
    With kernel == stride, T is 1 and every product counts.

    x: [N, groups * CI, D, H, W] with strides XN ... XW; y and residual likewise [N, groups * CO, OD, OH, OW]; M = N * QD * QH * QW.
    w: [groups, SD * SH * SW * CO, WK], K contiguous, with zeros for taps past the kernel; channels padded to a multiple of BK for each j.
    Grid: (tiles of M times tiles of the columns, groups).
    """
    begin(PDL)
    pid = tl.program_id(0)
    group = tl.program_id(1)
    columns_count: tl.constexpr = SD * SH * SW * CO
    tiles_m: tl.constexpr = (M + BM - 1) // BM
    tiles_n: tl.constexpr = (columns_count + BN - 1) // BN
    in_band: tl.constexpr = GROUP_M * tiles_n
    first_m = (pid // in_band) * GROUP_M
    band_m = tl.minimum(tiles_m - first_m, GROUP_M)
    tile_m = first_m + (pid % in_band) % band_m
    tile_n = (pid % in_band) // band_m

    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    row_ok = rows < M
    column_ok = columns < columns_count
    qw = rows % QW
    qh = (rows // QW) % QH
    qd = (rows // (QW * QH)) % QD
    n = rows // (QW * QH * QD)
    x_row = n * XN + qd * XD + qh * XH + qw * XW + group * CI * XC
    w_column = (group * columns_count + columns) * WK
    ks = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    blocks: tl.constexpr = (CI + BK - 1) // BK
    for step in range(WK // BK):
        channel = (step % blocks) * BK + ks
        if TD * TH * TW == 1 and QD == D and QH == H and QW == W:
            ok_row = row_ok
            offset = channel * XC
        else:
            j = step // blocks
            jw = (j % TW) * DW
            jh = (j // TW) % TH * DH
            jd = j // (TW * TH) * DD
            offset = channel * XC - (jd * XD + jh * XH + jw * XW)
            ok_row = row_ok & (qw >= jw) & (qw - jw < W) & (qh >= jh) & (qh - jh < H) & (qd >= jd) & (qd - jd < D)
        if CI % BK == 0:
            a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok_row[:, None], other=0.0)
        else:
            a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok_row[:, None] & (channel < CI)[None, :], other=0.0)
        if columns_count % BN == 0:
            b = tl.load(w_ptr + w_column[None, :] + (step * BK + ks)[:, None])
        else:
            b = tl.load(w_ptr + w_column[None, :] + (step * BK + ks)[:, None], mask=column_ok[None, :], other=0.0)
        acc = tl.dot(a.to(b.dtype), b, acc, input_precision=PRECISION)

    phase = columns // CO
    channel_out = group * CO + columns % CO
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel_out, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    fw = phase % SW
    fh = (phase // SW) % SH
    fd = phase // (SW * SH)
    ow = qw * SW - PW
    oh = qh * SH - PH
    od = qd * SD - PD
    ok = row_ok[:, None] & column_ok[None, :]
    if PW > 0 or QW * SW != OW:
        ok = ok & (ow[:, None] + fw[None, :] >= 0) & (ow[:, None] + fw[None, :] < OW)
    if PH > 0 or QH * SH != OH:
        ok = ok & (oh[:, None] + fh[None, :] >= 0) & (oh[:, None] + fh[None, :] < OH)
    if PD > 0 or QD * SD != OD:
        ok = ok & (od[:, None] + fd[None, :] >= 0) & (od[:, None] + fd[None, :] < OD)
    if HAS_RESIDUAL:
        r_row = n * RN + od * RD + oh * RH + ow * RW
        r_column = channel_out * RC + fd * RD + fh * RH + fw * RW
        acc += tl.load(residual_ptr + r_row[:, None] + r_column[None, :], mask=ok, other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION, ALPHA, y_ptr.dtype.element_ty == tl.float32)
    y_row = n * YN + od * YD + oh * YH + ow * YW
    y_column = channel_out * YC + fd * YD + fh * YH + fw * YW
    tl.store(y_ptr + y_row[:, None] + y_column[None, :], acc.to(y_ptr.dtype.element_ty), mask=ok)
