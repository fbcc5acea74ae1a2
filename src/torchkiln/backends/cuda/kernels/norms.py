"""norms: layer norm, and group (or instance) norm with whole groups on chip or in several passes. Statistics are float32 and centred."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import activate, begin
from .int8_epilogue import quantized
from .reduce import strided


@triton.jit
def layer_norm(
    x,
    weight,
    bias,
    inverse,
    y,
    wide,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WIDE: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    X_COL: tl.constexpr,
    Y_COL: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    R3: tl.constexpr,
    R4: tl.constexpr,
    XR0: tl.constexpr,
    XR1: tl.constexpr,
    XR2: tl.constexpr,
    XR3: tl.constexpr,
    XR4: tl.constexpr,
    YR0: tl.constexpr,
    YR1: tl.constexpr,
    YR2: tl.constexpr,
    YR3: tl.constexpr,
    YR4: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[row] = (x[row] - mean) / sqrt(variance + EPS) * weight + bias; BLOCK_ROWS rows a program, BLOCK_COLS >= COLS.

    inverse: float32 [1], for y in int8: one over its scale; bounded by LOW and HIGH.
    wide: with HAS_WIDE, the same before it is quantized, in the strides of y.
    """
    begin(PDL)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.arange(0, BLOCK_COLS)
    inside = cols < COLS
    mask = (rows < ROWS)[:, None] & inside[None, :]
    source = x + strided(rows, R1, R2, R3, R4, XR0, XR1, XR2, XR3, XR4)[:, None] + (cols * X_COL)[None, :]
    values = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / COLS
    centred = tl.where(inside[None, :], values - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / COLS
    result = centred * (1.0 / tl.sqrt(variance + EPS))[:, None]
    if HAS_WEIGHT:
        result *= tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        result += tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = strided(rows, R1, R2, R3, R4, YR0, YR1, YR2, YR3, YR4)[:, None] + (cols * Y_COL)[None, :]
    tl.store(y + at, quantized(result, inverse, "none", 0.0, LOW, HIGH, y.dtype.element_ty), mask=mask)
    if HAS_WIDE:
        tl.store(wide + at, result.to(wide.dtype.element_ty), mask=mask)


@triton.jit
def _affine(rstd, weight, bias, c, inside, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """What centred values are multiplied by and what is added then, for channels ``c``: each [1, channels] (or [1, 1])."""
    scale = rstd
    shift = tl.zeros_like(rstd)
    if HAS_WEIGHT:
        scale = scale * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        shift = shift + tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    return scale, shift


@triton.jit
def group_norm_on_chip(
    x,
    weight,
    bias,
    residual,
    y,
    C: tl.constexpr,
    P: tl.constexpr,
    GROUP: tl.constexpr,
    EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    XN: tl.constexpr,
    XC: tl.constexpr,
    YN: tl.constexpr,
    YC: tl.constexpr,
    RN: tl.constexpr,
    RC: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D3: tl.constexpr,
    D4: tl.constexpr,
    XS0: tl.constexpr,
    XS1: tl.constexpr,
    XS2: tl.constexpr,
    XS3: tl.constexpr,
    XS4: tl.constexpr,
    YS0: tl.constexpr,
    YS1: tl.constexpr,
    YS2: tl.constexpr,
    YS3: tl.constexpr,
    YS4: tl.constexpr,
    RS0: tl.constexpr,
    RS1: tl.constexpr,
    RS2: tl.constexpr,
    RS3: tl.constexpr,
    RS4: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """Group norm of [N, C, P positions] in one pass: BLOCK_P >= P. A program has one item's group of GROUP channels (GROUP <= BLOCK_C), or, with
    GROUP == 1, BLOCK_C channels that are each normalised alone."""
    begin(PDL)
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C if GROUP == 1 else C // GROUP
    n = tl.program_id(0) // BLOCKS
    block = tl.program_id(0) % BLOCKS
    p = tl.arange(0, BLOCK_P)
    if GROUP == 1:
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = c < C
    else:
        c = block * GROUP + tl.arange(0, BLOCK_C)
        inside = tl.arange(0, BLOCK_C) < GROUP
    mask = (p < P)[:, None] & inside[None, :]
    at = n * XN + strided(p, D1, D2, D3, D4, XS0, XS1, XS2, XS3, XS4)[:, None] + (c * XC)[None, :]
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / (P * GROUP)
    if GROUP != 1:
        mean = tl.sum(mean, 0)[None]
    centred = tl.where(mask, values - mean[None, :], 0.0)
    variance = tl.sum(centred * centred, 0) / (P * GROUP)
    if GROUP != 1:
        variance = tl.sum(variance, 0)[None]
    scale, shift = _affine((1.0 / tl.sqrt(variance + EPS))[None, :], weight, bias, c, inside, HAS_WEIGHT, HAS_BIAS)
    residual_at = n * RN + strided(p, D1, D2, D3, D4, RS0, RS1, RS2, RS3, RS4)[:, None] + (c * RC)[None, :]
    y_at = n * YN + strided(p, D1, D2, D3, D4, YS0, YS1, YS2, YS3, YS4)[:, None] + (c * YC)[None, :]
    result = centred * scale + shift
    if HAS_RESIDUAL:
        result += tl.load(residual + residual_at, mask=mask, other=0.0).to(tl.float32)
    result = activate(result, ACTIVATION, ALPHA)
    tl.store(y + y_at, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def group_norm_partials(
    x,
    moments,
    C: tl.constexpr,
    P: tl.constexpr,
    SLAB: tl.constexpr,
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
    """Mean and variance of each slab of SLAB positions (a multiple of BLOCK_P) and channel: float32 [N, slabs, 2, C].

    Each place of the tile keeps a running mean (Welford 1962); the places are combined as Chan, Golub and LeVeque 1979 do.
    """
    begin(PDL)
    SLABS: tl.constexpr = (P + SLAB - 1) // SLAB
    n = tl.program_id(0) // SLABS
    first = tl.program_id(0) % SLABS * SLAB
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    source = x + n * XN + (c * XC)[None, :]
    held = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    count = 0.0
    for start in range(0, SLAB, BLOCK_P):
        p = first + start + tl.arange(0, BLOCK_P)
        offsets = strided(p, D1, D2, D3, D4, XS0, XS1, XS2, XS3, XS4)[:, None]
        values = tl.load(source + offsets, mask=(p < P)[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
        change = values - held
        if P % SLAB != 0:
            change = tl.where((p < P)[:, None], change, 0.0)
        count += 1.0
        held += change * (1.0 / count)
        squares += change * (values - held)
    length = tl.minimum(P - first, SLAB)
    counts = ((length - tl.arange(0, BLOCK_P) + BLOCK_P - 1) // BLOCK_P).to(tl.float32)[:, None]
    total_mean = tl.sum(held * counts, 0) / length
    change = held - total_mean[None, :]
    total_m2 = tl.sum(squares + counts * change * change, 0)
    at = moments + tl.program_id(0) * (2 * C) + c
    tl.store(at, total_mean, mask=c < C)
    tl.store(at + C, total_m2 / length, mask=c < C)


@triton.jit
def _slab_lengths(slab, P: tl.constexpr, SLAB: tl.constexpr):
    """How many of P positions each slab has; 0 beyond the last."""
    return tl.minimum(tl.maximum(P - slab * SLAB, 0), SLAB).to(tl.float32)


@triton.jit
def _reciprocal_deviation(variance, EPS: tl.constexpr):
    """1 / sqrt(variance + EPS); a variance that is not one (moments are any numbers where kernels are measured) counts as 0, a NaN stays one."""
    return 1.0 / tl.sqrt(tl.where(variance < 0, 0.0, variance) + EPS)


@triton.jit
def group_norm_combine(
    moments,
    statistics,
    C: tl.constexpr,
    P: tl.constexpr,
    SLAB: tl.constexpr,
    GROUP: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of the moments of a group's slabs and channels: its mean and 1 / sqrt(variance + EPS), float32 [N, groups, 2]. A program a group."""
    begin(PDL)
    SLABS: tl.constexpr = (P + SLAB - 1) // SLAB
    GROUPS: tl.constexpr = C // GROUP
    n = tl.program_id(0) // GROUPS
    slab = tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    mask = (slab < SLABS)[:, None] & (c < GROUP)[None, :]
    at = moments + (n * SLABS + slab)[:, None] * (2 * C) + (tl.program_id(0) % GROUPS * GROUP + c)[None, :]
    counts = tl.where(mask, _slab_lengths(slab, P, SLAB)[:, None], 0.0)
    means = tl.load(at, mask=mask, other=0.0)
    group_mean = tl.sum(tl.sum(means * counts, 1), 0) / (P * GROUP)
    change = means - group_mean
    squares = counts * (tl.load(at + C, mask=mask, other=0.0) + change * change)
    variance = tl.sum(tl.sum(squares, 1), 0) / (P * GROUP)
    tl.store(statistics + tl.program_id(0) * 2, group_mean)
    tl.store(statistics + tl.program_id(0) * 2 + 1, _reciprocal_deviation(variance, EPS))


@triton.jit
def group_norm_apply(
    x,
    weight,
    bias,
    residual,
    moments,
    statistics,
    y,
    C: tl.constexpr,
    P: tl.constexpr,
    SLAB: tl.constexpr,
    PART: tl.constexpr,
    GROUP: tl.constexpr,
    COMBINED: tl.constexpr,
    EPS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    XN: tl.constexpr,
    XC: tl.constexpr,
    YN: tl.constexpr,
    YC: tl.constexpr,
    RN: tl.constexpr,
    RC: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    D3: tl.constexpr,
    D4: tl.constexpr,
    XS0: tl.constexpr,
    XS1: tl.constexpr,
    XS2: tl.constexpr,
    XS3: tl.constexpr,
    XS4: tl.constexpr,
    YS0: tl.constexpr,
    YS1: tl.constexpr,
    YS2: tl.constexpr,
    YS3: tl.constexpr,
    YS4: tl.constexpr,
    RS0: tl.constexpr,
    RS1: tl.constexpr,
    RS2: tl.constexpr,
    RS3: tl.constexpr,
    RS4: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """Normalise a slab, from ``statistics`` where they are COMBINED, else from ``moments`` [N, parts, 2, C] of PART positions each."""
    begin(PDL)
    SLABS: tl.constexpr = (P + SLAB - 1) // SLAB
    # Backwards: what the partial results read last may still be in the L2 cache.
    item = tl.num_programs(0) - 1 - tl.program_id(0)
    n = item // SLABS
    first = item % SLABS * SLAB
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    if COMBINED:
        group_at = (n * (C // GROUP) + c // GROUP) * 2
        centre = tl.load(statistics + group_at, mask=inside, other=0.0)[None, :]
        rstd = tl.load(statistics + group_at + 1, mask=inside, other=0.0)[None, :]
    else:
        # Rows are the parts and channels of a group.
        PARTS: tl.constexpr = (P + PART - 1) // PART
        row = tl.arange(0, BLOCK_S)
        present = (row < PARTS * GROUP)[:, None] & inside[None, :]
        channel = c[None, :] if GROUP == 1 else (c // GROUP * GROUP)[None, :] + (row % GROUP)[:, None]
        source = moments + (n * PARTS + row // GROUP)[:, None] * (2 * C) + channel
        counts = _slab_lengths(row // GROUP, P, PART)[:, None]
        means = tl.load(source, mask=present, other=0.0)
        variances = tl.load(source + C, mask=present, other=0.0)
        centre = (tl.sum(means * counts, 0) / (P * GROUP))[None, :]
        change = means - centre
        rstd = _reciprocal_deviation(tl.sum(counts * (variances + change * change), 0) / (P * GROUP), EPS)[None, :]
    scale, shift = _affine(rstd, weight, bias, c, inside, HAS_WEIGHT, HAS_BIAS)
    for start in range(0, SLAB, BLOCK_P):
        p = first + start + tl.arange(0, BLOCK_P)
        mask = (p < P)[:, None] & inside[None, :]
        at = n * XN + strided(p, D1, D2, D3, D4, XS0, XS1, XS2, XS3, XS4)[:, None] + (c * XC)[None, :]
        centred = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - centre
        residual_at = n * RN + strided(p, D1, D2, D3, D4, RS0, RS1, RS2, RS3, RS4)[:, None] + (c * RC)[None, :]
        y_at = n * YN + strided(p, D1, D2, D3, D4, YS0, YS1, YS2, YS3, YS4)[:, None] + (c * YC)[None, :]
        result = centred * scale + shift
        if HAS_RESIDUAL:
            result += tl.load(residual + residual_at, mask=mask, other=0.0).to(tl.float32)
        result = activate(result, ACTIVATION, ALPHA)
        tl.store(y + y_at, result.to(y.dtype.element_ty), mask=mask)
