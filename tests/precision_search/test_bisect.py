"""bisect names what was planted."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import torchkiln
from torchkiln.errors import UserError
from torchkiln.precision_search.assignment import Assignment, Narrowing
from torchkiln.precision_search.bisect_nodes import bisect_nodes
from torchkiln.precision_search.simulation import Simulation

from .models import draw

HALF = torch.float16


def test_one_operator_that_overflows(overflow) -> None:
    found = bisect_nodes(Narrowing(overflow), overflow.example_inputs, HALF, 1e-2)
    assert (found.holds, found.error) == (False, math.inf)
    assert found.first.node == "mul_1"
    assert [(c.node, c.op) for c in found.smallest] == [("mul_1", "aten.mul.Tensor")]
    assert "models.py" in found.first.where
    assert found.smallest[0].error_without == found.smallest[0].error_alone == math.inf
    assert found.error_kept <= 1e-2
    assert found.keep_float32 == ("mul_1",)
    text = str(found)
    assert "mul_1 (models.py" in text
    assert "enabled_precisions={torch.float16}, keep_float32={'mul_1'}" in text


def test_two_operators_that_must_be_kept_together(overflow_together) -> None:
    found = bisect_nodes(Narrowing(overflow_together), overflow_together.example_inputs, HALF, 1e-2)
    assert found.first.node == "mul_1"
    assert [c.node for c in found.smallest] == ["mul_1", "mul_2"]
    assert all(c.error_without == math.inf for c in found.smallest)
    simulation = Simulation(Narrowing(overflow_together), overflow_together.example_inputs)
    for left in found.smallest:
        kept = frozenset(c.node for c in found.smallest if c is not left)
        assert not simulation.error(Assignment(HALF, kept)) <= 1e-2
    assert json.loads(json.dumps(found.as_json()))["smallest"][1]["node"] == "mul_2"


def test_a_layer_that_does_not_bear_int8(constant, calibrator) -> None:
    found = bisect_nodes(Narrowing(constant, calibrator), constant.example_inputs, torch.int8, 0.02)
    assert [c.module for c in found.smallest] == ["offset"]
    assert found.first.module == "offset"
    assert found.operators == 3
    assert found.keep_float32 == ("offset",)
    assert found.error_kept <= 0.02 < found.error


def test_a_tolerance_that_holds(constant) -> None:
    found = bisect_nodes(Narrowing(constant), constant.example_inputs, torch.bfloat16, 10.0)
    assert found.holds
    assert (found.first, found.smallest, found.keep_float32) == (None, (), ())
    assert "it holds" in str(found)


def test_the_answer_makes_an_engine_right(rounding_backend, constant_model) -> None:
    x = draw(3, 2, 13, 11)
    found = torchkiln.bisect(constant_model, [x], precision="bf16", tolerance=3e-3)
    options = {"backend": "inductor", "enabled_precisions": {torch.bfloat16}, "verify": 3e-3}
    engine = torchkiln.compile(constant_model, [x], keep_float32=found.keep_float32, **options)
    assert engine.report().precision == "bf16"
    assert engine.report().parity.relative_error == pytest.approx(found.error_kept, rel=0.7)
    assert found.error > 3e-3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "fp8"}, "expected fp16, bf16 or int8, got 'fp8'"),
        ({"precision": torch.float32}, "expected fp16, bf16 or int8"),
        ({"precision": "int8"}, "int8 needs a calibrator"),
        ({"precision": "fp16", "tolerance": 0.0}, "tolerance: expected a finite number > 0"),
        ({"precision": "fp16", "tolerance": math.nan}, "tolerance"),
    ],
)
def test_wrong_requests(options, expected) -> None:
    with pytest.raises(UserError, match=expected):
        torchkiln.bisect(nn.Linear(3, 2).eval(), [torch.rand(2, 3)], **options)


def test_a_model_in_half_precision_has_nothing_to_narrow() -> None:
    with pytest.raises(UserError, match="the model is in bf16: pass the float32 model"):
        torchkiln.bisect(nn.Linear(3, 2).bfloat16().eval(), [torch.rand(2, 3).bfloat16()], precision="fp16")
