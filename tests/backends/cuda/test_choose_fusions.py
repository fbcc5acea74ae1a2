"""Optional fusions are kept where the operations are faster with them, each by itself."""

from __future__ import annotations

import pytest
import torch
from tests.backends.cuda.fusion import lowered
from tests.backends.cuda.run_plan import build_plan
from torch import nn

from torchkiln.backends.cuda.choose_fusions import LAUNCH_US, choose_fusions, cost_us
from torchkiln.backends.cuda.passes.pipeline import PASSES, fuse
from torchkiln.backends.cuda.recipe import Recipe
from torchkiln.backends.cuda.tactics.registry import Option
from torchkiln.backends.cuda.trace import trace
from torchkiln.backends.cuda.tuner import Choice


class Net(nn.Module):
    """A norm of channels after a convolution and one of rows between linear layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(4, 32, 3, padding=1), nn.InstanceNorm3d(32)
        self.first, self.rows, self.second = nn.Linear(32, 128), nn.LayerNorm(128), nn.Linear(128, 16)

    def forward(self, x):
        y = self.norm(self.conv(x)).flatten(2).mean(-1)
        return self.second(self.rows(self.first(y)))


def chosen(times):
    """What is chosen when an operation takes ``times[op]`` microseconds, or 1."""
    graph_module = lowered(Net(), [(2, 4, 17, 17, 17)], torch.float16)
    fuse(graph_module, PASSES)
    asked = []

    def tune(operations):
        asked.append([operation.problem.op for operation in operations])
        return [Choice(Option("a", {}, Recipe((None,))), times.get(operation.problem.op, 1.0), {}) for operation in operations]

    fused, choices = choose_fusions(graph_module, lambda module: trace(module, 80, 108, lambda op: "ieee"), tune)
    assert len(choices) == len(fused.traced.operations)
    return fused, asked


@pytest.mark.parametrize(
    ("times", "passes"),
    [
        ({"linear_moments": 9.0, "conv_moments": 9.0}, ()),
        ({"linear_moments": 9.0, "group_norm": 0.5, "conv_moments": 0.4}, ("fuse_moments",)),
        ({"conv_moments": 9.0}, ("fuse_layer_norm",)),
        ({"conv_moments": 0.5}, ("fuse_moments", "fuse_layer_norm")),
    ],
)
def test_what_is_faster_is_kept(times, passes):
    fused, asked = chosen(times)
    assert fused.passes == passes
    ops = [operation.problem.op for operation in fused.traced.operations]
    assert ("conv_moments" in ops, "linear_normalized" in ops) == ("fuse_moments" in passes, "fuse_layer_norm" in passes)
    assert ("layer_norm" in ops) == ("fuse_layer_norm" not in passes)
    assert len(asked) == (2 if len(passes) == 2 else 1)
    left = {name: reason for name, reason in fused.rejects if name.startswith("fuse_")}
    assert left.keys() == {"fuse_moments", "fuse_layer_norm"} - set(passes)
    assert all("does not pay: the operations take" in reason for reason in left.values())


def test_nothing_to_weigh():
    graph_module = lowered(nn.Linear(8, 8), [(2, 8)], torch.float16)
    fuse(graph_module, PASSES)
    before = str(graph_module.graph)
    fused, choices = choose_fusions(
        graph_module,
        lambda module: trace(module, 80, 108, lambda op: "ieee"),
        lambda operations: [Choice(Option("a", {}, Recipe(())), None, {}) for _ in operations],
    )
    assert (fused.passes, cost_us(choices)) == ((), float("inf"))  # could not be measured
    assert str(graph_module.graph) == before


def test_launches_count():
    assert cost_us([Choice(Option("a", {}, Recipe((None, None))), 3.0, {})]) == 3.0 + 2 * LAUNCH_US


def test_the_plain_graph_is_untouched_by_weighing():
    """What was weighed shares weights with what is kept, and nothing else."""
    torch.manual_seed(0)
    graph_module = lowered(Net(), [(1, 4, 17, 17, 17)], torch.float16)
    fuse(graph_module, PASSES)
    x = torch.randn(1, 4, 17, 17, 17)
    before = graph_module(x)
    choose_fusions(
        graph_module,
        lambda module: trace(module, 80, 108, lambda op: "ieee"),
        lambda operations: [Choice(Option("a", {}, Recipe((None,))), 1.0, {}) for _ in operations],
    )
    assert torch.equal(graph_module(x)[0], before[0])
    build_plan(graph_module, tactics=False)
