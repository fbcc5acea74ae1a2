"""Softmax against torch, on the CPU."""

from __future__ import annotations

import pytest
import torch

from torchkiln.backends.cuda.recipe import Problem, TensorSpec, channels_last_strides
from torchkiln.backends.cuda.tactics.softmax import Softmax

from .interpret import check, interpret

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
TOLERANCE = {HALF: 1e-3, BFLOAT: 8e-3, FLOAT: 1e-5}


def softmax(x, dim, y=None, capability=80):
    y = y or TensorSpec(x.shape, x.strides, x.dtype)
    return Problem("softmax", (x,), (y,), {"dim": dim, "dtype": str(y.dtype).split(".")[1]}, capability=capability)


def every(problem, tolerance, level=1):
    assert Softmax().reject(problem) == ""
    for config in Softmax().configs(problem, level):
        check(Softmax(), problem, config, tolerance)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize(("shape", "dim"), [((5, 37), -1), ((2, 3, 50), 2), ((2, 7, 9), 1), ((3, 5), 0), ((11,), 0), ((3, 1), 1), ((2, 1000), 1)])
def test_softmax(shape, dim, dtype):
    every(softmax(TensorSpec.contiguous(shape, dtype), dim), TOLERANCE[dtype])


@pytest.mark.parametrize(("source", "target"), [(HALF, FLOAT), (FLOAT, HALF), (BFLOAT, FLOAT)])
def test_dtypes(source, target):
    every(softmax(TensorSpec.contiguous((6, 33), source), 1, TensorSpec.contiguous((6, 33), target)), TOLERANCE[target])


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_strides(dim):
    shape = (2, 5, 3, 7)
    x = TensorSpec(shape, channels_last_strides(shape), HALF)
    every(softmax(x, dim), 1e-3)
    every(softmax(x, dim, TensorSpec.contiguous(shape, HALF)), 1e-3)
    every(softmax(TensorSpec(shape, (400, 70, 1, 9), FLOAT), dim, TensorSpec(shape, (2, 900, 300, 11), FLOAT)), 1e-5)


def test_every_config():
    every(softmax(TensorSpec.contiguous((300, 49), HALF), -1), 1e-3, level=5)


def test_infinities_and_nan():
    x = torch.randn(4, 10)
    x[0, 3], x[1, 2], x[2, :], x[3, :5] = float("nan"), float("inf"), float("-inf"), float("-inf")
    y = torch.empty_like(x)
    problem = softmax(TensorSpec.of(x), 1)
    interpret(Softmax().recipe(problem, {"rows": 4, "warps": 1}), {"x0": x, "y0": y})
    torch.testing.assert_close(y, x.softmax(1), equal_nan=True)


def test_rejects():
    assert Softmax().reject(softmax(TensorSpec.contiguous((2, 40000), HALF), 1)) == "rows of more than 32768 elements"
    assert Softmax().reject(softmax(TensorSpec.contiguous((), HALF), 0)) == "a scalar"
    assert Softmax().reject(softmax(TensorSpec((2,) * 7, (1, 3, 9, 27, 81, 243, 729), HALF), 0)) == "more than 5 separate dimensions"


def _cases():
    last = TensorSpec((8, 19, 64, 64), channels_last_strides((8, 19, 64, 64)), HALF)
    shapes = [((128, 1000), -1), ((64 * 12 * 197, 197), -1), ((1, 1000), 1), ((32, 16384), 1), ((8, 19, 64, 64), 1), ((4, 32768), 1)]
    problems = [softmax(TensorSpec.contiguous(shape, HALF), dim, capability=90) for shape, dim in shapes] + [softmax(last, 1, capability=90)]
    return [(Softmax(), problem, Softmax().configs(problem, 0)[0]) for problem in problems]


#: (tactic, problem, config) of recipes that must compile for every architecture.
COMPILE_CASES = _cases()
