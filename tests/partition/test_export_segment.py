from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim, export

from torchkiln.capture.unlift import unlift
from torchkiln.partition.segment import Segment


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.linear(x.view(x.shape[0], -1)).relu() + y


def dynamic_segment(example_batch: int) -> Segment:
    dims = {0: Dim.DYNAMIC(min=1, max=9)}
    captured = export(Model(), (torch.randn(4, 2, 3), torch.randn(4, 4)), dynamic_shapes=(dims, dims))
    inputs = (torch.randn(example_batch, 2, 3), torch.randn(example_batch, 4))
    return Segment("segment_0", unlift(captured.run_decompositions()), ({0: (1, 9)}, {0: (1, 9)}), inputs, 4)


def test_fixed_shapes() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(5, 2, 3), torch.randn(5, 4))
    segment = Segment("segment_0", unlift(export(Model(), inputs).run_decompositions()), ({}, {}), inputs, 4)
    program = segment.export()
    assert torch.allclose(program.module()(*inputs)[0], segment.graph_module(*inputs)[0])
    assert list(program.graph_signature.user_inputs) == ["x", "y"]
    assert not program.range_constraints
    assert len(program.state_dict) == 2


def test_dynamic_batch() -> None:
    segment = dynamic_segment(3)
    program = segment.export()
    assert len(program.range_constraints) == 1
    for batch in (2, 7, 9):
        inputs = (torch.randn(batch, 2, 3), torch.randn(batch, 4))
        assert torch.allclose(program.module()(*inputs)[0], segment.graph_module(*inputs)[0])


def test_opt_shape_with_batch_one_stays_dynamic() -> None:
    """torch.export makes a constant of a size of 1; the sizes of the capture are used instead."""
    segment = dynamic_segment(1)
    program = segment.export()
    assert len(program.range_constraints) == 1
    inputs = (torch.randn(6, 2, 3), torch.randn(6, 4))
    assert torch.allclose(program.module()(*inputs)[0], segment.graph_module(*inputs)[0])
