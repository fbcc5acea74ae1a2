"""A plan from a file stays within its own memory, or is refused before anything is launched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from torchkiln.backends.cuda.check_plan import check_plan
from torchkiln.backends.cuda.plan import KernelStep, Tensor
from torchkiln.backends.cuda.recipe import Ref, TensorSpec
from torchkiln.backends.cuda.runtime import LoadedPlan
from torchkiln.errors import CorruptEngineFile

from .test_plan_file import FLAT, HALF, bundle


def changed(tensor=None, step=None, run=None, **values):
    plan = replace(bundle().plans[0], **values)
    if tensor is not None:
        plan.tensors[1] = tensor
    if run is not None:
        plan.steps[0] = replace(plan.steps[0], run=replace(plan.steps[0].run, **run))
    if step is not None:
        plan.steps[0] = replace(plan.steps[0], **step)
    return plan


def test_a_sound_plan():
    check_plan(changed(), 2)


NEGATIVE = TensorSpec((2, 3), (-3, 1), torch.float16)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (changed(Tensor("arena", 0, 1024 - HALF.span * 2 + 2, HALF)), "tensor 1: ends behind the arena"),
        (changed(Tensor("arena", 0, -2, HALF)), "tensor 1: shape .* offset -2"),
        (changed(Tensor("arena", 0, 0, NEGATIVE)), "tensor 1: shape"),
        (changed(Tensor("counters", 0, 20, TensorSpec.contiguous((2,), torch.int32))), "ends behind the counters"),
        (changed(Tensor("input", 1, 0, HALF)), "no input 1"),
        (changed(Tensor("input", 0, 1, HALF)), "ends behind input 0"),
        (changed(Tensor("output", 0, 1, FLAT)), "ends behind output 0"),
        (changed(Tensor("constant", 2, 0, FLAT)), "no constant 2"),
        (changed(Tensor("disk", 0, 0, FLAT)), "in an unknown place, 'disk'"),
        (changed(step={"info": 2}), "step 0: no operation 2"),
        (changed(run={"code": 2}), "step 0: no machine code 2"),
        (changed(run={"code": -1}), "step 0: no machine code -1"),
        (changed(run={"operands": (0, 4)}), "step 0: no tensor 4"),
        (changed(run={"grid": (1, 0, 1)}), "step 0: a grid of"),
        (changed(output_tensors=(9,)), "no tensor 9 for an output"),
        (changed(arena_bytes="much"), "arena_bytes: expected a number"),
        (changed(counters=-1), "counters: expected a number"),
    ],
)
def test_what_reaches_beyond_is_refused(plan, message):
    with pytest.raises(CorruptEngineFile, match=message):
        check_plan(plan, 2)


def test_tensors_that_torch_is_given():
    plan = changed()
    run = plan.steps[1].run
    for values, name in (({"args": (Ref("7"),)}, "7"), ({"kwargs": (("out", Ref("8")),)}, "8"), ({"results": (5,)}, "5")):
        plan.steps[1] = replace(plan.steps[1], run=replace(run, **values))
        with pytest.raises(CorruptEngineFile, match=f"step 1: no tensor {name}"):
            check_plan(plan, 2)


def test_a_constant_that_is_too_short():
    plan = replace(changed(), steps=[])
    constants = {"weight": torch.zeros(3), "weight.packed0": torch.zeros(7 + 120)}
    LoadedPlan(plan, [], constants, torch.device("cpu"))
    constants["weight.packed0"] = torch.zeros(7 + 119)
    with pytest.raises(CorruptEngineFile, match=r"ends behind the constant 'weight.packed0'"):
        LoadedPlan(plan, [], constants, torch.device("cpu"))


def test_no_machine_code_is_needed_for_torch():
    check_plan(replace(changed(), steps=[step for step in changed().steps if not isinstance(step.run, KernelStep)]), 0)
