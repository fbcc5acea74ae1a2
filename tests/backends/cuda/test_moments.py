"""Moments as a by-product of convolutions: the ops, the parts that tiles store, and how they are combined."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.backends.cuda.interpret import check, interpret, make
from tests.backends.cuda.problems import conv_problem

from torchkiln.backends.cuda.recipe import Problem, Recipe, TensorSpec
from torchkiln.backends.cuda.tactics.conv_gemm import ConvGemm
from torchkiln.backends.cuda.tactics.conv_moments import TACTICS, ThenMoments
from torchkiln.backends.cuda.tactics.conv_rows import ConvRows
from torchkiln.backends.cuda.tactics.cudnn import Cudnn
from torchkiln.backends.cuda.tactics.moments import combine_launch

SMALL = {"BM": 16, "BN": 16, "BK": 32, "warps": 4, "stages": 2, "split": 1, "early": False}
TOLERANCE = {torch.float16: 2e-3, torch.float32: 1e-5}


def moments_problem(x, weight, dtype=torch.float16, **options) -> Problem:
    problem = conv_problem(x, weight, dtype, **options)
    y = problem.outputs[0]
    return replace(problem, op="conv_moments", outputs=(y, TensorSpec.contiguous((y.shape[0], 2, y.shape[1]), torch.float32)))


CASES = {
    "1-D": moments_problem((2, 20, 37), (12, 20, 5), stride=2, padding=2, activation="sigmoid"),
    "2-D": moments_problem((2, 24, 5, 7), (21, 24, 3, 3), padding=1, activation="leaky_relu", alpha=0.1),
    "3-D": moments_problem((2, 18, 3, 5, 4), (20, 18, 2, 2, 2), padding=1, bias=False),
    "one image": moments_problem((1, 24, 5, 7), (33, 24, 1, 1), residual=True, activation="relu"),
    "scale": moments_problem((3, 40, 4, 5), (33, 40, 1, 1), scale=True, residual=True),
    "grouped": moments_problem((2, 48, 5, 5), (36, 16, 3, 3), padding=1, groups=3),
    "whole tiles": moments_problem((2, 20, 4, 8), (16, 20, 3, 3), padding=1),
    "flat": moments_problem((2, 1, 3, 4, 5), (10, 1, 3, 3, 3), padding=1),
    "fp32": moments_problem((2, 20, 5, 6), (17, 20, 3, 3), torch.float32, padding=1),
    "channels outermost": moments_problem((2, 20, 5, 7), (17, 20, 3, 3), padding=1, channels_last=False),
}


def check_moments(y: torch.Tensor, moments: torch.Tensor, tolerance: float = 1e-5) -> None:
    """They are those of the rounded result, each of them."""
    variance, mean = torch.var_mean(y.double(), list(range(2, y.dim())), correction=0)
    torch.testing.assert_close(moments[:, 0].double(), mean, rtol=tolerance, atol=tolerance * float(variance.sqrt().max()))
    torch.testing.assert_close(moments[:, 1].double(), variance, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_op(dtype):
    x, weight = torch.randn(2, 5, 7, 9, dtype=dtype), torch.randn(12, 5, 3, 3, dtype=dtype)
    bias = torch.randn(12, dtype=dtype)
    y, moments = torch.ops.torchkiln.conv_moments(x, weight, bias, None, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, "relu", 0.0)
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, padding=1).relu())
    check_moments(y, moments)
    for groups in (12, 4, 1):
        affine = torch.randn(12), torch.randn(12)
        normed = torch.ops.torchkiln.group_norm(y, groups, *affine, y, 1e-5, "relu", 0.0, torch.float32, moments)
        torch.testing.assert_close(normed, F.relu(F.group_norm(y.float(), groups, *affine, 1e-5) + y), rtol=1e-4, atol=1e-4)
        other = torch.ops.torchkiln.group_norm(y, groups, *affine, y, 1e-5, "relu", 0.0, torch.float32, moments + 1)
        assert not torch.allclose(normed, other, atol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_conv_gemm(name):
    problem = CASES[name]
    assert ConvGemm().reject(problem) == ""
    check_moments(*check(ConvGemm(), problem, SMALL, TOLERANCE[problem.outputs[0].dtype]))


@pytest.mark.parametrize("tile", [(32, 32, 1), (64, 16, 1), (16, 32, 3), (32, 16, 2)])
@pytest.mark.parametrize("name", ["2-D", "one image", "whole tiles"])
def test_tiles(name, tile):
    problem = CASES[name]
    config = {**SMALL, "BM": tile[0], "BN": tile[1], "split": tile[2]}
    check_moments(*check(ConvGemm(), problem, config, TOLERANCE[torch.float16]))


def test_configs_are_those_of_the_convolution():
    problem = moments_problem((1, 48, 96, 96, 96), (48, 48, 3, 3, 3), padding=1)
    assert ConvGemm().configs(problem, 3) == ConvGemm().configs(replace(problem, op="conv", outputs=problem.outputs[:1]), 3)


@pytest.mark.parametrize("tactic", [ConvGemm(), ThenMoments(Cudnn())])
def test_small_deviations_of_a_large_mean(tactic):
    problem = moments_problem((2, 20, 9, 11), (8, 20, 1, 1), torch.float32)
    generator = torch.Generator().manual_seed(0)
    operands = {f"x{i}": make(spec, generator) for i, spec in enumerate(problem.inputs[:3])}
    operands["x1"] *= 1e-2
    operands["x2"] += 500
    operands |= {f"y{i}": make(spec, generator, fill=float("nan")) for i, spec in enumerate(problem.outputs)}
    held = interpret(tactic.recipe(problem, SMALL if tactic.name == "conv_gemm" else tactic.configs(problem, 0)[0]), operands)
    assert held["y0"].std((2, 3)).max() < 0.2
    check_moments(held["y0"], held["y1"], 1e-3)


@pytest.mark.parametrize("tactic", TACTICS, ids=lambda tactic: tactic.name)
def test_then_moments(tactic):
    x, weight = ((2, 24, 9, 7), (20, 24, 1, 1)) if tactic.name.startswith("cublas") else ((2, 3, 9, 7), (20, 3, 3, 3))
    problem = moments_problem(x, weight, padding=weight[-1] // 2, activation="relu")
    assert tactic.reject(problem) == ""
    for config in tactic.configs(problem, 5)[-1:]:
        check_moments(*check(tactic, problem, config, TOLERANCE[torch.float16]))


@pytest.mark.parametrize("shape", [(2, 5, 61, 83), (1, 5, 70, 7, 10)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_many_tiles_then_moments(shape, channels_last):
    """Several tiles of an image, the last one short, channels innermost or not."""
    problem = moments_problem(shape, (70, 5, *[1] * (len(shape) - 2)), torch.float32, bias=False)
    if not channels_last:
        problem = replace(problem, outputs=(TensorSpec.contiguous(problem.outputs[0].shape, torch.float32), problem.outputs[1]))

    recipe = ThenMoments(Cudnn()).recipe(problem, {"fused": True})
    parts = recipe.scratch["parts"].shape[1]
    assert parts > 1
    generator = torch.Generator().manual_seed(0)
    y = make(problem.outputs[0], generator)
    moments = make(problem.outputs[1], generator, fill=float("nan"))
    interpret(replace(recipe, launches=recipe.launches[-2:]), {f"x{i}": y for i in range(3)} | {"y0": y, "y1": moments})
    check_moments(y, moments)


@pytest.mark.parametrize(("parts", "channels"), [(1, 3), (70, 40), (300, 40), (700, 7)])
def test_combine(parts, channels):
    """Parts of different counts, some empty, of means far from each other; chunks of them where they are many."""
    generator = torch.Generator().manual_seed(0)
    batch = 2
    counts = torch.randint(0, 4, (batch, parts), generator=generator)
    counts[:, 0] = 2
    held = torch.zeros(batch, parts, 3, channels)
    values = [[torch.randn(n, channels, generator=generator) * 0.1 + 100 + 0.01 * i for i, n in enumerate(row.tolist())] for row in counts]
    for n, row in enumerate(values):
        for part, some in enumerate(row):
            if len(some):
                mean = some.mean(0)
                held[n, part] = torch.stack((torch.full((channels,), float(len(some))), mean, (some - mean).square().sum(0)))
    y = TensorSpec.contiguous((batch, channels, 4), torch.float32)
    problem = Problem("conv_moments", (), (y, TensorSpec.contiguous((batch, 2, channels), torch.float32)), {}, capability=80)
    scratch: dict[str, TensorSpec] = {}
    launch, counters = combine_launch(problem, parts, scratch)
    assert bool(counters) == ("chunks" in scratch) == (parts >= 300)
    moments = torch.full((batch, 2, channels), float("nan"))
    operands = tuple("x0" if name == "scratch.parts" else name for name in launch.operands)
    interpret(Recipe((replace(launch, operands=operands),), scratch, counters=counters), {"x0": held, "y1": moments})
    for n, row in enumerate(values):
        variance, mean = torch.var_mean(torch.cat(row).double(), 0, correction=0)
        torch.testing.assert_close(moments[n].double(), torch.stack((mean, variance)), rtol=1e-4, atol=0)


def test_rejects():
    transposed = moments_problem((1, 8, 5, 5), (8, 8, 2, 2), transposed=True)
    depthwise = moments_problem((1, 8, 5, 5), (8, 1, 3, 3), groups=8)
    assert "transposed" in ConvGemm().reject(transposed)
    assert "depthwise" in ConvGemm().reject(depthwise)
    assert "2 to 8 input channels" in ThenMoments(ConvRows()).reject(CASES["2-D"])
    assert ThenMoments(Cudnn()).reject(moments_problem((1, 8, 5, 5), (8, 8, 1, 1), scale=True)) == "cuDNN does not scale the input"


COMPILE_CASES = [
    (tactic, problem, config)
    for tactic in (ConvGemm(), ThenMoments(ConvRows()))
    for problem in [moments_problem((2, 4, 50, 53), (48, 4, 3, 3), padding=1), moments_problem((1, 48, 96, 96, 96), (48, 48, 3, 3, 3), padding=1)]
    if not tactic.reject(problem)
    for config in tactic.configs(problem, 0)
]
