"""Layer norm and group norm against torch, on the CPU."""

from __future__ import annotations

import pytest
import torch

from torchkiln.backends.cuda.recipe import Problem, TensorSpec, channels_last_strides
from torchkiln.backends.cuda.tactics.norms import GroupNormOnChip, GroupNormSplit, LayerNorm

from .interpret import check, interpret

HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
TOLERANCE = {HALF: 1e-3, BFLOAT: 8e-3, FLOAT: 1e-5}
#: Chosen so that slabs do not divide the positions, and the last one is short.
SPLIT = {"slab": 12, "positions": 4, "channels": 8, "warps": 1}


def spec(shape, dtype, last=False):
    return TensorSpec(tuple(shape), channels_last_strides(shape), dtype) if last else TensorSpec.contiguous(shape, dtype)


def layer_norm(x, dims=1, weight=True, bias=True, y=None, parameters=None, capability=80):
    normalized = x.shape[len(x.shape) - dims :]
    vector = TensorSpec.contiguous(normalized, parameters or x.dtype)
    y = y or TensorSpec.contiguous(x.shape, x.dtype)
    attributes = {"normalized_shape": list(normalized), "eps": 1e-5, "dtype": str(y.dtype).split(".")[1]}
    return Problem("layer_norm", (x, vector if weight else None, vector if bias else None), (y,), attributes, capability=capability)


def group_norm(x, groups, weight=True, bias=True, residual=None, activation="none", y=None, parameters=None, capability=80, moments=False):
    vector = TensorSpec.contiguous(x.shape[1:2], parameters or x.dtype)
    y = y or x
    attributes = {"groups": groups, "eps": 1e-5, "activation": activation, "alpha": 0.1, "dtype": str(y.dtype).split(".")[1]}
    given = TensorSpec.contiguous((x.shape[0], 2, x.shape[1]), FLOAT) if moments else None
    inputs = (x, vector if weight else None, vector if bias else None, residual, given)
    return Problem("group_norm", inputs, (y,), attributes, capability=capability)


def every(tactic, problem, tolerance, level=1):
    assert tactic.reject(problem) == ""
    for config in tactic.configs(problem, level):
        check(tactic, problem, config, tolerance)


def both(problem, tolerance):
    every(GroupNormOnChip(), problem, tolerance)
    every(GroupNormSplit(), problem, tolerance, level=0)
    for combine in (False, True) if problem.attributes["groups"] == problem.inputs[0].shape[1] else (True,):
        check(GroupNormSplit(), problem, {**SPLIT, "combine": combine}, tolerance)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize(("shape", "dims"), [((5, 48), 1), ((2, 7, 37), 1), ((3, 5, 6), 2), ((17,), 1), ((3, 1000), 1)])
def test_layer_norm(shape, dims, dtype):
    every(LayerNorm(), layer_norm(spec(shape, dtype), dims), TOLERANCE[dtype])


@pytest.mark.parametrize(("weight", "bias"), [(False, False), (True, False), (False, True)])
def test_layer_norm_options(weight, bias):
    half, single = spec((9, 50), HALF), spec((9, 50), FLOAT)
    every(LayerNorm(), layer_norm(half, 1, weight, bias, single, FLOAT), 1e-5)
    every(LayerNorm(), layer_norm(single, 1, weight, bias, half, HALF), 1e-3)


def test_layer_norm_strides():
    sliced = TensorSpec((2, 3, 4, 16), (1000, 200, 40, 1), HALF)
    permuted = TensorSpec((2, 3, 5, 16), (240, 16, 48, 1), HALF)
    channels_first = TensorSpec((2, 3, 5, 16), (240, 5, 1, 15), HALF)
    for x in (sliced, permuted, channels_first):
        every(LayerNorm(), layer_norm(x), 1e-3)
        every(LayerNorm(), layer_norm(x, y=TensorSpec(x.shape, (1, 40, 900, 2), HALF)), 1e-3)
    scattered = TensorSpec((2, 3, 4), (100, 20, 1), HALF)
    assert LayerNorm().reject(layer_norm(scattered, 2)) == "normalized dimensions that do not lie evenly, row-major"
    assert LayerNorm().reject(layer_norm(spec((2, 40000), HALF))) == "rows of more than 32768 elements"


def test_layer_norm_every_config():
    every(LayerNorm(), layer_norm(spec((300, 96), HALF)), 1e-3, level=5)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("shape", "groups"), [((2, 12, 5, 7), 12), ((2, 12, 5, 7), 3), ((1, 10, 3, 4, 5), 10), ((2, 6, 3, 3, 5), 1), ((3, 20), 4)])
def test_group_norm(shape, groups, last, dtype):
    both(group_norm(spec(shape, dtype, last), groups), TOLERANCE[dtype])


