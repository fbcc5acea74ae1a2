"""conv_strips: convolutions of stride 1 whose input the tensor memory accelerator brings as it lies, in two and three dimensions (compute
capability 9.0).

A program walks down a strip of the image, one input row a step. What it loads is multiplied at once for every output row that reads it: each has its
own sums, which move up one place a step, and the oldest are finished. Boxes reach over the border of the tensor, where the accelerator gives zeros:
the padding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, release, wait


@triton.jit
def product(line, weight, acc, TURNED: tl.constexpr):
    """acc plus line [positions, channels] times weight [columns, channels]; TURNED: acc is [columns, positions]."""
    if TURNED:
        acc = tl.dot(weight, line.T, acc)
    else:
        acc = tl.dot(line, weight.T, acc)
    return acc


@triton.jit
def conv_strips(
    x_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    parts_ptr,
    N: tl.constexpr,
    D: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    OD: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    XN: tl.constexpr,
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
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    MOMENTS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    TD: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    TURNED: tl.constexpr,
    RESIDENT: tl.constexpr,
    BOXES: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[n, co, od, oh, ow] = activation(sum over taps and channels of x * w + bias[co] + residual), stride 1 and dilation 1.

    A strip is TD planes by TW positions of a row wide and ROWS output rows long. A step reads one input row of all planes and positions that the
    strip needs, and finishes one output row. Channels come in BLOCKS boxes of BK and, where TAIL is not 0, one of TAIL; there are zeros behind the
    last channel.

    x: [N, CI, D, H, W] with channel stride 1 and strides XN ... XW that are multiples of 16 bytes.
    w: [KD, KW, BLOCKS, KH, columns, BK], behind it [KD, KW, KH, columns, TAIL], columns being CO and zeros up to a multiple of BN.
    y and residual: [N, CO, OD, OH, OW] with strides YN ... and RN ...; with BOXES, for which y has the strides that are asked of x, tiles are stored
        by the accelerator too.
    parts: with MOMENTS, float32 [N, strips of an image, 3, CO], the moments of each strip (see kernels/moments.py).
    TURNED: sums are [BN, positions], not [positions, BN].
    RESIDENT: the weights of all taps stay in shared memory; without, those of KH taps come with each box of the input, and TAIL is 0.
    Grid: (PROGRAMS, tiles of CO), PROGRAMS being at most the number of strips.
    """
    release(PDL)
    BM: tl.constexpr = TD * TW
    # Which dimension of the sums is not the columns', and which is not the positions'.
    DOWN: tl.constexpr = 1 if TURNED else 0
    ACROSS: tl.constexpr = 1 - DOWN
    BOXES_TAP: tl.constexpr = BLOCKS + (TAIL > 0)  # of a tap (kd, kw)
    COLUMNS: tl.constexpr = (CO + BN - 1) // BN * BN
    tail_ptr = w_ptr + KD * KW * BLOCKS * KH * COLUMNS * BK
    column = tl.program_id(1) * BN
    columns = column + tl.arange(0, BN)
    held = ()
    if RESIDENT:
        # Known at build time: they are read while the kernel in front still runs.
        for each in tl.static_range(KD * KW * BOXES_TAP):
            for kh in tl.static_range(KH):
                if each % BOXES_TAP < BLOCKS:
                    row = ((each // BOXES_TAP * BLOCKS + each % BOXES_TAP) * KH + kh) * COLUMNS + columns
                    held += (tl.load(w_ptr + row[:, None] * BK + tl.arange(0, BK)[None, :]),)  # type: ignore[assignment]
                else:
                    row = (each // BOXES_TAP * KH + kh) * COLUMNS + columns
                    held += (tl.load(tail_ptr + row[:, None] * TAIL + tl.arange(0, TAIL)[None, :]),)  # type: ignore[assignment]
    wait(PDL)
    bias = tl.zeros((BN,), dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=columns < CO, other=0.0).to(tl.float32)
    tail, w_boxes, y_boxes = 0, 0, 0
    wide = tl.make_tensor_descriptor(x_ptr, shape=[N, D, H, W, CI], strides=[XN, XD, XH, XW, 1], block_shape=[1, TD, 1, TW, BK])
    if TAIL:
        tail = tl.make_tensor_descriptor(x_ptr, shape=[N, D, H, W, CI], strides=[XN, XD, XH, XW, 1], block_shape=[1, TD, 1, TW, TAIL])
    if not RESIDENT:
        w_boxes = tl.make_tensor_descriptor(w_ptr, shape=[KD * KW * BLOCKS * KH * COLUMNS, BK], strides=[BK, 1], block_shape=[BN, BK])
    if BOXES:
        y_boxes = tl.make_tensor_descriptor(y_ptr, shape=[N, OD, OH, OW, CO], strides=[YN, YD, YH, YW, 1], block_shape=[1, TD, 1, TW, BN])

    STEPS: tl.constexpr = ROWS + KH - 1
    TURNS: tl.constexpr = KD * KW * BOXES_TAP
    strips_w: tl.constexpr = (OW + TW - 1) // TW
    strips_h: tl.constexpr = (OH + ROWS - 1) // ROWS
    strips_n: tl.constexpr = (OD + TD - 1) // TD * strips_h * strips_w
    program = tl.program_id(0)
    strips = (N * strips_n - program + PROGRAMS - 1) // PROGRAMS
    sums = ()
    for _ in tl.static_range(KH - 1):
        sums += (tl.zeros((BN, BM) if TURNED else (BM, BN), dtype=tl.float32),)  # type: ignore[assignment]
    mean = tl.zeros((BN,), dtype=tl.float32)
    m2 = tl.zeros((BN,), dtype=tl.float32)
    count = 0.0

    for at in tl.range(0, strips * STEPS, num_stages=STAGES if RESIDENT else 1):
        strip = program + at // STEPS * PROGRAMS
        n = strip // strips_n
        step = at % STEPS
        first_d = strip // (strips_h * strips_w) % (strips_n // (strips_h * strips_w)) * TD
        top = strip // strips_w % strips_h * ROWS + step
        left = strip % strips_w * TW
        added = sums
        added += (tl.zeros((BN, BM) if TURNED else (BM, BN), dtype=tl.float32),)  # type: ignore[assignment]
        if RESIDENT:
            lines = ()
            for turn in tl.static_range(TURNS):
                d, w = first_d + turn // (BOXES_TAP * KW) - PD, left + turn // BOXES_TAP % KW - PW
                if turn % BOXES_TAP < BLOCKS:
                    lines += (wide.load([n, d, top - PH, w, turn % BOXES_TAP * BK]).reshape((BM, BK)),)  # type: ignore[assignment]
                else:
                    lines += (tail.load([n, d, top - PH, w, BLOCKS * BK]).reshape((BM, TAIL)),)  # type: ignore[assignment, attr-defined]
            # From the oldest sums to the youngest.
            more = ()
            for later in tl.static_range(KH):
                acc = added[later]  # type: ignore[var-annotated]
                for turn in tl.static_range(TURNS):
                    acc = product(lines[turn], held[turn * KH + KH - 1 - later], acc, TURNED)
                more += (acc,)  # type: ignore[assignment]
            added = more
        else:
            for turn in tl.range(0, TURNS, num_stages=STAGES):
                d_in, w_in = first_d + turn // (BLOCKS * KW) - PD, left + turn // BLOCKS % KW - PW
                line = wide.load([n, d_in, top - PH, w_in, turn % BLOCKS * BK]).reshape((BM, BK))
                more = ()
                for later in tl.static_range(KH):
                    weight = w_boxes.load([(turn * KH + KH - 1 - later) * COLUMNS + column, 0])  # type: ignore[attr-defined]
                    more += (product(line, weight, added[later], TURNED),)  # type: ignore[assignment]
                added = more

        oh = top - (KH - 1)
        is_row = (step >= KH - 1) & (oh < OH)
        is_end = step == STEPS - 1
        ow = left + tl.arange(0, BM) % TW
        od = first_d + tl.arange(0, BM) // TW
        position_ok = (ow < OW) & (od < OD) & is_row
        inside = tl.expand_dims(position_ok, ACROSS) & tl.expand_dims(columns < CO, DOWN)
        acc = added[0] + tl.expand_dims(bias, DOWN)  # type: ignore[misc]
        if HAS_RESIDUAL:
            place = tl.expand_dims(od * RD + ow * RW, ACROSS) + tl.expand_dims(columns * RC, DOWN)
            acc += tl.load(residual_ptr + (n * RN + oh * RH) + place, mask=inside, other=0.0).to(tl.float32)
        y = activate(acc, ACTIVATION, ALPHA, y_ptr.dtype.element_ty == tl.float32).to(y_ptr.dtype.element_ty)
        by_position = y
        if TURNED:
            by_position = y.T
        if BOXES:
            # A row that is not there is stored outside the tensor: nowhere.
            y_boxes.store([n, first_d, tl.where(is_row, oh, OH), left, column], by_position.reshape((1, TD, 1, TW, BN)))  # type: ignore[attr-defined]
        else:
            place = tl.expand_dims(od * YD + ow * YW, ACROSS) + tl.expand_dims(columns * YC, DOWN)
            tl.store(y_ptr + (n * YN + oh * YH) + place, y, mask=inside)
        if MOMENTS:
            # Of this row, and of the rows before it and this one together, as kernels/moments.py has it.
            row_count = tl.where(is_row, tl.minimum(OD - first_d, TD) * tl.minimum(OW - left, TW), 0).to(tl.float32)
            values = tl.where(position_ok[:, None], by_position.to(tl.float32), 0.0)
            row_mean = tl.sum(values, 0) / tl.maximum(row_count, 1.0)
            change = tl.where(position_ok[:, None], values - row_mean[None, :], 0.0)
            share = row_count / tl.maximum(count + row_count, 1.0)
            apart = row_mean - mean
            m2 += tl.sum(change * change, 0) + apart * apart * (count * share)
            mean += apart * share
            count += row_count
            to = parts_ptr + strip * (3 * CO) + columns
            tl.store(to, tl.zeros_like(mean) + count, mask=(columns < CO) & is_end)
            tl.store(to + CO, mean, mask=(columns < CO) & is_end)
            tl.store(to + 2 * CO, m2, mask=(columns < CO) & is_end)
            mean = tl.where(is_end, 0.0, mean)
            m2 = tl.where(is_end, 0.0, m2)
            count = tl.where(is_end, 0.0, count)
        # Each into the place that became free. That a strip begins with empty ones costs nothing: a choice is a use, for which Triton waits; sums
        # moved while products still add to them would be computed one instruction at a time.
        moved = ()
        for later in tl.static_range(1, KH):
            moved += (tl.where(is_end, 0.0, added[later]),)  # type: ignore[assignment]
        sums = moved
