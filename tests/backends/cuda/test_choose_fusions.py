"""Optional fusions are kept where the operations are faster with them."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.fusion import lowered
from torch import nn

from torchkiln.backends.cuda.choose_fusions import LAUNCH_US, choose_fusions, cost_us
from torchkiln.backends.cuda.passes.pipeline import PASSES, fuse
from torchkiln.backends.cuda.recipe import Recipe
from torchkiln.backends.cuda.tactics.registry import Option
from torchkiln.backends.cuda.trace import trace
from torchkiln.backends.cuda.tuner import Choice


class Net(nn.Module):
    """A norm of channels after a convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(4, 32, 3, padding=1), nn.InstanceNorm3d(32)

    def forward(self, x):
        return self.norm(self.conv(x))


def fused_graph(model, shape):
    graph_module = lowered(model, [shape], torch.float16)
    fuse(graph_module, PASSES)
    return graph_module


def chosen(graph_module, times):
    """What is chosen when an operation takes ``times[op]`` microseconds, or 1; None: it cannot be measured."""

    def tune(operations):
        return [Choice(Option("a", {}, Recipe((None,))), times.get(operation.problem.op, 1.0), {}) for operation in operations]

    fused = choose_fusions(graph_module, lambda module: trace(module, 80, 108, lambda op: "ieee"), tune)
    assert len(fused.choices) == len(fused.traced.operations)
    return fused


@pytest.mark.parametrize(
    ("times", "pays"),
    [
        ({"conv_moments": 9.0}, False),
        ({"conv_moments": 0.9}, True),
        ({"conv_moments": None}, False),
        ({"conv": None, "conv_moments": 99.0}, True),
        ({"group_norm": None}, False),
    ],
)
def test_what_is_faster_is_kept(times, pays):
    fused = chosen(fused_graph(Net(), (2, 4, 17, 17, 17)), times)
    assert fused.passes == (("fuse_moments",) if pays else ())
    assert ("conv_moments" in [operation.problem.op for operation in fused.traced.operations]) == pays
    left = {name: reason for name, reason in fused.rejects if name.startswith("fuse_")}
    assert left.keys() == (set() if pays else {"fuse_moments"})
    assert all("does not pay: the operations take" in reason for reason in left.values())


def test_nothing_to_weigh_and_rejects_are_kept():
    graph_module = fused_graph(nn.Sequential(nn.ConvTranspose3d(4, 4, 1), nn.InstanceNorm3d(4)), (1, 4, 17, 17, 17))
    before = str(graph_module.graph)
    fused = chosen(graph_module, {})
    assert fused.passes == ()
    assert any("transposed" in reason for _, reason in fused.rejects)
    assert str(graph_module.graph) == before


def test_launches_count():
    assert cost_us([Choice(Option("a", {}, Recipe((None, None))), 3.0, {})]) == 3.0 + 2 * LAUNCH_US


def test_the_graph_is_untouched_by_weighing():
    """What was weighed shares weights with what is kept, and nothing else."""
    graph_module = fused_graph(Net(), (1, 4, 17, 17, 17))
    x, before = torch.randn(1, 4, 17, 17, 17), str(graph_module.graph)
    expected = graph_module(x)[0]
    assert chosen(graph_module, {"conv_moments": 0.1}).passes
    assert str(graph_module.graph) == before
    assert torch.equal(graph_module(x)[0], expected)
