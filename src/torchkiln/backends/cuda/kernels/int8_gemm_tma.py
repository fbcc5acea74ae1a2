"""int8_gemm_tma: a matrix product of 8-bit integers with its whole epilogue, its tiles carried by the tensor memory accelerator: see gemm_tma."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import begin
from .gemm_tma import place_of_tile
from .int8_epilogue import add_residual, quantized, scaled_sums


@triton.jit
def int8_gemm_tma(
    x_ptr,
    w_ptr,
    scales_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    inverse_ptr,
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
    HAS_RESIDUAL_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP_M: tl.constexpr,
    PROGRAMS: tl.constexpr,
    FLATTEN: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[m, n] = quantized(activation(sum over k of x[m, k] * w[n, k], times scales[n], + bias[n] + residual[m, n])); see ``fused_ops.int8``.

    x: int8 [M, K], w: int8 [N, K], residual and y: [M, N], int8 or floating; elements of a row next to each other, rows XS, WS, RS and YS elements
        apart, multiples of 16 bytes.
    RESIDUAL: "none"; "late": fetched after the products; "early": before them.
    FLATTEN: the loads of blocks of K run ahead across the tiles of a program, not within a tile only.
    Grid: (PROGRAMS,), at most the number of tiles.
    """
    begin(PDL)
    tiles_m: tl.constexpr = (M + BM - 1) // BM
    tiles_n: tl.constexpr = (N + BN - 1) // BN
    steps: tl.constexpr = (K + BK - 1) // BK
    x_tiles = tl.make_tensor_descriptor(x_ptr, shape=[M, K], strides=[XS, 1], block_shape=[BM, BK])
    w_tiles = tl.make_tensor_descriptor(w_ptr, shape=[N, K], strides=[WS, 1], block_shape=[BN, BK])
    y_tiles = tl.make_tensor_descriptor(y_ptr, shape=[M, N], strides=[YS, 1], block_shape=[BM, BN])
    if RESIDUAL != "none":
        r_tiles = tl.make_tensor_descriptor(residual_ptr, shape=[M, N], strides=[RS, 1], block_shape=[BM, BN])

    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS, flatten=FLATTEN):
        row, column = place_of_tile(tile, tiles_m, tiles_n, BM, BN, GROUP_M)
        if RESIDUAL == "early":
            residual = r_tiles.load([row, column])
        acc = tl.zeros((BM, BN), dtype=tl.int32)
        for step in range(steps):
            acc = tl.dot(x_tiles.load([row, step * BK]), w_tiles.load([column, step * BK]).T, acc, out_dtype=tl.int32)
        columns = column + tl.arange(0, BN)
        value = scaled_sums(acc, scales_ptr, bias_ptr, columns, columns < N, HAS_BIAS)
        if RESIDUAL == "late":
            residual = r_tiles.load([row, column])
        if RESIDUAL != "none":
            value = add_residual(value, residual, residual_scale_ptr, HAS_RESIDUAL_SCALE)
        y_tiles.store([row, column], quantized(value, inverse_ptr, ACTIVATION, ALPHA, LOW, HIGH, y_tiles.dtype))
