"""Padding and rolling."""

from __future__ import annotations

import pytest
import torch

from torchkiln.backends.cuda.pointwise.copies import TACTICS
from torchkiln.backends.cuda.recipe import Kernel, Problem, TensorSpec, channels_last_strides

from .interpret import interpret, make

PAD, ROLL = "aten.constant_pad_nd.default", "aten.roll.default"
(TACTIC,) = TACTICS
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool)


def layouts(shape, dtype):
    yield TensorSpec.contiguous(shape, dtype)
    if len(shape) >= 3:
        yield TensorSpec(shape, channels_last_strides(shape), dtype)


def problem(op, x, y_strides, attributes, capability=80):
    shape = list(x.shape)
    for i, amount in enumerate(attributes.get("pad", ())):
        shape[-1 - i // 2] += amount
    strides = channels_last_strides(shape) if y_strides == "channels_last" else TensorSpec.contiguous(shape, x.dtype).strides
    return Problem(op, (x,), (TensorSpec(tuple(shape), strides, x.dtype),), attributes, (False,), capability=capability)


def check(case, config):
    """The very elements of torch's operator; every element written."""
    x = make(case.inputs[0], torch.Generator().manual_seed(0))
    y = make(case.outputs[0], torch.Generator().manual_seed(1))
    operator = torch.ops.aten.constant_pad_nd if case.op == PAD else torch.ops.aten.roll
    assert torch.equal(interpret(TACTIC.recipe(case, config), {"x0": x, "y0": y})["y0"], operator(x, *case.attributes.values()))


@pytest.mark.parametrize("pad", [[1, 2], [0, 3, 1, 0], [2, 1, 0, 0, 1, 3], [0, 0], [0, 0, 0, 0, 5, 0]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("output", ["contiguous", "channels_last"])
def test_pad(pad, dtype, output):
    for x in layouts((2, 5, 3, 7), dtype):
        for value in (0, 1, 0.5) if dtype.is_floating_point else (0, 1):
            case = problem(PAD, x, output, {"pad": pad, "value": value})
            assert TACTIC.reject(case) == ""
            for config in TACTIC.configs(case, 1):
                check(case, config)


ROLLS = [([1], [2]), ([-3, 2], [1, 2]), ([4, -1, 9], [0, 1, 3]), ([5, 5], [1, 1]), ([0], [1]), ([-2, 1], [-1, -2])]


@pytest.mark.parametrize(("shifts", "dims"), ROLLS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_roll(shifts, dims, dtype):
    for x in layouts((2, 5, 3, 7), dtype):
        for output in ("contiguous", "channels_last"):
            case = problem(ROLL, x, output, {"shifts": shifts, "dims": dims})
            assert TACTIC.reject(case) == ""
            check(case, TACTIC.configs(case, 0)[0])


def test_roll_of_a_vector():
    case = problem(ROLL, TensorSpec.contiguous((9,), torch.float16), "contiguous", {"shifts": [-2], "dims": []})
    check(case, TACTIC.configs(case, 0)[0])


def test_rejects():
    x = TensorSpec.contiguous((2, 5, 7), torch.float16)
    assert "negative" in TACTIC.reject(problem(PAD, x, "contiguous", {"pad": [1, -1], "value": 0}))
    assert "flattened" in TACTIC.reject(problem(ROLL, x, "contiguous", {"shifts": [1], "dims": []}))
    assert "mode reflect" in TACTIC.reject(problem("aten.pad.default", x, "contiguous", {"pad": [1, 1], "mode": "reflect"}))
    assert "empty" in TACTIC.reject(problem(PAD, TensorSpec.contiguous((2, 0), torch.float16), "contiguous", {"pad": [1, 1], "value": 0}))


def compile_kernels(capability: int) -> list[Kernel]:
    """Kernels that must compile for every architecture."""
    kernels = []
    for dtype in DTYPES:
        x = TensorSpec((2, 48, 9, 9), channels_last_strides((2, 48, 9, 9)), dtype)
        for op, attributes in ((PAD, {"pad": [1, 2, 3, 4], "value": 1.0}), (ROLL, {"shifts": [-3, -3], "dims": [2, 3]})):
            case = problem(op, x, "channels_last", attributes, capability)
            kernels += [launch.kernel for launch in TACTIC.recipe(case, TACTIC.configs(case, 0)[0]).launches]
    return kernels
