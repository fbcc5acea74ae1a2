"""Segment: a part of the program that one backend runs whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ..inputs import Profile, ShapeRange


@dataclass
class Segment:
    """A part of the lowered graph, standing alone: flat tensors in, flat tensors out.

    Attributes:
        name: unique in the engine, as "segment_0".
        graph_module: same invariants as Program.graph_module (get_attr tensors, flat placeholders, tuple output).
        dim_ranges: for each input, {dimension: (min, max)} of the dimensions that vary; {} when all are fixed.
        example_inputs: real tensors at the opt shapes on the target device.
        op_count: compute operators in it (not counting sizes, getitem and constants).
        profiles: the optimization profiles, each with the range of every input; at least one. Default: one over ``dim_ranges``, for the shapes of
            ``example_inputs``.
        prepared: what a backend's ``examine`` leaves for its ``build``, by keys of its own.
    """

    name: str
    graph_module: GraphModule
    dim_ranges: tuple[dict[int, tuple[int, int]], ...]
    example_inputs: tuple[torch.Tensor, ...]
    op_count: int
    profiles: tuple[Profile, ...] = ()
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.profiles:
            self.profiles = (tuple(map(_whole_range, self.dim_ranges, self.example_inputs)),)

    @property
    def is_dynamic(self) -> bool:
        return any(self.dim_ranges)

    def export(self) -> ExportedProgram:
        """The segment as an ExportedProgram (parameters lifted by torch.export), for builders that take one."""
        from .export_segment import export_segment

        return export_segment(self)


def _whole_range(ranges: dict[int, tuple[int, int]], example: torch.Tensor) -> ShapeRange:
    shape = tuple(example.shape)
    low, high = (tuple(ranges[d][end] if d in ranges else size for d, size in enumerate(shape)) for end in (0, 1))
    return ShapeRange(low, shape, high)
