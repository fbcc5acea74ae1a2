"""Segment: a part of the program that one backend runs whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule


@dataclass
class Segment:
    """A part of the lowered graph, standing alone: flat tensors in, flat tensors out.

    Attributes:
        name: unique in the engine, as "segment_0".
        graph_module: same invariants as Program.graph_module (get_attr tensors, flat placeholders, tuple output).
        dim_ranges: for each input, {dimension: (min, max)} of the dimensions that vary; {} when all are fixed.
        example_inputs: real tensors at the opt shapes on the target device.
        op_count: compute operators in it (not counting sizes, getitem and constants).
    """

    name: str
    graph_module: GraphModule
    dim_ranges: tuple[dict[int, tuple[int, int]], ...]
    example_inputs: tuple[torch.Tensor, ...]
    op_count: int

    @property
    def is_dynamic(self) -> bool:
        return any(self.dim_ranges)

    def export(self) -> ExportedProgram:
        """The segment as an ExportedProgram (parameters lifted by torch.export), for builders that take one."""
        from .export_segment import export_segment

        return export_segment(self)
