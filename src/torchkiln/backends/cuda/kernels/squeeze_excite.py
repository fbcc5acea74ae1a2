"""squeeze_excite: both layers of a squeeze-and-excite gate, in a launch of their own or at the end of the convolution before."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, begin


@triton.jit
def second_layer(
    hidden,
    w2_ptr,
    bias2_ptr,
    y_ptr,
    first,
    C: tl.constexpr,
    R: tl.constexpr,
    W2: tl.constexpr,
    YC: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    GATE: tl.constexpr,
    RP: tl.constexpr,
    BO: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """y[c] = gate(hidden @ w2[c] + bias2[c]) for PER_PROGRAM channels from ``first`` on, BO at a time. hidden: float32 [RP]; y: strides YC."""
    r = tl.arange(0, RP)
    last = tl.minimum(first + PER_PROGRAM, C)
    for start in tl.range(0, PER_PROGRAM, BO, loop_unroll_factor=UNROLL):
        c = first + start + tl.arange(0, BO)
        w = tl.load(w2_ptr + c[:, None] * W2 + r[None, :], mask=(c < last)[:, None] & (r < W2)[None, :], other=0.0)
        # An activation may take zero to anything: the rows past R count for nothing.
        gate = tl.sum(tl.where((r < R)[None, :], w.to(tl.float32) * hidden[None, :], 0.0), axis=1)
        if HAS_BIAS2:
            gate += tl.load(bias2_ptr + c, mask=c < last, other=0.0).to(tl.float32)
        gate = activate(gate, GATE, 0.0)
        tl.store(y_ptr + c * YC, gate.to(y_ptr.dtype.element_ty), mask=c < last)


@triton.jit
def excite(
    total,
    w1,
    partial_ptr,
    counter_ptr,
    bias1_ptr,
    w2_ptr,
    bias2_ptr,
    y_ptr,
    n,
    tile,
    block,
    C: tl.constexpr,
    BC: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    POSITIONS: tl.constexpr,
    R: tl.constexpr,
    RP: tl.constexpr,
    W2: tl.constexpr,
    YN: tl.constexpr,
    YC: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BO: tl.constexpr,
):
    """Write the gates of image ``n`` from the sums over tiles of positions and blocks of channels; the last program of the image to arrive does.

    The first layer is linear: each program takes its own sums through its own columns of it, so that the last one adds up only hidden vectors.
    total: float32 [BC], this program's sums; w1: [RP, BC], zeros past R and C. w2: [C, W2]; y: [N, C], strides YN, YC.
    partial: float32 [N, BLOCKS * TILES, RP]. counter: int32 [N], zero before and after. AT_ONCE hidden vectors are added at a time.
    """
    parts: tl.constexpr = BLOCKS * TILES
    channel = block * BC + tl.arange(0, BC)
    r = tl.arange(0, RP)
    own = tl.where(channel < C, total, 0.0)
    products = tl.sum(w1.to(tl.float32) * own[None, :], axis=1)
    tl.store(partial_ptr + (n * parts + tile * BLOCKS + block) * RP + r, products)
    tl.debug_barrier()  # every thread of the block has stored before one of them counts the block as arrived
    arrived = tl.atomic_add(counter_ptr + n, 1, sem="acq_rel")
    if arrived == parts - 1:
        tl.store(counter_ptr + n, 0)
        rows = tl.arange(0, AT_ONCE)[:, None]
        sums = tl.zeros((AT_ONCE, RP), dtype=tl.float32)
        for first in range(0, parts, AT_ONCE):
            ok = (first + rows < parts) & (r >= 0)[None, :]
            sums += tl.load(partial_ptr + (n * parts + first + rows) * RP + r[None, :], mask=ok, other=0.0, cache_modifier=".cg")
        hidden = tl.sum(sums, axis=0) * (1.0 / POSITIONS)
        if HAS_BIAS1:
            hidden += tl.load(bias1_ptr + r, mask=r < R, other=0.0).to(tl.float32)
        hidden = activate(hidden, ACTIVATION, 0.0)
        second_layer(hidden, w2_ptr, bias2_ptr, y_ptr + n * YN, 0, C, R, W2, YC, HAS_BIAS2, GATE, RP, BO, C, 4)


@triton.jit
def squeeze_excite(
    mean_ptr,
    w1_ptr,
    bias1_ptr,
    w2_ptr,
    bias2_ptr,
    y_ptr,
    N: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    W1: tl.constexpr,
    W2: tl.constexpr,
    MN: tl.constexpr,
    MC: tl.constexpr,
    YN: tl.constexpr,
    YC: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    RP: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    PDL: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """y[n, c] = gate(activation(mean[n] @ w1.T + bias1) @ w2.T + bias2). Every program computes the whole hidden vector of its n.

    mean: float32 [N, C], strides MN, MC; y: [N, C], strides YN, YC. w1: [R, W1], w2: [C, W2], rows padded with zeros.
    RP: R rounded up to a power of two. BC channels at a time for the first layer, BO for the second.
    Grid: (N, blocks of PER_PROGRAM channels).
    """
    begin(PDL)
    n = tl.program_id(0)
    first = tl.program_id(1) * PER_PROGRAM
    r = tl.arange(0, RP)
    acc = tl.zeros((RP, BC), dtype=tl.float32)
    for start in tl.range(0, C, BC, loop_unroll_factor=UNROLL):  # the loads of several blocks are in flight
        c = start + tl.arange(0, BC)
        w = tl.load(w1_ptr + r[:, None] * W1 + c[None, :], mask=(r < R)[:, None] & (c < W1)[None, :], other=0.0)
        mean = tl.load(mean_ptr + n * MN + c * MC, mask=c < C, other=0.0)
        acc += w.to(tl.float32) * mean[None, :]
    hidden = tl.sum(acc, axis=1)
    if HAS_BIAS1:
        hidden += tl.load(bias1_ptr + r, mask=r < R, other=0.0).to(tl.float32)
    hidden = activate(hidden, ACTIVATION, 0.0)
    second_layer(hidden, w2_ptr, bias2_ptr, y_ptr + n * YN, first, C, R, W2, YC, HAS_BIAS2, GATE, RP, BO, PER_PROGRAM, UNROLL)


@triton.jit
def squeeze_excite_rows(
    mean_ptr,
    w1_ptr,
    bias1_ptr,
    w2_ptr,
    bias2_ptr,
    y_ptr,
    N: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    W1: tl.constexpr,
    W2: tl.constexpr,
    MN: tl.constexpr,
    MC: tl.constexpr,
    YN: tl.constexpr,
    YC: tl.constexpr,
    HAS_BIAS1: tl.constexpr,
    HAS_BIAS2: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    RP: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
    PDL: tl.constexpr,
    BN: tl.constexpr,
    SPLIT_TERMS: tl.constexpr,
):
    """The same for BN items at once, on tensor cores. RP and BC are 16 at least.

    SPLIT_TERMS: the weights are of 16 bits: float32 factors are split into the sum of two such numbers, so that little precision is lost.
    Grid: (blocks of BN items, blocks of PER_PROGRAM channels).
    """
    begin(PDL)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    first = tl.program_id(1) * PER_PROGRAM
    r = tl.arange(0, RP)
    weight_type = w1_ptr.dtype.element_ty
    acc = tl.zeros((BN, RP), dtype=tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        w = tl.load(w1_ptr + r[None, :] * W1 + c[:, None], mask=(r < R)[None, :] & (c < W1)[:, None], other=0.0)
        mean = tl.load(mean_ptr + n[:, None] * MN + (c * MC)[None, :], mask=(n < N)[:, None] & (c < C)[None, :], other=0.0)
        if SPLIT_TERMS:
            high = mean.to(weight_type)
            acc = tl.dot(high, w, acc)
            acc = tl.dot((mean - high.to(tl.float32)).to(weight_type), w, acc)
        else:
            acc = tl.dot(mean, w, acc, input_precision="ieee")
    if HAS_BIAS1:
        acc += tl.load(bias1_ptr + r, mask=r < R, other=0.0).to(tl.float32)[None, :]
    hidden = tl.where((r < R)[None, :], activate(acc, ACTIVATION, 0.0), 0.0)
    last = tl.minimum(first + PER_PROGRAM, C)
    for start in range(0, PER_PROGRAM, BO):
        c = first + start + tl.arange(0, BO)
        w = tl.load(w2_ptr + c[None, :] * W2 + r[:, None], mask=(c < last)[None, :] & (r < W2)[:, None], other=0.0)
        gate = tl.zeros((BN, BO), dtype=tl.float32)
        if SPLIT_TERMS:
            high = hidden.to(weight_type)
            gate = tl.dot(high, w, gate)
            gate = tl.dot((hidden - high.to(tl.float32)).to(weight_type), w, gate)
        else:
            gate = tl.dot(hidden, w, gate, input_precision="ieee")
        if HAS_BIAS2:
            gate += tl.load(bias2_ptr + c, mask=c < last, other=0.0).to(tl.float32)[None, :]
        gate = activate(gate, GATE, 0.0)
        ok = (n < N)[:, None] & (c < last)[None, :]
        tl.store(y_ptr + n[:, None] * YN + (c * YC)[None, :], gate.to(y_ptr.dtype.element_ty), mask=ok)
