"""Sums, means, maxima and adaptive pools against torch, on the CPU."""

from __future__ import annotations

import pytest
import torch

from torchkiln.backends.cuda.recipe import Problem, TensorSpec, channels_last_strides
from torchkiln.backends.cuda.tactics.reduce import AdaptiveAveragePool, Reduce, collapse

from .interpret import check as check_positional
from .interpret import interpret, make

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
TOLERANCE = {HALF: 1e-3, BFLOAT: 8e-3, FLOAT: 1e-5}


def spec(shape, dtype, last=False):
    return TensorSpec(tuple(shape), channels_last_strides(shape), dtype) if last else TensorSpec.contiguous(shape, dtype)


def check(tactic, problem, config, tolerance):
    """As ``interpret.check``, also for the two operators whose dtype is a keyword argument."""
    if "dtype" not in problem.attributes:
        check_positional(tactic, problem, config, tolerance)
        return
    x = make(problem.inputs[0], torch.Generator().manual_seed(0))
    y = make(problem.outputs[0], torch.Generator(), fill=float("nan"))
    interpret(tactic.recipe(problem, config), {"x0": x, "y0": y})
    function = torch.mean if "mean" in problem.op else torch.sum
    expected = function(x.float(), problem.attributes["dim"] or list(range(x.dim())), problem.attributes["keepdim"])
    assert (y.float() - expected).norm() <= tolerance * expected.norm(), config


def reduction(op, x, dim, keepdim=False, out_dtype=None, capability=80):
    dims = [d % len(x.shape) for d in dim] if dim else list(range(len(x.shape)))
    shape = [1 if d in dims else size for d, size in enumerate(x.shape) if keepdim or d not in dims]
    attributes = {"dim": dim, "keepdim": keepdim}
    if op != "aten.amax.default":
        attributes["dtype"] = None
    return Problem(op, (x,), (TensorSpec.contiguous(shape, out_dtype or x.dtype),), attributes, capability=capability)


def pooling(x, size, last=False, capability=80):
    op = f"aten.adaptive_avg_pool{len(size)}d.default"
    y = spec((*x.shape[: -len(size)], *size), x.dtype, last)
    return Problem(op, (x,), (y,), {"output_size": list(size)}, capability=capability)


def every(tactic, problem, tolerance, level=1):
    assert tactic.reject(problem) == ""
    for config in tactic.configs(problem, level):
        check(tactic, problem, config, tolerance)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("op", ["aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default"])
@pytest.mark.parametrize(("shape", "dim"), [((3, 5, 7), [1]), ((5, 37), [-1]), ((2, 3, 4, 5), [0, 2]), ((13,), [0])])
def test_reductions(op, dtype, shape, dim):
    check(Reduce(), (p := reduction(op, spec(shape, dtype), dim)), Reduce().configs(p, 0)[0], TOLERANCE[dtype])


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("op", ["aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default"])
def test_options(op, keepdim):
    every(Reduce(), reduction(op, spec((2, 19, 5, 3), HALF, last=True), [-1, -2], keepdim, FLOAT), 1e-5, level=3)
    every(Reduce(), reduction(op, spec((2, 3, 5), HALF), [], keepdim, FLOAT), 1e-5)


@pytest.mark.parametrize("op", ["aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default"])
@pytest.mark.parametrize(("last", "dim"), [(True, [2, 3]), (False, [2, 3]), (True, [0, 2]), (True, [1])])
def test_two_stages(op, last, dim):
    problem = reduction(op, spec((2, 5, 9, 21), HALF, last), dim)
    check(Reduce(), problem, {"rows": 4, "cols": 8, "splits": 5, "warps": 1}, 1e-3)


def test_strided_views():
    x = TensorSpec((3, 4, 5, 6, 2), (1000, 7, 100, 30, 3), FLOAT)
    every(Reduce(), reduction("aten.sum.dim_IntList", x, [1, 3]), 1e-5)


