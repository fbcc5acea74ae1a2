"""batch_sizes: for which batch sizes a dynamic segment is built, and whether padding its batch is safe."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch.fx import GraphModule

from ...errors import BuildFailed
from ...partition.segment import Segment
from .specialize import specialize

MAX_BUCKETS = 8


def batch_sizes(segment: Segment) -> tuple[int, ...]:
    """The sizes of dimension 0 to build for; () when every shape is fixed.

    They are the smallest, the opt and the largest size and powers of two in between, fewer where that would be more than MAX_BUCKETS.

    Raises BuildFailed when anything else than the batch varies.
    """
    if not segment.is_dynamic:
        return ()
    low, high = 0, 0
    for index, ranges in enumerate(segment.dim_ranges):
        if set(ranges) != {0}:
            what = "is fixed" if not ranges else f"varies in dimensions {sorted(ranges)}"
            raise BuildFailed(
                f"{segment.name}: input {index} {what}: the CUDA backend varies dimension 0 (the batch) of every input, and nothing else"
            )
        low, high = ranges[0]
    opt = segment.example_inputs[0].shape[0]
    if any(ranges[0] != (low, high) for ranges in segment.dim_ranges) or any(t.shape[0] != opt for t in segment.example_inputs):
        raise BuildFailed(f"{segment.name}: inputs of different batch ranges")
    low = max(low, 1)
    powers = [1 << e for e in range(high.bit_length() + 1) if low < 1 << e < high]
    step = max(1, -(-len(powers) // (MAX_BUCKETS - 3)))
    return tuple(sorted({low, opt, high, *powers[::-1][::step]}))


@torch.no_grad()
def check_rows_independent(segment: Segment) -> tuple[bool, ...]:
    """For each output, whether its dimension 0 is the batch.

    Raises BuildFailed when a row of an output depends on another row of the inputs: found by running the graph with NaN (or other numbers) in all
    rows but one, which then must come out as if the others were not there. Padding a batch would change such a result.
    """
    opt = segment.example_inputs[0].shape[0]
    size = max(2, opt if opt <= 4 else 2)
    graphs = {n: specialize(segment.graph_module, [(n, *t.shape[1:]) for t in segment.example_inputs]) for n in (size, size + 1)}
    shapes = [[tuple(v.meta["val"].shape) for v in graph.graph.output_node().args[0]] for graph in graphs.values()]  # type: ignore[union-attr]
    dynamic = tuple(a != b for a, b in zip(*shapes, strict=True))
    for index, (a, b, changes) in enumerate(zip(*shapes, dynamic, strict=True)):
        if changes and (a[0], b[0]) != (size, size + 1):
            raise BuildFailed(f"{segment.name}: output {index} has the batch elsewhere than in dimension 0: shapes {a} and {b}")
    graph: GraphModule = graphs[size]
    rows = [torch.cat([t] * (-(-size // max(t.shape[0], 1))))[:size] for t in segment.example_inputs]
    plain = graph(*rows)
    # Numbers too, beside NaN: an operator that makes integers (quantize, a comparison) may hide NaN.
    for kept, spoil in product((0, size - 1), (_nan_like, _large_like)):
        spoiled = [_spoil(t, kept, spoil) for t in rows]
        for index, (before, after) in enumerate(zip(plain, graph(*spoiled), strict=True)):
            same = _is_close(before[kept], after[kept]) if dynamic[index] else _is_close(before, after)
            if not same:
                raise BuildFailed(f"{segment.name}: output {index} mixes the rows of a batch: a batch cannot be padded; give a fixed batch size")
    return dynamic


def _nan_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, float("nan"))


def _large_like(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers larger than any in ``tensor``, of both signs in turn."""
    large = 4 * tensor.abs().amax() + 1 if tensor.numel() else tensor.new_zeros(())
    signs = 1 - 2 * (torch.arange(tensor.numel(), device=tensor.device) % 2)
    return (signs * large).to(tensor.dtype).reshape(tensor.shape)


def _spoil(tensor: torch.Tensor, kept: int, floating: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``floating(tensor)``, or other integers, in every row but one."""
    if tensor.dtype.is_floating_point:
        spoiled = floating(tensor)
    else:
        spoiled = ~tensor if tensor.dtype == torch.bool else torch.where(tensor == 0, torch.ones_like(tensor), torch.zeros_like(tensor))
    spoiled[kept] = tensor[kept]
    return spoiled


def _is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same numbers up to rounding, which may differ with what lies in other rows."""
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    a, b = a.double(), b.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    return bool((a - b).norm() <= 1e-2 * a.norm() + 1e-12)
