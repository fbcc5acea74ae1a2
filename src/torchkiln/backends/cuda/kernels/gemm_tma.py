"""gemm_tma: a matrix product with its whole epilogue, its tiles carried by the tensor memory accelerator (compute capability 9.0).

A tensor descriptor tells the accelerator how a matrix lies; one thread then asks for a whole tile, which arrives in shared memory while the others
compute. Descriptors are made in the kernel, in its global scratch memory, after ``begin``: that memory may be another tensor's before.

Persistent programs: each computes every PROGRAMS-th tile, so that the loads of its next tile overlap the epilogue of this one.
Source: Triton's tutorial 09, persistent matmul.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, begin


@triton.jit
def gemm_tma(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    XS: tl.constexpr,
    WS: tl.constexpr,
    RS: tl.constexpr,
    YS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
    LOOP: tl.constexpr,
    STAGES: tl.constexpr,
    HALVES: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[m, n] = activation(sum over k of x[m, k] * w[n, k] + bias[n] + residual[m, n]).

    x: [M, K], w: [N, K], residual and y: [M, N]; elements of a row next to each other, rows XS, WS, RS and YS elements apart, multiples of 16 bytes.
    RESIDUAL: "none"; "late": by descriptor, after the products; "early": by descriptor, before them; "pointers": by ordinary loads before them, which
        are waited for only where the values are used.
    LOOP: "nested": the loads of a tile's blocks of K run ahead within the tile; "flat": also across tiles; "unrolled": few blocks of K: the loads of
        whole tiles, residual too, run ahead over STAGES tiles.
    HALVES: store the left and the right half of a tile one after the other: half the shared memory.
    Grid: (PROGRAMS,), at most the number of tiles.
    """
    begin(PDL)
    tiles_m: tl.constexpr = (M + BM - 1) // BM
    tiles_n: tl.constexpr = (N + BN - 1) // BN
    steps: tl.constexpr = (K + BK - 1) // BK
    columns: tl.constexpr = BN // 2 if HALVES else BN
    whole: tl.constexpr = BN if RESIDUAL == "early" else columns
    x_tiles = tl.make_tensor_descriptor(x_ptr, shape=[M, K], strides=[XS, 1], block_shape=[BM, BK])
    w_tiles = tl.make_tensor_descriptor(w_ptr, shape=[N, K], strides=[WS, 1], block_shape=[BN, BK])
    y_tiles = tl.make_tensor_descriptor(y_ptr, shape=[M, N], strides=[YS, 1], block_shape=[BM, columns])
    if RESIDUAL == "late" or RESIDUAL == "early":
        r_tiles = tl.make_tensor_descriptor(residual_ptr, shape=[M, N], strides=[RS, 1], block_shape=[BM, whole])
    else:
        r_tiles = y_tiles  # not read

    if LOOP == "unrolled":
        for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS, num_stages=STAGES):
            row, column = place_of_tile(tile, tiles_m, tiles_n, BM, BN, GROUP_M)
            residual = _early(residual_ptr, r_tiles, row, column, M, N, RS, RESIDUAL, BM, BN)
            acc = tl.zeros((BM, BN), dtype=tl.float32)
            for step in tl.static_range(steps):
                acc = tl.dot(x_tiles.load([row, step * BK]), w_tiles.load([column, step * BK]).T, acc)
            _finish(acc, residual, bias_ptr, r_tiles, y_tiles, row, column, N, HAS_BIAS, RESIDUAL, ACTIVATION, ALPHA, BM, BN, HALVES)
    else:
        for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS, flatten=LOOP == "flat"):
            row, column = place_of_tile(tile, tiles_m, tiles_n, BM, BN, GROUP_M)
            residual = _early(residual_ptr, r_tiles, row, column, M, N, RS, RESIDUAL, BM, BN)
            acc = tl.zeros((BM, BN), dtype=tl.float32)
            for step in range(steps):
                acc = tl.dot(x_tiles.load([row, step * BK]), w_tiles.load([column, step * BK]).T, acc)
            _finish(acc, residual, bias_ptr, r_tiles, y_tiles, row, column, N, HAS_BIAS, RESIDUAL, ACTIVATION, ALPHA, BM, BN, HALVES)


@triton.jit
def place_of_tile(tile, tiles_m: tl.constexpr, tiles_n: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GROUP_M: tl.constexpr):
    """The first row and column of a tile: bands of GROUP_M rows of tiles, so that neighbours in time share tiles of x and w."""
    in_band: tl.constexpr = GROUP_M * tiles_n
    first = (tile // in_band) * GROUP_M
    band = tl.minimum(tiles_m - first, GROUP_M)
    return (first + (tile % in_band) % band) * BM, ((tile % in_band) // band) * BN


@triton.jit
def _early(
    residual_ptr,
    r_tiles,
    row,
    column,
    M: tl.constexpr,
    N: tl.constexpr,
    RS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """The residual's tile, asked for before the products; a scalar where it is read later or there is none."""
    found = 0.0
    if RESIDUAL == "early":
        found = r_tiles.load([row, column])
    elif RESIDUAL == "pointers":
        rows = row + tl.arange(0, BM)
        columns = column + tl.arange(0, BN)
        found = tl.load(residual_ptr + rows[:, None] * RS + columns[None, :], mask=(rows < M)[:, None] & (columns < N)[None, :], other=0.0)
    return found


@triton.jit
def _finish(
    acc,
    residual,
    bias_ptr,
    r_tiles,
    y_tiles,
    row,
    column,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    HALVES: tl.constexpr,
):
    """The epilogue of a tile, and its store."""
    is_early: tl.constexpr = RESIDUAL == "early" or RESIDUAL == "pointers"
    if HALVES:
        half: tl.constexpr = BN // 2
        left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, half)), (0, 2, 1)))
        if is_early:
            residual_left, residual_right = tl.split(tl.permute(tl.reshape(residual, (BM, 2, half)), (0, 2, 1)))
        else:
            residual_left, residual_right = residual, residual
        _store(left, residual_left, bias_ptr, r_tiles, y_tiles, row, column, N, HAS_BIAS, RESIDUAL, ACTIVATION, ALPHA, half)
        _store(right, residual_right, bias_ptr, r_tiles, y_tiles, row, column + half, N, HAS_BIAS, RESIDUAL, ACTIVATION, ALPHA, half)
    else:
        _store(acc, residual, bias_ptr, r_tiles, y_tiles, row, column, N, HAS_BIAS, RESIDUAL, ACTIVATION, ALPHA, BN)


@triton.jit
def _store(
    acc,
    residual,
    bias_ptr,
    r_tiles,
    y_tiles,
    row,
    column,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """acc: float32 [rows of a tile, COLUMNS], from ``column`` on."""
    if HAS_BIAS:
        columns = column + tl.arange(0, COLUMNS)
        if N % COLUMNS == 0:
            acc += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
        else:
            acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL == "late":
        acc += r_tiles.load([row, column]).to(tl.float32)
    elif RESIDUAL != "none":
        acc += residual.to(tl.float32)
    y_tiles.store([row, column], activate(acc, ACTIVATION, ALPHA, y_tiles.dtype == tl.float32).to(y_tiles.dtype))
