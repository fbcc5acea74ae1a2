"""attention: softmax(q k^T * scale + bias + mask) v in one pass over the keys, the scores never leave the chip.

Source: Dao, FlashAttention-2, 2023: a running maximum and sum a row, the accumulator rescaled when the maximum grows. Softmax is taken in base 2,
so that an exponential is one instruction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import begin


@triton.jit
def _tile(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE_R: tl.constexpr, STRIDE_C: tl.constexpr, ALL_ROWS: tl.constexpr):
    """A tile of q, k or v, zero outside of [ROWS, COLUMNS]. No comparison where none is needed: each one costs instructions."""
    at = pointer + rows[:, None] * STRIDE_R + columns[None, :] * STRIDE_C
    ALL_COLUMNS: tl.constexpr = columns.shape[0] == COLUMNS
    if ALL_ROWS and ALL_COLUMNS:
        tile = tl.load(at)
    elif ALL_COLUMNS:
        tile = tl.load(at, mask=(rows < ROWS)[:, None], other=0.0)
    elif ALL_ROWS:
        tile = tl.load(at, mask=(columns < COLUMNS)[None, :], other=0.0)
    else:
        tile = tl.load(at, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :], other=0.0)
    return tile


@triton.jit
def _addend(pointer, rows, columns, S: tl.constexpr, LIMIT: tl.constexpr, STRIDE_S: tl.constexpr, STRIDE_T: tl.constexpr, EVEN: tl.constexpr):
    """A tile of bias or mask in float32 and base 2; one row of it where all are the same. LIMIT columns may be read."""
    if STRIDE_S == 0:
        at = pointer + columns[None, :] * STRIDE_T
        tile = tl.load(at) if EVEN else tl.load(at, mask=(columns < LIMIT)[None, :], other=0.0)
    else:
        at = pointer + rows[:, None] * STRIDE_S + columns[None, :] * STRIDE_T
        if EVEN:
            tile = tl.load(at, mask=(rows < S)[:, None], other=0.0)
        else:
            tile = tl.load(at, mask=(rows < S)[:, None] & (columns < LIMIT)[None, :], other=0.0)
    return tile.to(tl.float32) * 1.4426950408889634


@triton.jit
def _attend(
    query, accumulator, peak, total, k, v, bias, mask, rows, start,
    S: tl.constexpr, T: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    K_T: tl.constexpr, K_D: tl.constexpr, V_T: tl.constexpr, V_E: tl.constexpr,
    HAS_BIAS: tl.constexpr, BIAS_S: tl.constexpr, BIAS_T: tl.constexpr, BIAS_LIMIT: tl.constexpr,
    HAS_MASK: tl.constexpr, MASK_S: tl.constexpr, MASK_T: tl.constexpr, MASK_LIMIT: tl.constexpr,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, EVEN: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """One block of keys: returns the accumulator, the rows' maxima and their sums, all three brought up to date.

    EVEN: all of its keys exist. FIRST: nothing came before, so that nothing is rescaled.
    """
    columns = start + tl.arange(0, BLOCK_N)
    key = _tile(k, columns, tl.arange(0, BLOCK_D), T, D, K_T, K_D, EVEN)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    # Without addends the scale is left to the subtraction below, where it makes a fused multiply-add.
    FACTOR: tl.constexpr = 1.0 if HAS_BIAS or HAS_MASK or SCALE <= 0 else SCALE
    if FACTOR != SCALE:
        scores = scores * SCALE
    if HAS_BIAS:
        scores += _addend(bias, rows, columns, S, BIAS_LIMIT, BIAS_S, BIAS_T, EVEN)
    if HAS_MASK:
        scores += _addend(mask, rows, columns, S, MASK_LIMIT, MASK_S, MASK_T, EVEN)
    if not EVEN:
        scores = tl.where((columns < T)[None, :], scores, float("-inf"))
    if CAUSAL:
        scores = tl.where(columns[None, :] <= rows[:, None], scores, float("-inf"))
    highest = tl.max(scores, 1) * FACTOR
    new_peak = highest if FIRST else tl.maximum(peak, highest)
    # A row of which all is hidden so far: its exponentials must be 0 and not NaN, keys may come.
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores * FACTOR - base[:, None])
    value = _tile(v, columns, tl.arange(0, BLOCK_E), T, E, V_T, V_E, EVEN)
    if FIRST:
        total = tl.sum(weights, 1)
        accumulator = tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    else:
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, 1)
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator * shrink[:, None], input_precision=PRECISION)
    return accumulator, new_peak, total


@triton.jit
def attention(
    q, k, v, bias, mask, out,
    H: tl.constexpr, S: tl.constexpr, T: tl.constexpr, D: tl.constexpr, E: tl.constexpr, WINDOWS: tl.constexpr, IMAGES: tl.constexpr,
    Q_B: tl.constexpr, Q_H: tl.constexpr, Q_S: tl.constexpr, Q_D: tl.constexpr,
    K_B: tl.constexpr, K_H: tl.constexpr, K_T: tl.constexpr, K_D: tl.constexpr,
    V_B: tl.constexpr, V_H: tl.constexpr, V_T: tl.constexpr, V_E: tl.constexpr,
    OUT_B: tl.constexpr, OUT_H: tl.constexpr, OUT_S: tl.constexpr, OUT_E: tl.constexpr,
    HAS_BIAS: tl.constexpr, BIAS_W: tl.constexpr, BIAS_B: tl.constexpr, BIAS_H: tl.constexpr, BIAS_S: tl.constexpr, BIAS_T: tl.constexpr,
    BIAS_LIMIT: tl.constexpr,
    HAS_MASK: tl.constexpr, MASK_W: tl.constexpr, MASK_B: tl.constexpr, MASK_H: tl.constexpr, MASK_S: tl.constexpr, MASK_T: tl.constexpr,
    MASK_LIMIT: tl.constexpr,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TAIL: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A block of BLOCK_M queries of one head, on a grid of (blocks * heads * items).

    Keys go in blocks of BLOCK_N, what is left in one of TAIL (0: nothing is left); a short sequence is all tail. Programs that read the same
    window of the addends are neighbours: item b is image * WINDOWS + window.

    Args:
        q: [B, H, S, D]; k: [B, H, T, D]; v: [B, H, T, E]; out: [B, H, S, E]; any strides, in elements.
        bias, mask: floating, row b % W of [W, H or 1, S or 1, T or 1], stride 0 along dimensions of 1; LIMIT columns are readable.
        SCALE: times log2(e).
        PRECISION: of float32 products, "ieee" or "tf32".
    """
    begin(PDL)
    BLOCKS: tl.constexpr = (S + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    block = program % BLOCKS
    head = program // BLOCKS % H
    item = program // (BLOCKS * H)
    item = item % IMAGES * WINDOWS + item // IMAGES
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    k += item * K_B + head * K_H
    v += item * V_B + head * V_H
    bias += item % BIAS_W * BIAS_B + head * BIAS_H
    mask += item % MASK_W * MASK_B + head * MASK_H
    query = _tile(q + item * Q_B + head * Q_H, rows, tl.arange(0, BLOCK_D), S, D, Q_S, Q_D, S % BLOCK_M == 0)

    accumulator = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    FULL: tl.constexpr = T - T % BLOCK_N if T > TAIL else 0
    if FULL > 0:
        end = tl.minimum(FULL, (block + 1) * BLOCK_M) if CAUSAL else FULL
        for start in range(0, end, BLOCK_N):
            accumulator, peak, total = _attend(
                query, accumulator, peak, total, k, v, bias, mask, rows, start, S, T, D, E, K_T, K_D, V_T, V_E,
                HAS_BIAS, BIAS_S, BIAS_T, BIAS_LIMIT, HAS_MASK, MASK_S, MASK_T, MASK_LIMIT,
                SCALE, CAUSAL, PRECISION, BLOCK_N, BLOCK_D, BLOCK_E, True, False,
            )  # fmt: skip
    if TAIL > 0:
        accumulator, peak, total = _attend(
            query, accumulator, peak, total, k, v, bias, mask, rows, FULL, S, T, D, E, K_T, K_D, V_T, V_E,
            HAS_BIAS, BIAS_S, BIAS_T, BIAS_LIMIT, HAS_MASK, MASK_S, MASK_T, MASK_LIMIT,
            SCALE, CAUSAL, PRECISION, TAIL, BLOCK_D, BLOCK_E, FULL + TAIL == T, FULL == 0,
        )  # fmt: skip
    result = accumulator / total[:, None]  # a row of which all is hidden: 0 / 0, NaN as softmax gives
    channels = tl.arange(0, BLOCK_E)
    at = out + item * OUT_B + head * OUT_H + rows[:, None] * OUT_S + channels[None, :] * OUT_E
    tl.store(at, result.to(out.dtype.element_ty), mask=(rows < S)[:, None] & (channels < E)[None, :])