@pytest.mark.parametrize(("activation", "groups"), [("relu", 12), ("silu", 4), ("leaky_relu", 12), ("gelu", 4)])
def test_group_norm_options(activation, groups):
    x, other = spec((2, 12, 5, 7), HALF, True), spec((2, 12, 5, 7), HALF)
    both(group_norm(x, groups, residual=other, activation=activation, parameters=FLOAT), 1e-3)
    both(group_norm(x, groups, False, False, spec(x.shape, FLOAT), activation, spec(x.shape, FLOAT)), 1e-5)
    both(group_norm(x, groups, False, True, None, activation), 1e-3)
    both(group_norm(x, groups, True, False, x, activation, y=TensorSpec(x.shape, (2000, 7, 300, 90), HALF)), 1e-3)


@pytest.mark.parametrize("groups", [8, 2])
def test_group_norm_of_values_far_from_zero(groups):
    problem = group_norm(spec((1, 8, 30, 30), FLOAT, True), groups, False, False)
    x = (torch.randn(1, 8, 30, 30) * 0.01 + 1000).contiguous(memory_format=torch.channels_last)
    x[:, :, 0, 0] = 0
    expected = torch.nn.functional.group_norm(x.double(), groups)
    for tactic in (GroupNormOnChip(), GroupNormSplit()):
        for config in (tactic.configs(problem, 0)[0], *([{**SPLIT, "slab": 100, "combine": True}] if tactic.name.endswith("split") else [])):
            y = torch.empty_like(x)
            interpret(tactic.recipe(problem, config), {"x0": x, "y0": y})
            torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 12, 5, 7), 12), ((2, 12, 5, 7), 3), ((1, 10, 3, 4, 5), 10), ((2, 6, 3, 3, 5), 1), ((3, 20, 11), 4), ((1, 70, 7, 5), 14)],
)
def test_group_norm_of_given_moments(shape, groups, last):
    """Any numbers will do for the moments: the kernel must use them, and not those of x."""
    x = spec(shape, HALF, last)
    for problem in (group_norm(x, groups, moments=True), group_norm(x, groups, True, False, x, "leaky_relu", parameters=FLOAT, moments=True)):
        assert GroupNormOnChip().reject(problem) == "takes its own moments"
        every(GroupNormSplit(), problem, 1e-3, level=0)
        check(GroupNormSplit(), problem, {**SPLIT, "combine": False}, 1e-3)
        check(GroupNormSplit(), problem, {**SPLIT, "combine": True}, 1e-3)


def test_group_norm_of_given_moments_launches():
    """One launch where no group has several channels, whatever the size."""
    split = GroupNormSplit()
    for groups, combined in ((48, {False}), (6, {False, True}), (1, {True})):
        problem = group_norm(spec((1, 48, 96, 96, 96), HALF, True), groups, moments=True)
        configs = split.configs(problem, 5)
        assert {config["combine"] for config in configs} == (combined if groups > 1 else {False, True})
        for config in configs:
            assert len(split.recipe(problem, config).launches) == 1 + config["combine"]


def test_group_norm_rejects():
    large = group_norm(spec((1, 4, 300, 300), HALF), 4)
    assert GroupNormOnChip().reject(large) == "groups of more than 32768 elements"
    assert GroupNormSplit().reject(group_norm(spec((1, 16384, 2, 2), HALF), 1)) == "groups of more than 8192 channels"
    strided = Problem("group_norm", (large.inputs[0], TensorSpec((4,), (2,), HALF), None, None, None), large.outputs, large.attributes)
    assert GroupNormSplit().reject(strided) == "a weight or bias that is not contiguous"


def _cases():
    found = []
    shapes = [(900_000, 48), (64 * 197, 768), (1, 197, 768), (64, 8192), (16, 32768), (50, 16)]
    problems = [layer_norm(spec(shape, HALF), parameters=FLOAT, capability=90) for shape in shapes]
    problems.append(layer_norm(TensorSpec((8, 56, 56, 96), (301056, 56, 1, 3136), HALF), capability=90))
    found += [(LayerNorm(), problem, LayerNorm().configs(problem, 0)[0]) for problem in problems]
    for shape, groups, last in [((8, 48, 96, 96, 96), 48, True), ((8, 48, 96, 96, 96), 48, False), ((2, 320, 64, 64), 32, True)]:
        problem = group_norm(spec(shape, HALF, last), groups, activation="silu", residual=spec(shape, HALF, last), capability=90)
        found += [(GroupNormSplit(), problem, config) for config in GroupNormSplit().configs(problem, 1)[:2]]
    for groups in (48, 6):
        problem = group_norm(spec((1, 48, 96, 96, 96), HALF, True), groups, activation="leaky_relu", moments=True, capability=90)
        found.append((GroupNormSplit(), problem, GroupNormSplit().configs(problem, 0)[0]))
    for shape, groups, last in [
        ((8, 48, 6, 6, 6), 48, True),
        ((2, 1280, 8, 8), 32, True),
        ((2, 320, 32, 32), 32, False),
        ((3, 64, 37, 21), 64, True),
    ]:
        problem = group_norm(spec(shape, HALF, last), groups, activation="leaky_relu", capability=90)
        found.append((GroupNormOnChip(), problem, GroupNormOnChip().configs(problem, 0)[0]))
    return found


#: (tactic, problem, config) of recipes that must compile for every architecture.
COMPILE_CASES = _cases()
