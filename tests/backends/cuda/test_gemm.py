"""Linear layers with row moments and with normalized rows, against the dialect's reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from torchkiln.backends.cuda.recipe import Problem, TensorSpec
from torchkiln.backends.cuda.tactics.gemm import Gemm

from .interpret import check
from .problems import linear_problem

GEMM = Gemm()
TILE = {"BM": 16, "BN": 32, "BK": 32, "warps": 4, "stages": 2, "split": 1, "early": False}


def with_moments(rows: int, depth: int, features: int, dtype=torch.float16, **options) -> Problem:
    problem = linear_problem((rows, depth), features, dtype, **options)
    y = problem.outputs[0]
    return dataclasses.replace(problem, op="linear_moments", outputs=(y, TensorSpec.contiguous((rows, features // 16), torch.float32)))


def normalized(rows: int, depth: int, features: int, dtype=torch.float16, *, scaled: bool = True, shifted: bool = True, **options) -> Problem:
    problem = linear_problem((rows, depth), features, dtype, **options)
    own = TensorSpec.contiguous((depth,), torch.float32)
    inputs = (*problem.inputs[:4], TensorSpec.contiguous((rows, depth // 16), torch.float32), own if scaled else None, own if shifted else None)
    constants = (*problem.constants[:4], False, scaled, shifted)
    return dataclasses.replace(problem, op="linear_normalized", inputs=inputs, constants=constants, attributes={**problem.attributes, "eps": 1e-5})


CASES = {
    "moments": (with_moments(37, 40, 96), {}),
    "moments, residual, activation": (with_moments(21, 72, 160, residual=True, activation="gelu"), {"BN": 64, "early": True}),
    "moments without bias": (with_moments(5, 33, 64, bias=False), {"BM": 32}),
    "moments, split": (with_moments(19, 150, 96), {"BN": 64, "split": 3}),
    "normalized": (normalized(37, 128, 40), {}),
    "normalized, residual, activation": (normalized(21, 160, 72, residual=True, activation="gelu"), {"BN": 64, "early": True}),
    "normalized without parameters": (normalized(9, 192, 50, bias=False, scaled=False, shifted=False), {"BM": 64, "BK": 64}),
    "normalized, shifted": (normalized(9, 128, 50, bias=False, scaled=False), {}),
    "normalized, split": (normalized(33, 256, 40, scaled=True, shifted=False), {"split": 4, "BK": 32}),
    "normalized, K beyond a block": (normalized(17, 160, 33), {"BK": 64, "BN": 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name):
    problem, config = CASES[name]
    assert GEMM.reject(problem) == ""
    check(GEMM, problem, TILE | config, 4e-3)


def test_wide_rows_hold_no_moments_while_they_multiply():
    wide, narrow = normalized(128, 2048, 64), normalized(128, 128, 64)
    held = [dict(GEMM.recipe(p, TILE | {"BM": 128}).launches[0].kernel.constants)["HOLD"] for p in (wide, narrow)]
    assert held == [False, True]
    check(GEMM, normalized(3, 2048, 20), TILE | {"BM": 128}, 4e-3)


def test_moments_of_rows_far_from_zero():
    """A large mean and a small deviation: the squares of the values say nothing about the variance."""
    x = (1000 + torch.randn(4, 256)).half().float()
    _, moments = torch.ops.torchkiln.linear_moments(x, torch.eye(256), None, None, "none", 0.0)
    weight = torch.randn(8, 256)
    got = torch.ops.torchkiln.linear_normalized(x, weight, None, None, moments, None, None, 1e-5, "none", 0.0)
    torch.testing.assert_close(got, torch.nn.functional.layer_norm(x, (256,)) @ weight.T, rtol=1e-3, atol=1e-3)


def test_every_offered_configuration_divides_the_parts():
    for features in (32, 96, 768):
        problem = with_moments(197, 256, features)
        configs = GEMM.configs(problem, 5)
        assert configs
        assert all(config["BN"] % 32 == 0 for config in configs)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (normalized(4, 128, 40, torch.float32), "half precision"),
        (dataclasses.replace(normalized(4, 128, 40), constants=(False,) * 7), "computed"),
        (with_moments(0, 128, 64), "empty"),
    ],
)
def test_rejects(problem, reason):
    assert reason in GEMM.reject(problem)


COMPILE_CASES = [
    (GEMM, with_moments(197, 768, 768, torch.bfloat16, residual=True), {**TILE, "BM": 64, "BK": 64, "split": 2}),
    (GEMM, normalized(197, 768, 3072, activation="gelu"), {**TILE, "BM": 128, "BN": 128, "BK": 64, "stages": 3}),
]
