"""conv_lines: convolution as an implicit GEMM whose loaded input serves all taps along the innermost dimension."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, prefetch, release, wait
from .moments import store_moments


@triton.jit
def inside(at, SIZE: tl.constexpr):
    """Whether 0 <= at < SIZE, in one comparison: what is negative is large as an unsigned number."""
    return at.to(tl.uint32, bitcast=True) < SIZE


@triton.jit
def line_start(line, OD: tl.constexpr, OH: tl.constexpr, SN: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr):
    """Where line (n, od, oh) begins in a tensor of these strides; with one multiplication where one stride walks all lines."""
    if (OD == 1 or SD == OH * SH) and SN == OD * OH * SH:
        start = line * SH
    else:
        start = (line // (OH * OD)) * SN + ((line // OH) % OD) * SD + (line % OH) * SH
    return start


@triton.jit
def conv_lines(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    parts_ptr,
    LINES: tl.constexpr,
    LENGTH: tl.constexpr,
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
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DD: tl.constexpr,
    DH: tl.constexpr,
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
    MOMENTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, :, od, oh, ow] = activation(sum over taps and channels of x * w + bias + residual), with stride and dilation 1 along W.

    Rows of the GEMM are input positions along W: LINES = N * OD * OH lines, one behind the other, each of LENGTH positions: PW zeros, then the W
    positions of an input line. What is behind a line is the zeros of the next one, so LENGTH = max(W + PW, OW). A tile of BM positions is loaded
    once for each block of K and multiplied with the weights of each of the KW taps; the results are added when all are done, each shifted by its
    tap: y at position v is the sum over kw of result kw at position v + kw. So a tile gives BM - KW + 1 positions, and tiles overlap by KW - 1.

    x: [N, CI, D, H, W] with strides XN ... XW; y and residual: [N, CO, OD, OH, OW].
    w: [CO, KW, WK] dense: K is (kd, kh, channel), with zeros from KD * KH * CI to WK, a multiple of BK.
    parts: with MOMENTS, float32 [N, tiles of an image, 3, CO]: the moments of every tile of y (see kernels/moments.py), which then has positions of
        one image only.
    PREFETCH: as conv_gemm has it.
    Grid: (tiles of positions times tiles of CO,).
    """
    release(PDL)
    tiles_n: tl.constexpr = (CO + BN - 1) // BN
    pid = tl.program_id(0)
    row = tl.arange(0, BM)
    # The lines that tiles divide: all, or those of one image.
    span: tl.constexpr = OD * OH if MOMENTS else LINES
    tiles_span: tl.constexpr = ((span - 1) * LENGTH + OW + BM - KW) // (BM - KW + 1)
    tile = pid // tiles_n
    if span == LINES:
        first_line = 0
        first_position = tile * (BM - KW + 1)
    else:
        first_line = (tile // tiles_span) * span
        first_position = (tile % tiles_span) * (BM - KW + 1)
    position = first_position + row
    columns = (pid % tiles_n) * BN + tl.arange(0, BN)
    column_ok = columns < CO
    line = first_line + position // LENGTH
    iw = position % LENGTH - PW
    ih = (line % OH) * SH - PH
    id_ = ((line // OH) % OD) * SD - PD
    x_row = (line // (OH * OD)) * XN + id_ * XD + ih * XH + iw * XW
    # A row that reads nothing is far outside at every tap.
    ih = tl.where((line < first_line + span) & (iw >= 0) & (iw < W), ih, -(2**30))
    w_column = columns * (KW * WK)
    ks = tl.arange(0, BK)
    accs = ()
    for _ in tl.static_range(KW):
        accs = accs + (tl.zeros((BM, BN), dtype=tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    if PREFETCH:
        prefetch(w_ptr + tl.minimum(columns, CO - 1) * (KW * WK), 0, KW * WK, KW * WK)
    wait(PDL)

    # The grid has no second dimension: this is 0, but a short loop of known length would be unrolled whole and take more registers.
    for step in range(tl.program_id(1), WK // BK):
        k = step * BK + ks
        if CI % BK == 0:
            tap = step // (CI // BK)
            offset = (step % (CI // BK) * BK + ks) * XC + ((tap // KH) * (DD * XD) + (tap % KH) * (DH * XH))
            ok = inside(ih + (tap % KH) * DH, H)
            if KD > 1 or PD > 0:
                ok = ok & inside(id_ + (tap // KH) * DD, D)
            ok = ok[:, None]
        else:
            tap = k // CI
            offset = (k % CI) * XC + (tap // KH) * (DD * XD) + (tap % KH) * (DH * XH)
            ok = (tap < KD * KH)[None, :] & inside(ih[:, None] + ((tap % KH) * DH)[None, :], H)
            if KD > 1 or PD > 0:
                ok = ok & inside(id_[:, None] + ((tap // KH) * DD)[None, :], D)
        a = tl.load(x_ptr + x_row[:, None] + offset[None, :], mask=ok, other=0.0)
        added = ()
        for kw in tl.static_range(KW):
            if CO % BN == 0:
                b = tl.load(w_ptr + w_column[None, :] + (kw * WK + k)[:, None])
            else:
                b = tl.load(w_ptr + w_column[None, :] + (kw * WK + k)[:, None], mask=column_ok[None, :], other=0.0)
            added = added + (tl.dot(a, b, accs[kw], input_precision=PRECISION),)  # type: ignore[assignment]  # noqa: RUF005
        accs = added

    acc = accs[KW - 1]  # type: ignore[var-annotated]
    following = tl.broadcast_to(tl.where(row < BM - 1, row + 1, row)[:, None], (BM, BN))
    for kw in tl.static_range(KW - 2, -1, -1):
        acc = accs[kw] + tl.gather(acc, following, 0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    # Where the rows go, computed here and not above: it would be held in registers over all the products.
    row = tl.arange(0, BM)[:, None]
    position = first_position + row
    ow = position % LENGTH
    line = first_line + position // LENGTH
    row_ok = (row < BM - KW + 1) & (line < first_line + span) & (ow < OW)
    out_ok = row_ok & column_ok[None, :]
    if HAS_RESIDUAL:
        r_row = line_start(line, OD, OH, RN, RD, RH) + ow * RW
        acc += tl.load(residual_ptr + r_row + (columns * RC)[None, :], mask=out_ok, other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION, ALPHA, y_ptr.dtype.element_ty == tl.float32)
    y_row = line_start(line, OD, OH, YN, YD, YH) + ow * YW
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + y_row + (columns * YC)[None, :], y, mask=out_ok)
    if MOMENTS:
        store_moments(parts_ptr, tile, y.to(tl.float32), tl.reshape(row_ok, (BM,)), columns, column_ok, CO, True)
