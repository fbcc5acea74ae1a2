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
def place(row, BM: tl.constexpr, FOLD: tl.constexpr):
    """Which position of a tile of BM a row of it is. With FOLD, 2 or 4, neighbouring positions are rows that a thread of BM // (8 * FOLD) warps holds
    of a matrix product's result: row (repetition, warp, half, lane) is position (warp, lane, repetition, half)."""
    if FOLD == 1:
        position = row
    else:
        warps: tl.constexpr = BM // (8 * FOLD)
        position = ((row // 16 % warps) * 8 + row % 8) * FOLD + row // (16 * warps) * 2 + row // 8 % 2
    return position


@triton.jit
def unfold(x, FOLD: tl.constexpr):
    """x [BM, BN], rows as ``place`` has them -> FOLD tensors [BM // FOLD, BN]: the positions of each remainder, divided by FOLD."""
    BM: tl.constexpr = x.shape[0]
    BN: tl.constexpr = x.shape[1]
    ROWS: tl.constexpr = BM // FOLD
    if FOLD == 1:
        parts = (x,)
    elif FOLD == 2:
        first, second = tl.split(tl.permute(tl.reshape(x, (BM // 16, 2, 8, BN)), (0, 2, 3, 1)))
        parts = tl.reshape(first, (ROWS, BN)), tl.reshape(second, (ROWS, BN))  # type: ignore[assignment]
    else:
        low, high = tl.split(tl.permute(tl.reshape(x, (2, BM // 32, 2, 8, BN)), (1, 3, 4, 2, 0)))
        first, second = tl.split(low)
        third, fourth = tl.split(high)
        parts = tl.reshape(first, (ROWS, BN)), tl.reshape(second, (ROWS, BN)), tl.reshape(third, (ROWS, BN)), tl.reshape(fourth, (ROWS, BN))  # type: ignore[assignment]
    return parts


@triton.jit
def fold(parts, BM: tl.constexpr, BN: tl.constexpr, FOLD: tl.constexpr):
    """The opposite of ``unfold``."""
    if FOLD == 1:
        x = parts[0]
    elif FOLD == 2:
        x = tl.reshape(tl.permute(tl.reshape(tl.join(parts[0], parts[1]), (BM // 16, 8, BN, 2)), (0, 3, 1, 2)), (BM, BN))
    else:
        both = tl.join(tl.join(parts[0], parts[1]), tl.join(parts[2], parts[3]))
        x = tl.reshape(tl.permute(tl.reshape(both, (BM // 32, 8, BN, 2, 2)), (4, 0, 3, 1, 2)), (BM, BN))
    return x


@triton.jit
def conv_lines(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    parts_ptr,
    BANDS: tl.constexpr,
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
    BAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    FOLD: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, :, od, oh, ow] = activation(sum over taps and channels of x * w + bias + residual), with stride and dilation 1 along W.

    Rows of the GEMM are input positions along W: lines, one behind the other, each of LENGTH positions: PW zeros, then the W positions of an input
    line. What is behind a line is the zeros of the next one, so LENGTH = max(W + PW, OW). A tile of BM positions is loaded once for each block of K
    and multiplied with the weights of each of the KW taps; the results are added when all are done, each shifted by its tap: y at position v is the
    sum over kw of result kw at position v + kw. So a tile gives BM - KW + 1 positions, and tiles overlap by KW - 1.

    A tile does this for BAND neighbouring output lines, a band, of which an image has OD * ceil(OH / BAND); BANDS are those of all images. Lines of
    the last band that are not below OH are left out. With BAND > 1 (for SH == DH == 1 and CI % BK == 0) it loads BAND + KH - 1 input lines, and the
    weights, once for all output lines of the band.

    x: [N, CI, D, H, W] with strides XN ... XW; y and residual: [N, CO, OD, OH, OW].
    w: [CO, KW, WK] dense: K is (kd, kh, channel), with zeros from KD * KH * CI to WK, a multiple of BK.
    parts: with MOMENTS, float32 [N, tiles of an image * BAND, 3, CO]: the moments of each line of every tile of y (see kernels/moments.py), which
        then has positions of one image only.
    FOLD: 1, 2 or 4 neighbouring positions are with one thread where results are shifted, so that most move between its registers (see ``place``).
    PREFETCH: as conv_gemm has it.
    Grid: (tiles of positions times tiles of CO,).
    """
    release(PDL)
    tiles_n: tl.constexpr = (CO + BN - 1) // BN
    pid = tl.program_id(0)
    row = tl.arange(0, BM)
    bands_h: tl.constexpr = (OH + BAND - 1) // BAND
    # The bands that tiles divide: all, or those of one image.
    span: tl.constexpr = OD * bands_h if MOMENTS else BANDS
    tiles_span: tl.constexpr = ((span - 1) * LENGTH + OW + BM - KW) // (BM - KW + 1)
    tile = pid // tiles_n
    if span == BANDS:
        first_band = 0
        first_position = tile * (BM - KW + 1)
    else:
        first_band = (tile // tiles_span) * span
        first_position = (tile % tiles_span) * (BM - KW + 1)
    position = first_position + place(row, BM, FOLD)
    columns = (pid % tiles_n) * BN + tl.arange(0, BN)
    column_ok = columns < CO
    band = first_band + position // LENGTH
    iw = position % LENGTH - PW
    ih = (band % bands_h) * (BAND * SH) - PH
    id_ = ((band // bands_h) % OD) * SD - PD
    x_row = (band // (bands_h * OD)) * XN + id_ * XD + ih * XH + iw * XW
    # A row that reads nothing is far outside at every tap.
    ih = tl.where((band < first_band + span) & (iw >= 0) & (iw < W), ih, -(2**30))
    w_column = columns * (KW * WK)
    ks = tl.arange(0, BK)
    accs = ()
    for _ in tl.static_range(BAND * KW):
        accs = accs + (tl.zeros((BM, BN), dtype=tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    if PREFETCH:
        prefetch(w_ptr + tl.minimum(columns, CO - 1) * (KW * WK), 0, KW * WK, KW * WK)
    wait(PDL)
    # Asked for before the products, it is there when they are done; a large tile needs the registers.
    early_bias: tl.constexpr = HAS_BIAS and BM * BN <= 4096
    if early_bias:
        bias = tl.load(bias_ptr + columns, mask=column_ok, other=0.0)

    # The grid has no second dimension: this is 0, but a short loop of known length would be unrolled whole and take more registers.
    first = tl.program_id(1)
    if BAND == 1:
        for step in range(first, WK // BK):
            k = step * BK + ks
            # Not in a loop of one step: this input would not depend on the step and be loaded in front of the loop, whose copies Triton then leaves
            # without a fence (see fences.py).
            if CI % BK == 0 and WK > BK:
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
    else:
        blocks: tl.constexpr = CI // BK
        for step in range(first, KD * blocks):
            kd = step // blocks
            channel = (step % blocks) * BK + ks
            weights = ()
            for tap in tl.static_range(KH * KW):
                at = w_column[None, :] + ((tap % KW) * WK + (tap // KW) * CI + kd * (KH * CI) + channel)[:, None]
                if CO % BN == 0:
                    weights = weights + (tl.load(w_ptr + at),)  # type: ignore[assignment]  # noqa: RUF005
                else:
                    weights = weights + (tl.load(w_ptr + at, mask=column_ok[None, :], other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
            for of_band in tl.static_range(BAND + KH - 1):
                ok = inside(ih + of_band, H)
                if KD > 1 or PD > 0:
                    ok = ok & inside(id_ + kd * DD, D)
                a = tl.load(x_ptr + x_row[:, None] + (channel * XC + (kd * (DD * XD) + of_band * XH))[None, :], mask=ok[:, None], other=0.0)
                added = ()
                for each in tl.static_range(BAND * KW):
                    # The input line is tap of_band - each // KW of the output line each // KW of the band.
                    if of_band >= each // KW and of_band < each // KW + KH:
                        b = weights[(of_band - each // KW) * KW + each % KW]
                        added = added + (tl.dot(a, b, accs[each], input_precision=PRECISION),)  # type: ignore[assignment]  # noqa: RUF005
                    else:
                        added = added + (accs[each],)  # type: ignore[assignment]  # noqa: RUF005
                accs = added

    following = tl.minimum(tl.arange(0, BM // FOLD) + 1, BM // FOLD - 1)
    following = tl.broadcast_to(following[:, None], (BM // FOLD, BN))
    # Where the rows go, computed here and not above: it would be held in registers over all the products. So would the tile be, if this were the
    # expression above.
    row = place(tl.arange(0, BM)[:, None], BM, FOLD)
    tile = (tl.program_id(0) + tl.program_id(1)) // tiles_n
    if span == BANDS:
        first_band = 0
        first_position = tile * (BM - KW + 1)
    else:
        first_band = (tile // tiles_span) * span
        first_position = (tile % tiles_span) * (BM - KW + 1)
    position = first_position + row
    ow = position % LENGTH
    band = first_band + position // LENGTH
    row_ok = (row < BM - KW + 1) & (band < first_band + span) & (ow < OW)
    for of_band in tl.static_range(BAND):
        parts = unfold(accs[of_band * KW + KW - 1], FOLD)
        for kw in tl.static_range(KW - 2, -1, -1):
            own = unfold(accs[of_band * KW + kw], FOLD)
            added = ()
            for each in tl.static_range(FOLD - 1):
                added = added + (own[each] + parts[each + 1],)  # type: ignore[assignment]  # noqa: RUF005
            parts = added + (own[FOLD - 1] + tl.gather(parts[0], following, 0),)  # noqa: RUF005
        acc = fold(parts, BM, BN, FOLD)
        if HAS_BIAS:
            if not early_bias:
                bias = tl.load(bias_ptr + columns, mask=column_ok, other=0.0)
            acc += bias.to(tl.float32)[None, :]
        if OH % BAND == 0:
            line = band * BAND + of_band
            line_ok = row_ok
        else:
            line = (band // bands_h) * OH + (band % bands_h) * BAND + of_band
            line_ok = row_ok & ((band % bands_h) * BAND + of_band < OH)
        out_ok = line_ok & column_ok[None, :]
        if HAS_RESIDUAL:
            r_row = line_start(line, OD, OH, RN, RD, RH) + ow * RW
            acc += tl.load(residual_ptr + r_row + (columns * RC)[None, :], mask=out_ok, other=0.0).to(tl.float32)
        acc = activate(acc, ACTIVATION, ALPHA, y_ptr.dtype.element_ty == tl.float32)
        y_row = line_start(line, OD, OH, YN, YD, YH) + ow * YW
        y = acc.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + y_row + (columns * YC)[None, :], y, mask=out_ok)
        if MOMENTS:
            store_moments(parts_ptr, tile * BAND + of_band, y.to(tl.float32), tl.reshape(line_ok, (BM,)), columns, column_ok, CO, True)
