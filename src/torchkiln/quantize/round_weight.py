"""round_weight: a matrix of weights as integers of 8 or 4 bits and scales, from its own numbers alone.

8 bits: one scale a row, 127 standing for the row's largest magnitude. 4 bits: one scale for each group of neighbours in a row, chosen among several
for the smallest squared error. Zero stays zero in both.
"""

from __future__ import annotations

import torch

INT4_RANGE = (-8, 7)
#: Scales tried for a group of 4 bits: a factor of (largest magnitude / 8). At 8 / 7 the largest magnitude is kept on either side of zero; below 1 it
#: is clipped, which is better where it is an outlier.
_FACTORS = (8 / 7, 1.08, 1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
#: The scale where all is zero: any would do.
_SMALLEST_SCALE = 1e-12
#: Rows are rounded so many elements at a time: what is in between fits a cache.
_CHUNK_ELEMENTS = 1 << 18


def round_to_int4(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``(integers, scales)`` of a floating matrix (rows, columns): int8 in -8 to 7 of its shape, and float32 (rows, columns / group_size).

    A scale may be negative: the largest magnitude of the group becomes -8, the one integer that is there on one side only, where that is best.
    ``columns`` must be a multiple of ``group_size``.
    """
    rows, columns = weight.shape
    grouped = weight.detach().reshape(-1, group_size)
    chunk = max(1, _CHUNK_ELEMENTS // group_size)
    parts = [_round_groups(part.float()) for part in grouped.split(chunk)]
    integers, scales = (torch.cat(found) for found in zip(*parts, strict=True))
    return integers.reshape(rows, columns), scales.reshape(rows, columns // group_size)


def _round_groups(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 (groups, size) and float32 (groups, 1), each group by its best scale."""
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    base = -extreme / 8
    base = torch.where(base.abs() < _SMALLEST_SCALE, torch.full_like(base, _SMALLEST_SCALE), base)
    best_error = torch.full_like(base, torch.inf)
    best, best_scale = torch.zeros_like(groups), base
    for factor in _FACTORS:
        scale = base * factor
        integers = (groups / scale).round_().clamp_(*INT4_RANGE)
        error = (integers * scale - groups).square_().sum(1, keepdim=True)
        is_better = error < best_error
        best, best_scale = torch.where(is_better, integers, best), torch.where(is_better, scale, best_scale)
        best_error = torch.where(is_better, error, best_error)
    return best.to(torch.int8), best_scale


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """int8 (rows, columns) in -8 to 7 as int8 (rows, columns / 2): the integer of an even column in the low half of a byte, its neighbour in the
    high half."""
    pairs = integers.reshape(integers.shape[0], -1, 2).to(torch.int16)
    return ((pairs[..., 0] & 15) | (pairs[..., 1] << 4)).to(torch.int8)
