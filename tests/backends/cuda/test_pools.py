"""Max and average pools against torch, on the CPU."""

from __future__ import annotations

import pytest
import torch

from torchkiln.backends.cuda.recipe import Problem, TensorSpec, channels_last_strides
from torchkiln.backends.cuda.tactics.pools import Pool

from .interpret import check, interpret

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
TOLERANCE = {HALF: 1e-3, BFLOAT: 8e-3, FLOAT: 1e-6}


def spec(shape, dtype, last=False):
    return TensorSpec(tuple(shape), channels_last_strides(shape), dtype) if last else TensorSpec.contiguous(shape, dtype)


def pool(kind, x, kernel, stride=(), padding=0, dilation=1, ceil=False, count_padding=True, divisor=None, last=False, capability=80):
    """A pooling problem; ``kind`` is "max2d" and so on."""
    attributes = {"kernel_size": list(kernel), "stride": list(stride), "padding": [padding] if isinstance(padding, int) else list(padding)}
    attributes["ceil_mode"] = ceil
    extra = {"dilation": [dilation]} if kind.startswith("max") else {"count_include_pad": count_padding, "divisor_override": divisor}
    attributes |= extra
    function = getattr(torch.nn.functional, f"{kind[:3]}_pool{kind[3:]}")
    names = {key: value or None for key, value in attributes.items()} if not stride else attributes
    shape = function(torch.empty(x.shape, device="meta"), **{**attributes, "stride": names["stride"]}).shape
    return Problem(f"aten.{kind[:3]}_pool{kind[3:]}.default", (x,), (spec(shape, x.dtype, last),), attributes, capability=capability)


def every(problem, tolerance, level=0):
    assert Pool().reject(problem) == ""
    for config in Pool().configs(problem, level):
        check(Pool(), problem, config, tolerance)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("kind", ["max2d", "avg2d", "max3d", "avg3d"])
def test_pools(kind, dtype, last):
    size = (9, 13) if kind.endswith("2d") else (3, 5, 4)
    every(pool(kind, spec((2, 11 if last else 3, *size), dtype, last), [3], [2], 1, last=last), TOLERANCE[dtype])


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [([2], [], 0), ([3, 2], [2, 3], [1, 0]), ([3, 3], [1, 1], 1), ([4], [4], 2)])
@pytest.mark.parametrize("kind", ["max2d", "avg2d"])
def test_options(kind, kernel, stride, padding, ceil):
    x = spec((1, 5, 12, 10), HALF, True)
    every(pool(kind, x, kernel, stride, padding, ceil=ceil, last=True), 1e-3)
    if kind == "avg2d":
        every(pool(kind, x, kernel, stride, padding, ceil=ceil, count_padding=False), 1e-3)
        every(pool(kind, x, kernel, stride, padding, ceil=ceil, divisor=7), 1e-3)
    else:
        every(pool(kind, spec((1, 5, 24, 20), HALF, True), kernel, stride, padding, dilation=2, ceil=ceil), 1e-6)


def test_unbatched_strided_and_ceil_3d():
    every(pool("max2d", TensorSpec((5, 9, 8), (1, 50, 5), HALF), [3], [2], 1), 1e-6)
    every(pool("max3d", spec((5, 6, 7, 8), HALF), [2, 3, 1], [2], [1, 1, 0], ceil=True), 1e-6)
    every(pool("max3d", TensorSpec((2, 5, 6, 7, 4), (5000, 1, 900, 70, 8), HALF), [2, 3, 1], [2], [1, 1, 0]), 1e-6)


def test_windows_too_large_to_unroll():
    problem = pool("max2d", spec((1, 3, 7, 9), FLOAT, True), [7], [2], 3)
    assert not Pool().configs(problem, 0)[0]["unroll"]
    every(problem, 1e-6)


def test_every_config():
    every(pool("max2d", spec((1, 70, 10, 9), HALF, True), [3], [2], 1, last=True), 1e-6, level=5)


@pytest.mark.parametrize("position", [(0, 0), (4, 5), (8, 7)])
def test_nan_stays(position):
    x = torch.randn(1, 3, 9, 8)
    x[(0, 1, *position)] = float("nan")
    problem = pool("max2d", TensorSpec.of(x), [3], [2], 1)
    y = torch.empty(problem.outputs[0].shape)
    interpret(Pool().recipe(problem, Pool().configs(problem, 0)[0]), {"x0": x, "y0": y})
    torch.testing.assert_close(y, torch.nn.functional.max_pool2d(x, 3, 2, 1), equal_nan=True)


def test_rejects():
    assert Pool().reject(pool("max2d", spec((1, 3, 8, 8), torch.int8), [2])) == "dtype torch.int8"


def _cases():
    problems = [
        pool("max2d", spec((128, 64, 112, 112), HALF, True), [3], [2], 1, last=True, capability=90),
        pool("max2d", spec((1, 64, 112, 112), HALF, True), [3], [2], 1, last=True, capability=90),
        pool("max2d", spec((8, 64, 112, 112), HALF), [3], [2], 1, capability=90),
        pool("max2d", spec((8, 256, 20, 20), HALF, True), [5], [1], 2, last=True, capability=90),
        pool("max3d", spec((2, 32, 48, 48, 48), HALF, True), [2], [2], 0, last=True, capability=90),
        pool("avg2d", spec((32, 128, 56, 56), HALF, True), [2], [2], 0, last=True, capability=90),
        pool("avg2d", spec((8, 192, 35, 35), torch.bfloat16, True), [3], [1], 1, count_padding=False, last=True, capability=90),
        pool("max2d", spec((8, 192, 35, 35), torch.bfloat16, True), [13], [1], 6, last=True, capability=90),
    ]
    return [(Pool(), problem, Pool().configs(problem, 0)[0]) for problem in problems]


#: (tactic, problem, config) of recipes that must compile for every architecture.
COMPILE_CASES = _cases()
