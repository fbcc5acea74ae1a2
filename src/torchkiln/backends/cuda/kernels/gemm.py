"""gemm: a matrix product whose rows are normalized on the way, and which gives the moments of its own rows.

layer_norm(x) @ w.T = ((x @ v.T) - mean * sum(v)) / deviation + norm_bias @ w.T, with v the weight times the norm's weight: the norm is a correction
of the product, row by row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, prefetch, release, wait


@triton.jit
def _load_parts(moments_ptr, rows, STRIDE: tl.constexpr, PARTS: tl.constexpr, P2: tl.constexpr):
    """Means and sums of squared deviations of the rows' parts, each [BM, P2]."""
    part = tl.arange(0, P2)
    at = moments_ptr + rows[:, None] * STRIDE + part[None, :]
    mask = (part < PARTS)[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + PARTS, mask=mask, other=0.0)


@triton.jit
def _combine_parts(means, squares, PARTS: tl.constexpr, PART: tl.constexpr, EPS: tl.constexpr):
    """Each row's mean and 1 / sqrt(variance + EPS). Source: Chan, Golub and LeVeque 1979, for parts of the same size."""
    mean = tl.sum(means, 1) * (1.0 / PARTS)
    change = tl.where((tl.arange(0, means.shape[1]) < PARTS)[None, :], means - mean[:, None], 0.0)
    variance = (tl.sum(squares, 1) + PART * tl.sum(change * change, 1)) * (1.0 / (PARTS * PART))
    return mean, tl.rsqrt(variance + EPS)


@triton.jit
def gemm(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    moments_ptr,
    sums_ptr,
    y_ptr,
    own_moments_ptr,
    partial_ptr,
    counter_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    WK: tl.constexpr,
    XR: tl.constexpr,
    RR: tl.constexpr,
    YR: tl.constexpr,
    MR: tl.constexpr,
    OR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORMALIZED: tl.constexpr,
    MOMENTS: tl.constexpr,
    PART: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT: tl.constexpr,
    EARLY: tl.constexpr,
    HOLD: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[M, N] = activation(norm(x) @ w.T + bias + residual), norm only where NORMALIZED.

    Args:
        x: [M, K], residual and y: [M, N], rows XR, RR and YR apart.
        w: [N, WK], zero from K on; times the norm's weight where NORMALIZED.
        bias: float32 [N], with the norm's bias in it.
        moments: float32, rows MR apart: the means of the K / PART parts of x's rows, then their sums of squared deviations.
        sums: float32 [N], the sums of w's rows.
        own_moments: with MOMENTS the same of y's rows, OR apart.
        partial, counter: as conv_gemm has them, with SPLIT > 1.
        EARLY: ask for the residual before the products. HOLD: ask for the moments before the products. PREFETCH: as conv_gemm has it.
    Grid: (tiles of M times tiles of N, 1, SPLIT).
    """
    release(PDL)
    pid = tl.program_id(0)
    split = tl.program_id(2)
    tiles_m: tl.constexpr = (M + BM - 1) // BM
    tiles_n: tl.constexpr = (N + BN - 1) // BN
    in_band: tl.constexpr = GROUP_M * tiles_n
    first_m = (pid // in_band) * GROUP_M
    band_m = tl.minimum(tiles_m - first_m, GROUP_M)
    tile_m = first_m + (pid % in_band) % band_m
    tile_n = (pid % in_band) // band_m

    rows = tile_m * BM + tl.arange(0, BM)
    columns = tile_n * BN + tl.arange(0, BN)
    ok = (rows < M)[:, None] & (columns < N)[None, :]
    near = tl.minimum(rows, M - 1)  # rows that do not exist read the last one, and are not stored
    steps: tl.constexpr = WK // BK
    per_split: tl.constexpr = (steps + SPLIT - 1) // SPLIT
    first = split * per_split
    last = tl.minimum(first + per_split, steps)
    ks = tl.arange(0, BK)
    x_at = x_ptr + near[:, None] * XR + ks[None, :]
    w_at = w_ptr + (tl.minimum(columns, N - 1) * WK)[None, :] + ks[:, None]
    residual_at = residual_ptr + near[:, None] * RR + columns[None, :]
    PARTS: tl.constexpr = K // PART
    P2: tl.constexpr = triton.next_power_of_2(PARTS)
    if PREFETCH:
        LINE: tl.constexpr = 1024 // w_ptr.dtype.element_ty.primitive_bitwidth
        LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(per_split * BK, LINE))
        line = tl.minimum(first * BK + tl.arange(0, LINES) * LINE, WK - 1)
        prefetch(w_ptr + (tl.minimum(columns, N - 1) * WK)[:, None] + line[None, :])
    wait(PDL)
    if NORMALIZED and HOLD:
        means, squares = _load_parts(moments_ptr, near, MR, PARTS, P2)
    if HAS_RESIDUAL and EARLY:
        residual = tl.load(residual_at, mask=ok, other=0.0)

    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(first, last):
        if K % BK == 0:
            a = tl.load(x_at + step * BK)
        else:
            a = tl.load(x_at + step * BK, mask=(step * BK + ks < K)[None, :], other=0.0)
        acc = tl.dot(a, tl.load(w_at + step * BK), acc)

    is_last = True
    if SPLIT > 1:
        tile = (tile_m * tiles_n + tile_n).to(tl.int64)
        within = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        tl.store(partial_ptr + (tile * SPLIT + split) * (BM * BN) + within, acc)
        tl.debug_barrier()  # every thread of the block has stored before one of them counts the block as arrived
        is_last = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel") == SPLIT - 1
        if is_last:
            tl.store(counter_ptr + tile, 0)
            acc = tl.zeros((BM, BN), dtype=tl.float32)
            for part in range(SPLIT):
                acc += tl.load(partial_ptr + (tile * SPLIT + part) * (BM * BN) + within, cache_modifier=".cg")
    if is_last:
        if NORMALIZED:
            if not HOLD:
                means, squares = _load_parts(moments_ptr, near, MR, PARTS, P2)
            mean, scale = _combine_parts(means, squares, PARTS, PART, EPS)
            sums = tl.load(sums_ptr + columns, mask=columns < N, other=0.0)
            acc = (acc - mean[:, None] * sums[None, :]) * scale[:, None]
        if HAS_BIAS:
            acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0)[None, :]
        if HAS_RESIDUAL:
            if not EARLY:
                residual = tl.load(residual_at, mask=ok, other=0.0)
            acc += residual.to(tl.float32)
        y = activate(acc, ACTIVATION, ALPHA, y_ptr.dtype.element_ty == tl.float32).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + rows[:, None] * YR + columns[None, :], y, mask=ok)
        if MOMENTS:
            OWN: tl.constexpr = BN // PART
            parts = tl.reshape(y.to(tl.float32), (BM, OWN, PART))
            centre = tl.sum(parts, 2) * (1.0 / PART)
            change = parts - centre[:, :, None]
            part = tile_n * OWN + tl.arange(0, OWN)
            at = own_moments_ptr + rows[:, None] * OR + part[None, :]
            mask = (rows < M)[:, None] & (part < N // PART)[None, :]
            tl.store(at, centre, mask=mask)
            tl.store(at + N // PART, tl.sum(change * change, 2), mask=mask)
