from __future__ import annotations

import pytest
import torch
from torch import nn

from torchkiln.backends.call_plan import CallPlan
from torchkiln.capture.unlift import unlift
from torchkiln.errors import CorruptEngineFile
from torchkiln.partition.narrow_segment import narrow_segment
from torchkiln.partition.segment import Segment


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.randn(5))

    def forward(self, x: torch.Tensor, unused: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = x * y + self.table
        return z, x, self.table, z.clone(), z.sin()


def segment(module: nn.Module, *inputs: torch.Tensor) -> Segment:
    graph_module = unlift(torch.export.export(module, inputs).run_decompositions({}))
    return Segment("segment_0", graph_module, tuple({} for _ in inputs), inputs, 3)


def test_what_is_left_and_the_plan_give_the_segment() -> None:
    torch.manual_seed(0)
    x, unused, y = torch.randn(3, 5), torch.randn(2), torch.randn(3, 5)
    whole = segment(Model(), x, unused, y)
    narrowed = narrow_segment(whole)
    assert narrowed.segment is not None
    assert narrowed.plan.used_inputs == (0, 2)
    assert narrowed.plan.outputs == (("result", 0), ("input", 0), ("constant", 0), ("result", 0), ("result", 1))
    assert len(narrowed.segment.graph_module.graph.output_node().args[0]) == 2
    plan = CallPlan.from_json(narrowed.plan.as_json())
    assert plan == narrowed.plan
    left = narrowed.segment.graph_module
    outputs = plan.wrap(lambda inputs: left(*inputs), narrowed.constants)([x, unused, y])
    expected = whole.graph_module(x, unused, y)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert len({o.data_ptr() for o in (*outputs, x, narrowed.constants["constant_0"])}) == 7
    assert len(list(whole.graph_module.graph.nodes)) > len(list(left.graph.nodes))


def test_a_segment_with_nothing_to_take_out_is_called_directly() -> None:
    narrowed = narrow_segment(segment(nn.Linear(5, 2), torch.randn(3, 5)))
    assert narrowed.plan.is_direct
    call = lambda inputs: inputs  # noqa: E731
    assert narrowed.plan.wrap(call, {}) is call


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"input_count": 1, "used_inputs": [1], "outputs": []},
        {"input_count": 1, "used_inputs": [0], "outputs": [["input", 3]]},
        {"input_count": 1, "used_inputs": [0], "outputs": [["elsewhere", 0]]},
        {"input_count": 1, "used_inputs": [0], "outputs": [["result", -1]]},
        {"input_count": "many", "used_inputs": [], "outputs": []},
    ],
)
def test_a_damaged_plan_is_refused(data: object) -> None:
    with pytest.raises(CorruptEngineFile, match="call plan"):
        CallPlan.from_json(data)


def test_a_plan_that_does_not_fit_is_refused() -> None:
    plan = CallPlan(1, (0,), (("result", 1), ("constant", 0)))
    with pytest.raises(CorruptEngineFile, match="expected 1 inputs"):
        plan.check("segment", 1, 1, {})
    with pytest.raises(CorruptEngineFile, match="constant_0"):
        plan.check("segment", 1, 2, {})
    plan.check("segment", 1, 2, {"constant_0": torch.zeros(1)})
