"""copy_constant_outputs: outputs that are the engine's own tensors are copied; others are left alone."""

from __future__ import annotations

import torch
from torch import nn

import torchkiln
from torchkiln.capture.unlift import unlift
from torchkiln.lower.copy_constant_outputs import copy_constant_outputs
from torchkiln.lower.decompose import decomposition_table


class WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3, 5))

    def forward(self, x):
        return x + 1, self.table, torch.relu(x)


def test_a_returned_buffer_is_copied_and_the_rest_is_not():
    model = WithTable().eval()
    graph_module = unlift(torch.export.export(model, (torch.randn(2, 7),)).run_decompositions(decomposition_table()))
    assert copy_constant_outputs(graph_module) == 1
    graph_module.recompile()
    _, table, _ = graph_module(torch.randn(2, 7))
    torch.testing.assert_close(table, model.table)
    assert table.data_ptr() != graph_module.table.data_ptr()
    assert copy_constant_outputs(graph_module) == 0


def test_the_caller_cannot_change_the_engine(tmp_path):
    model = WithTable().eval()
    x = torch.randn(2, 7)
    engine = torchkiln.compile(model, [x], backend="openvino")
    engine(x)[1].zero_()
    torch.testing.assert_close(engine(x)[1], model.table)
    assert model.table.count_nonzero() == 15