def test_output_strides_are_kept():
    x = spec((2, 4, 3, 5), HALF, last=True)
    y = TensorSpec((2, 4, 1, 1), (11, 2, 7, 7), HALF)
    every(Reduce(), Problem("aten.mean.dim", (x,), (y,), {"dim": [2, 3], "keepdim": True, "dtype": None}, capability=80), 1e-3)


def test_long_reductions_get_two_stages():
    problem = reduction("aten.mean.dim", spec((2, 8, 300, 300), HALF), [2, 3])
    assert len(Reduce().recipe(problem, Reduce().configs(problem, 0)[0]).launches) == 2


def test_amax_keeps_nan():
    problem = reduction("aten.amax.default", spec((2, 40), FLOAT), [1])
    x, y = torch.randn(2, 40), torch.empty(2)
    x[1, 17] = float("nan")
    interpret(Reduce().recipe(problem, {"rows": 2, "cols": 8, "splits": 2, "warps": 1}), {"x0": x, "y0": y})
    assert torch.equal(y.isnan(), torch.tensor([False, True]))
    assert y[0] == x[0].max()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("shape", [(2, 19, 7, 7), (1, 40, 3, 5, 4), (3, 9, 6)])
def test_global_pool(shape, dtype, last):
    size = (1,) * (3 if len(shape) == 5 else 2)
    last = last and len(shape) > 3
    every(Reduce(), pooling(spec(shape, dtype, last), size, last), TOLERANCE[dtype])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("shape", "size"), [((2, 19, 7, 9), (3, 2)), ((1, 5, 6, 5, 4), (2, 5, 3)), ((2, 3, 2, 3), (5, 7)), ((3, 8, 8), (2, 4))])
def test_adaptive_pool(shape, size, last):
    last = last and len(shape) == len(size) + 2
    problem = pooling(spec(shape, HALF, last), size, last)
    every(AdaptiveAveragePool(), problem, 1e-3)
    assert Reduce().reject(problem) == "an adaptive pool to more than one position"


def test_rejects():
    assert Reduce().reject(reduction("aten.sum.dim_IntList", spec((3, 4), torch.int64), [0])) == "dtype torch.int64"
    assert Reduce().reject(reduction("aten.sum.dim_IntList", spec((3, 0), HALF), [0])) == "an empty tensor"
    assert Reduce().reject(reduction("aten.amax.default", spec((2**16, 2**15), HALF), [0])) == "a tensor of 2**31 elements or more"
    scattered = TensorSpec((2,) * 6, (1, 3, 9, 27, 81, 243), HALF)
    assert Reduce().reject(reduction("aten.amax.default", scattered, [])) == "more than 5 separate dimensions"


def test_collapse():
    dims = collapse((2, 3, 4, 5), (60, 1, 15, 3), (60, 1, 15, 3))
    assert (dims.sizes, dims.strides) == ((120,), ((1,), (1,)))
    assert collapse((2, 1, 4), (4, 9, 1), (8, 9, 1)).sizes == (2, 4)
    assert collapse((1, 1)).sizes == ()


def _cases():
    pooled = pooling(spec((128, 2048, 7, 7), HALF, last=True), (1, 1), last=True, capability=90)
    one = pooling(spec((1, 2048, 7, 7), HALF, last=True), (1, 1), last=True, capability=90)
    rows = reduction("aten.mean.dim", spec((64, 197, 768), HALF), [-1], capability=90)
    tokens = reduction("aten.amax.default", spec((64, 197, 768), HALF), [1], capability=90)
    whole = reduction("aten.sum.dim_IntList", spec((8, 48, 96, 96, 96), HALF, last=True), [], capability=90)
    found = [(Reduce(), problem, config) for problem in (pooled, one, rows, tokens, whole) for config in Reduce().configs(problem, 0)]
    adaptive = pooling(spec((8, 512, 14, 14), HALF, last=True), (6, 6), last=True, capability=90)
    return [*found, (AdaptiveAveragePool(), adaptive, AdaptiveAveragePool().configs(adaptive, 0)[0])]


#: (tactic, problem, config) of recipes that must compile for every architecture.
COMPILE_CASES = _cases()
