"""depthwise: what the generated depthwise kernels (see ``tactics/depthwise.py``) share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_mean(
    total,
    mean_ptr,
    partial_ptr,
    counter_ptr,
    n,
    tile,
    block,
    C: tl.constexpr,
    BC: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    POSITIONS: tl.constexpr,
    MN: tl.constexpr,
    MC: tl.constexpr,
):
    """Write the mean over all positions from the sums over tiles of positions; the last program of (n, block) to arrive adds them, in order.

    total: float32 [BC], this program's sum. mean: [N, C] with strides MN, MC. partial: float32 [N, TILES, C].
    counter: int32 [N, BLOCKS], zero before and after. Neither is read with TILES == 1.
    """
    c = block * BC + tl.arange(0, BC)
    mean_ptrs = mean_ptr + n * MN + c * MC
    if TILES == 1:
        tl.store(mean_ptrs, total * (1.0 / POSITIONS), mask=c < C)
    else:
        tl.store(partial_ptr + (n * TILES + tile) * C + c, total, mask=c < C)
        tl.debug_barrier()  # every thread of the block has stored before one of them counts the block as arrived
        arrived = tl.atomic_add(counter_ptr + n * BLOCKS + block, 1, sem="acq_rel")
        if arrived == TILES - 1:
            tl.store(counter_ptr + n * BLOCKS + block, 0)
            at_once: tl.constexpr = 16
            rows = tl.arange(0, at_once)[:, None]
            columns = block * BC + tl.arange(0, BC)[None, :]
            sums = tl.zeros((at_once, BC), dtype=tl.float32)
            for first in range(0, TILES, at_once):
                ok = (first + rows < TILES) & (columns < C)
                sums += tl.load(partial_ptr + (n * TILES + first + rows) * C + columns, mask=ok, other=0.0, cache_modifier=".cg")
            tl.store(mean_ptrs, tl.sum(sums, axis=0) * (1.0 / POSITIONS), mask=c < C)
