"""make_segment: a module as the Segment a backend would be given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.export import Dim, export

from torchkiln.capture.unlift import unlift
from torchkiln.lower.decompose import decomposition_table
from torchkiln.partition.segment import Segment

Ranges = dict[int, tuple[int, int]]


def make_segment(module: torch.nn.Module, inputs: Sequence[torch.Tensor], ranges: Sequence[Ranges] | None = None) -> Segment:
    """``ranges``: {dimension: (min, max)} of each input. No varying dimension of ``inputs`` may be 1 (torch.export cannot trace it)."""
    ranges = ranges or [{} for _ in inputs]
    dynamic_shapes = tuple({d: Dim.DYNAMIC(min=lo, max=hi) for d, (lo, hi) in r.items()} or None for r in ranges)
    names = [f"x{i}" for i in range(len(inputs))]
    program = export(Positional(module, names), tuple(inputs), dynamic_shapes=(dynamic_shapes,), strict=False)
    graph_module = unlift(program.run_decompositions(decomposition_table()))
    count = sum(n.op == "call_function" for n in graph_module.graph.nodes)
    return Segment("segment_0", graph_module, tuple(ranges), tuple(inputs), count)


class Positional(torch.nn.Module):
    """A module whose outputs are one flat tuple."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module.eval()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.module(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)
