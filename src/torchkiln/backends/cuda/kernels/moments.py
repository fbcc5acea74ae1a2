"""moments: mean and variance of each channel over the positions of an image, as parts that are combined.

A part is a set of positions: float32 [3, C], its count, mean and sum of squared deviations from that mean (M2). Parts are combined as Chan, Golub and
LeVeque 1979 do, so that no difference of large squares is taken.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import begin
from .reduce import strided


@triton.jit
def store_moments(parts_ptr, part, values, row_ok, channels, channel_ok, C: tl.constexpr, RAGGED: tl.constexpr):
    """Store the moments of a tile of positions as one part.

    parts: float32 [parts, 3, C], of one image. values: float32 [positions, BN], rounded as the tensor is. channels: [BN], of which channel_ok exist.
    RAGGED: whether some positions of the tile may not exist (row_ok False); their values are not read.
    """
    ROWS: tl.constexpr = values.shape[0]
    if RAGGED:
        count = tl.sum(row_ok.to(tl.float32), 0)
        values = tl.where(row_ok[:, None], values, 0.0)
        mean = tl.sum(values, 0) * (1.0 / tl.maximum(count, 1.0))
    else:
        count = ROWS * 1.0
        mean = tl.sum(values, 0) * (1.0 / ROWS)
    change = values - mean[None, :]
    if RAGGED:
        change = tl.where(row_ok[:, None], change, 0.0)
    m2 = tl.sum(change * change, 0)
    at = parts_ptr + part * (3 * C) + channels
    tl.store(at, tl.zeros_like(mean) + count, mask=channel_ok)
    tl.store(at + C, mean, mask=channel_ok)
    tl.store(at + 2 * C, m2, mask=channel_ok)


@triton.jit
def partial_moments(
    x,
    parts,
    C: tl.constexpr,
    P: tl.constexpr,
    XN: tl.constexpr,
    XC: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D3: tl.constexpr,
    D4: tl.constexpr,
    XS0: tl.constexpr,
    XS1: tl.constexpr,
    XS2: tl.constexpr,
    XS3: tl.constexpr,
    XS4: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """x [N, C, P positions] -> parts [N, tiles, 3, C] of BLOCK_P positions each. Grid: (tiles, blocks of channels, N)."""
    begin(PDL)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.program_id(2)
    at = n * XN + strided(p, D1, D2, D3, D4, XS0, XS1, XS2, XS3, XS4)[:, None] + (c * XC)[None, :]
    values = tl.load(x + at, mask=(p < P)[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    TILES: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    store_moments(parts + n * (TILES * 3 * C), tl.program_id(0), values, p < P, c, c < C, C, P % BLOCK_P != 0)


@triton.jit
def _combined(parts, first, last, c, inside, C: tl.constexpr, LENGTH: tl.constexpr, BLOCK_S: tl.constexpr):
    """Count, mean and M2, each [channels], of the parts from ``first`` to before ``last``, at most LENGTH of them."""
    BLOCK_C: tl.constexpr = c.shape[0]
    count = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    mean = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, LENGTH, BLOCK_S):
        part = first + start + tl.arange(0, BLOCK_S)
        mask = (part < last)[:, None] & inside[None, :]
        at = parts + part[:, None] * (3 * C) + c[None, :]
        # Past the L1 cache: other multiprocessors may have written them within the same launch.
        more = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        change = tl.load(at + C, mask=mask, other=0.0, cache_modifier=".cg") - mean
        m2_more = tl.load(at + 2 * C, mask=mask, other=0.0, cache_modifier=".cg")
        share = more / tl.maximum(count + more, 1.0)
        m2 += m2_more + change * change * (count * share)
        mean += change * share
        count += more
    total = tl.maximum(tl.sum(count, 0), 1.0)
    centre = tl.sum(mean * count, 0) / total
    change = mean - centre[None, :]
    return total, centre, tl.sum(m2 + count * change * change, 0)


@triton.jit
def combine_moments(
    parts,
    partial,
    counter,
    moments,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """parts [N, PARTS, 3, C] -> moments [N, 2, C]: mean and variance.

    A program combines CHUNK parts. Where these are not all, it stores them as one part in ``partial`` [N, chunks, 3, C], and the last program to
    arrive combines those, always in the same order. counter: int32 [N, blocks of channels], zero before and after.
    Grid: (chunks, blocks of channels, N).
    """
    begin(PDL)
    CHUNKS: tl.constexpr = (PARTS + CHUNK - 1) // CHUNK
    n = tl.program_id(2)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    first = tl.program_id(0) * CHUNK
    count, mean, m2 = _combined(parts + n * (PARTS * 3 * C), first, tl.minimum(first + CHUNK, PARTS), c, inside, C, CHUNK, BLOCK_S)
    is_last = True
    if CHUNKS > 1:
        chunks = partial + n * (CHUNKS * 3 * C)
        at = chunks + tl.program_id(0) * (3 * C) + c
        tl.store(at, count, mask=inside)
        tl.store(at + C, mean, mask=inside)
        tl.store(at + 2 * C, m2, mask=inside)
        tl.debug_barrier()  # every thread of the block has stored before one of them counts the block as arrived
        mine = counter + n * tl.num_programs(1) + tl.program_id(1)
        is_last = tl.atomic_add(mine, 1, sem="acq_rel") == CHUNKS - 1
        if is_last:
            tl.store(mine, 0)
            count, mean, m2 = _combined(chunks, 0, CHUNKS, c, inside, C, CHUNKS, BLOCK_S)
    if is_last:
        tl.store(moments + n * (2 * C) + c, mean, mask=inside)
        tl.store(moments + n * (2 * C) + C + c, m2 / count, mask=inside)
