"""export_segment: a segment's graph as an ExportedProgram, with the ranges of its dynamic dimensions."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.export import Dim, ExportedProgram, export
from torch.fx import Node

from .segment import Segment


def export_segment(segment: Segment) -> ExportedProgram:
    """The segment as an ExportedProgram: flat tensors in (names kept), flat tuple out, parameters lifted.

    Dimensions that vary are ``Dim.DYNAMIC`` with the segment's range. Raises what torch.export raises.
    """
    dynamic_shapes = tuple({d: Dim.DYNAMIC(min=lo, max=hi) for d, (lo, hi) in ranges.items()} or None for ranges in segment.dim_ranges)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(
            segment.graph_module.eval(),
            trace_inputs(segment),
            dynamic_shapes=dynamic_shapes,
            strict=False,
        )


def trace_inputs(segment: Segment) -> tuple[torch.Tensor, ...]:
    """Tensors to trace the segment with: the example inputs, save that no dimension that varies is 1.

    torch.export takes a size of 1 (or 0) for a constant, so an opt shape with batch 1 could not be traced. The sizes the graph was captured
    with are in its placeholders, fit each other, and are never 1; the values of the inputs do not matter to a trace.
    """
    placeholders = [n for n in segment.graph_module.graph.nodes if n.op == "placeholder"]
    varying = [(example, ranges, node) for example, ranges, node in zip(segment.example_inputs, segment.dim_ranges, placeholders, strict=True)]
    if all(example.shape[d] > 1 for example, ranges, _ in varying for d in ranges):
        return segment.example_inputs
    return tuple(torch.zeros(_captured_shape(node, example), dtype=example.dtype, device=example.device) for example, _, node in varying)


def _captured_shape(node: Node, example: torch.Tensor) -> tuple[int, ...]:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return tuple(example.shape)
    return tuple(_hint(size) for size in value.shape)


def _hint(size: Any) -> int:
    """The number that a symbolic size had when the graph was captured."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)  # type: ignore[arg-type]
