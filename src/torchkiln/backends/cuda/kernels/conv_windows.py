"""conv_windows: convolutions of a few input channels whose windows the tensor memory accelerator cuts out of an image (compute capability 9.0).

In a padded channels-last image a row of taps is one run of memory, and the runs of neighbouring outputs overlap: a matrix whose rows are closer than
they are long. A tensor descriptor can say that, so one instruction brings the runs of a whole tile, ready to be multiplied.

A program walks down a strip of the image. What it loads is multiplied at once for every output row that reads it: each has its own sums, which move
up one place a step. The weights of all taps stay in shared memory, and the next windows arrive meanwhile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, release, wait


@triton.jit
def conv_windows(
    image_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    BATCH: tl.constexpr,
    WINDOWS: tl.constexpr,
    STEP: tl.constexpr,
    HP: tl.constexpr,
    LINE: tl.constexpr,
    CO: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KH: tl.constexpr,
    SH: tl.constexpr,
    YN: tl.constexpr,
    YC: tl.constexpr,
    YH: tl.constexpr,
    YW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    KROW: tl.constexpr,
    ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, co, oh, ow] = activation(sum over kh and k of window(n, oh * SH + kh, ow)[k] * w[kh, co, k] + bias[co]).

    A strip is BM outputs wide and ROWS output rows long. A step reads SH image rows and finishes one output row.

    image: [BATCH, HP, LINE * STEP], padded, channels innermost. Window ow of a row is the KROW elements from ow * STEP on; LINE windows begin in a
        row. WINDOWS windows lie wholly in the image: those after them are read as zeros, and no output uses them.
    w: [KH, columns, KROW], columns being CO and zeros up to a multiple of BN; zeros also where a window is longer than a row of taps.
    y: [BATCH, CO, OH, OW] with strides YN, YC, YH and YW.
    Grid: (PROGRAMS, tiles of CO), PROGRAMS being at most the number of strips.
    """
    release(PDL)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    COLUMNS: tl.constexpr = (CO + BN - 1) // BN * BN
    # Known at build time: they are read while the kernel in front still runs.
    weights = ()
    for tap in tl.static_range(KH):
        weights += (tl.load(w_ptr + (tap * COLUMNS + columns)[:, None] * KROW + tl.arange(0, KROW)[None, :]).T,)  # type: ignore[assignment]
    wait(PDL)
    bias = tl.zeros((BN,), dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=columns < CO, other=0.0).to(tl.float32)
    windows = tl.make_tensor_descriptor(image_ptr, shape=[WINDOWS, KROW], strides=[STEP, 1], block_shape=[BM, KROW])

    # Output rows that a step adds to.
    DEEP: tl.constexpr = (KH + SH - 1) // SH
    STEPS: tl.constexpr = ROWS + DEEP - 1
    strips_w: tl.constexpr = (OW + BM - 1) // BM
    strips_h: tl.constexpr = (OH + ROWS - 1) // ROWS
    program = tl.program_id(0)
    strips = (BATCH * strips_h * strips_w - program + PROGRAMS - 1) // PROGRAMS
    sums = ()
    for _ in tl.static_range(DEEP - 1):
        sums += (tl.zeros((BM, BN), dtype=tl.float32),)  # type: ignore[assignment]

    for at in tl.range(0, strips * STEPS, num_stages=STAGES):
        strip = program + at // STEPS * PROGRAMS
        n = strip // (strips_h * strips_w)
        step = at % STEPS
        top = strip // strips_w % strips_h * ROWS + step
        left = strip % strips_w * BM
        first = (n * HP + top * SH) * LINE + left
        lines = ()
        for line in tl.static_range(SH):
            if line < KH:
                lines += (windows.load([first + line * LINE, 0]),)  # type: ignore[assignment]
        # From the oldest sums to the youngest, each into the place that became free. That a strip begins with empty ones costs nothing: a choice is a
        # use, for which Triton waits; sums moved while products still add to them would be computed one instruction at a time.
        moved = ()
        for later in tl.static_range(DEEP):
            acc = tl.zeros((BM, BN), dtype=tl.float32) if later == DEEP - 1 else sums[later]
            for line in tl.static_range(SH):
                if (DEEP - 1 - later) * SH + line < KH:
                    acc = tl.dot(lines[line], weights[(DEEP - 1 - later) * SH + line], acc)
            if later == 0:
                done = acc
            else:
                moved += (tl.where(step == STEPS - 1, 0.0, acc),)  # type: ignore[assignment]
        sums = moved
        oh = top - (DEEP - 1)
        ow = left + tl.arange(0, BM)
        inside = (ow < OW)[:, None] & (columns < CO)[None, :] & (step >= DEEP - 1) & (oh < OH)
        y = activate(done + bias[None, :], ACTIVATION, ALPHA, y_ptr.dtype.element_ty == tl.float32)
        to = n * YN + oh * YH + (ow * YW)[:, None] + (columns * YC)[None, :]
        tl.store(y_ptr + to, y.to(y_ptr.dtype.element_ty), mask=inside)
